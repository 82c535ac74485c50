//! The mutator.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Inputs of a run where no time is asked for.
const INPUTS: u64 = 4000;

/// Inputs are not longer.
const LONGEST: usize = 4096;

/// Numbers that look random (xorshift64*).
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `end`; 0 where there is nothing.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end.max(1)
    }
}

/// The corpus of a target: every file in its folder, in order of their names.
pub(super) fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/data/fuzz", target].iter().collect();
    let mut files: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Puts the corpus, then what becomes of it, into `target`.
pub(super) fn fuzz(name: &str, corpus: &[Vec<u8>], words: &[&[u8]], target: impl Fn(&[u8])) {
    fuzz_with(INPUTS, name, corpus, words, target);
}

/// The same with so many inputs, where one takes long.
pub(super) fn fuzz_with(
    inputs: u64,
    name: &str,
    corpus: &[Vec<u8>],
    words: &[&[u8]],
    target: impl Fn(&[u8]),
) {
    assert!(!corpus.is_empty(), "{name} has no corpus");
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seconds = number("MEMSLOTS_FUZZ_SECONDS");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64);
    let seed = number("MEMSLOTS_FUZZ_SEED");
    let seed = seed.unwrap_or(if seconds.is_some() { now } else { 15 });
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    // Written before it is run: what can't unwind, as a callback of C's, ends the process.
    let kept = format!("fuzz-{name}-{seed}-{}.input", std::process::id());
    let kept = std::env::temp_dir().join(kept);
    let file = File::create(&kept).unwrap();
    let run = |input: &[u8]| {
        file.set_len(input.len() as u64).unwrap();
        file.write_all_at(input, 0).unwrap();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
            eprintln!("{name}, seed {seed}: brought down by {}", kept.display());
            resume_unwind(panic);
        }
    };
    for input in corpus {
        run(input);
    }
    let mut random = Random::new(seed);
    let mut done = 0;
    while until.map_or(done < inputs, |until| Instant::now() < until) {
        run(&mutated(&mut random, corpus, words));
        done += 1;
    }
    fs::remove_file(&kept).unwrap();
    println!("{name}: {done} inputs, seed {seed}");
}

#[test]
fn the_input_that_ends_the_process_is_kept() {
    const ENDS: &str = "MEMSLOTS_FUZZ_ENDS";
    extern "C" fn callback(bytes: usize) {
        assert_eq!(bytes, 0, "on purpose");
    }
    if std::env::var_os(ENDS).is_some() {
        fuzz("ends", &[vec![], b"an input".to_vec()], &[], |input| callback(input.len()));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "engine::the_input_that_ends_the_process_is_kept"]);
    again.env(ENDS, "1").env("TMPDIR", dir.path()).current_dir(dir.path());
    let status = again.output().unwrap().status;
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{status}");
    let files = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut kept = files.filter(|path| path.extension().is_some_and(|is| is == "input"));
    assert_eq!(fs::read(kept.next().unwrap()).unwrap(), b"an input");
}

fn mutated(random: &mut Random, corpus: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(input.len() + 1);
        let end = (at + random.below(32)).min(input.len());
        match random.below(9) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.next() as u8,
            2 => drop(input.drain(at..end)),
            3 => {
                let copy = input[at..end].to_vec();
                let to = random.below(input.len() + 1);
                input.splice(to..to, copy);
            }
            4 => input.truncate(at),
            5 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            6 if !words.is_empty() => {
                let word = words[random.below(words.len())];
                input.splice(at..end, word.iter().copied());
            }
            7 => {
                let bytes: Vec<u8> = (0..random.below(9)).map(|_| random.next() as u8).collect();
                input.splice(at..at, bytes);
            }
            _ => {
                // Two lines, or what stands for them, change places.
                let line = |from: usize, input: &[u8]| {
                    let length = input[from..].iter().position(|byte| *byte == b'\n');
                    from..length.map_or(input.len(), |length| from + length + 1)
                };
                let line = line(at, &input);
                let moved: Vec<u8> = input.drain(line).collect();
                let to = random.below(input.len() + 1);
                input.splice(to..to, moved);
            }
        }
    }
    input.truncate(LONGEST);
    input
}

/// Numbers out of an input; zeros behind its end.
pub(super) struct Numbers<'a>(pub(super) &'a [u8]);

impl Numbers<'_> {
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Mostly small, in pages; now and then at an edge of what there is.
    pub(super) fn bytes(&mut self) -> u64 {
        match (self.byte(), u64::from(self.byte())) {
            (0, low) => u64::MAX - low,
            (1, low) => (1 << 52) - (low << 12),
            (2, low) => low << 36,
            (3, low) => low << 5,
            (_, low) => (low % 64) << 12,
        }
    }
}
