//! The system calls of a program with the library and without: beside those of the
//! README's table there is none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Kind, again, play, strange};
use crate::common::{NO_LIBRARY, library, skip};

#[test]
fn no_system_call_is_beside_the_readmes_table() {
    let test = "traced::no_system_call_is_beside_the_readmes_table";
    let kind = Kind { test, run: strange::run, steps: 400, reads: false };
    play(&kind);
    let Some(library) = library() else { return skip(test, NO_LIBRARY) };
    for seed in 0..2 {
        let counts = [None, Some(&*library)].map(|library| traced(&kind, seed, library));
        let [Ok(without), Ok(with)] = counts else {
            return skip(test, &format!("{counts:?}"));
        };
        let named = readme();
        for (name, count) in &with {
            let plain = without.get(name).copied().unwrap_or(0);
            assert!(named.contains(name) || *count == plain, "{name}: {count}, plain {plain}");
        }
        // Else nothing was traced, or the library did nothing.
        let count = |of: &BTreeMap<String, u64>| of.get("process_vm_readv").copied();
        assert!(count(&with) > Some(0) && count(&without).is_none(), "{with:?}");
    }
}

/// Calls by name, from where KVM is opened to where what was seen is written.
fn traced(kind: &Kind, seed: u64, library: Option<&Path>) -> Result<BTreeMap<String, u64>, String> {
    let dir = tempfile::tempdir().unwrap();
    let (seen, trace) = (dir.path().join("seen"), dir.path().join("trace"));
    let mut command = Command::new("strace");
    command.arg("-f").arg("-o").arg(&trace);
    if let Some(library) = library {
        // For the program, not for strace.
        command.arg("-E").arg(format!("LD_PRELOAD={}", library.display()));
        command.args(["-E", "KVM_MEMSLOTS_PRELOAD=defer"]);
    }
    again(&mut command, kind, seed, &seen);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    let status = status.map_err(|error| format!("no strace (Debian: strace): {error}"))?;
    let text = std::fs::read_to_string(&seen).unwrap_or_default();
    if !status.success() || text.is_empty() || text.starts_with("SKIPPED") {
        return Err(format!("strace: {status}, {text}"));
    }
    let trace = std::fs::read_to_string(&trace).unwrap();
    let lines = trace.lines().skip_while(|line| !line.contains("/dev/kvm"));
    let mut counts = BTreeMap::new();
    for line in lines.take_while(|line| !line.contains("/seen\"")) {
        // Behind the thread's number.
        let line = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        let name = line.split_once('(').map_or("", |(name, _)| name);
        if name.starts_with(|c: char| c.is_ascii_lowercase()) {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }
    // Those that the table names by their requests.
    counts.remove("ioctl");
    Ok(counts)
}

/// The calls that the README names.
fn readme() -> BTreeSet<String> {
    let text = include_str!("../../README.md");
    let part = text.split("## What it does for each call").nth(1).unwrap();
    let part = part.split("## ").next().unwrap();
    let quoted = part.split('`').skip(1).step_by(2);
    quoted.map(|call| call.split('(').next().unwrap_or_default().to_owned()).collect()
}
