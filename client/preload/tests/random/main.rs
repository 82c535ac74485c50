//! The same random programs with the library and without: everything that it
//! sees is the same.
//!
//! `PRELOAD_SEEDS=FIRST..END` runs more of them, or one again;
//! `MEMSLOTS_FUZZ_SECONDS=3600` others each time, for an hour.

#![cfg(target_arch = "x86_64")]
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_wrap, clippy::cast_sign_loss)]
// A test is no library: a call and the pointer that it takes are one thing.
#![allow(clippy::multiple_unsafe_ops_per_block)]

#[path = "../common/mod.rs"]
mod common;
mod machine;
mod passing;
mod program;
mod random;
mod shuffled;
mod strange;
mod traced;

use std::ffi::c_int;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{NO_LIBRARY, library, skip};
use serde_json::Value;

/// Set for the program: its seed, and where it says what it saw.
const SEED: &str = "PRELOAD_SEED";
const SEEN: &str = "PRELOAD_SEEN";

/// A kind of program, by the test that runs it.
struct Kind {
    test: &'static str,
    run: fn(u64, u64) -> Result<String, c_int>,
    steps: u64,
    /// Whether its guest reads memory that was deferred.
    reads: bool,
}

#[test]
fn with_and_without_all_is_the_same() {
    let test = "with_and_without_all_is_the_same";
    compare(&Kind { test, run: program::run, steps: 60, reads: true });
}

#[test]
fn with_and_without_strange_calls_are_the_same() {
    let test = "with_and_without_strange_calls_are_the_same";
    compare(&Kind { test, run: strange::run, steps: 400, reads: false });
}

#[test]
fn with_and_without_shuffled_descriptors_are_the_same() {
    let test = "with_and_without_shuffled_descriptors_are_the_same";
    compare(&Kind { test, run: shuffled::run, steps: 100, reads: true });
}

/// Runs the program, where this process was started for that.
fn play(kind: &Kind) {
    let (Ok(seed), Some(seen)) = (std::env::var(SEED), std::env::var_os(SEEN)) else { return };
    let text = (kind.run)(seed.parse().unwrap(), kind.steps)
        .unwrap_or_else(|errno| format!("SKIPPED no VM: errno {errno}"));
    std::fs::write(seen, text).unwrap();
    // What the test harness does next may not be allowed any more.
    // SAFETY: ends the process.
    unsafe { libc::exit(0) };
}

fn compare(kind: &Kind) {
    play(kind);
    let Some(library) = library() else { return skip(kind.test, NO_LIBRARY) };
    let dir = tempfile::tempdir().unwrap();
    let (mut deferred, mut reads, mut programs) = (0, 0, 0);
    for seed in seeds() {
        programs += 1;
        let without = see(kind, dir.path(), seed, None);
        if without.starts_with("SKIPPED") {
            return skip(kind.test, &without);
        }
        let stats = dir.path().join("stats.json");
        let _ = std::fs::remove_file(&stats);
        let with = see(kind, dir.path(), seed, Some(&library));
        let mut lines = without.lines().zip(with.lines());
        if let Some((without, with)) = lines.find(|(without, with)| without != with) {
            panic!("seed {seed}:\nwithout {without}\nwith    {with}");
        }
        assert_eq!(without, with, "seed {seed}");
        let stats = std::fs::read_to_string(stats).unwrap();
        let stats: Value = serde_json::from_str(&stats).unwrap();
        deferred += stats["deferred"].as_u64().unwrap();
        reads += stats["reads"].as_u64().unwrap();
    }
    println!("{}: {programs} programs", kind.test);
    // Else nothing was compared.
    assert!(deferred > 0 && (reads > 0 || !kind.reads), "{deferred} {reads}");
}

fn seeds() -> Box<dyn Iterator<Item = u64>> {
    if let Ok(seeds) = std::env::var("PRELOAD_SEEDS") {
        let (first, end) = seeds.split_once("..").unwrap();
        return Box::new(first.parse().unwrap()..end.parse().unwrap());
    }
    let Ok(seconds) = std::env::var("MEMSLOTS_FUZZ_SECONDS") else {
        // The last one has a number that was another VM's.
        return Box::new((0..6).chain([2_205_865_797]));
    };
    let until = Instant::now() + Duration::from_secs(seconds.parse().unwrap());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("MEMSLOTS_FUZZ_SEED").ok().map(|seed| seed.parse().unwrap());
    let first = seed.unwrap_or_else(|| now() >> 16) & u64::from(u32::MAX);
    // Six at least, as else nothing may be deferred.
    Box::new((0..).take_while(move |n| *n < 6 || Instant::now() < until).map(move |n| first + n))
}

/// This program, to run that of `seed` and write what it saw.
fn again(command: &mut Command, kind: &Kind, seed: u64, seen: &Path) {
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", kind.test, "--nocapture", "--test-threads=1"]);
    command.env(SEED, seed.to_string()).env(SEEN, seen);
}

fn see(kind: &Kind, dir: &Path, seed: u64, library: Option<&Path>) -> String {
    let seen = dir.join("seen");
    let _ = std::fs::remove_file(&seen);
    let mut command = Command::new("timeout");
    command.arg("300");
    again(&mut command, kind, seed, &seen);
    if let Some(library) = library {
        command.env("KVM_MEMSLOTS_PRELOAD", "defer");
        command.env("KVM_MEMSLOTS_PRELOAD_STATS", dir.join("stats.json"));
        let policy = if seed % 3 == 0 { "rent-or-buy" } else { "fixed:500" };
        command.env("KVM_MEMSLOTS_PRELOAD_POLICY", policy).env("LD_PRELOAD", library);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let how = (output.status.code(), output.status.signal());
    assert!(output.status.success(), "seed {seed}, {library:?}: {how:?} {said}");
    std::fs::read_to_string(seen).unwrap()
}
