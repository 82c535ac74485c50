//! A test, run in a guest, and again where it has derailed.

use std::collections::VecDeque;

use anyhow::Result;

use super::Case;
use super::beside::Lines;
use super::list::{Again, DERAILED};
use crate::kernel::boot::{Ended, Guest, Hang, Job};
use crate::kernel::initrd::Program;
use crate::log::remember;
use crate::tally::Tally;

/// What the kernel's selftests end with when they can't run.
const KSFT_SKIP: i32 = 4;

/// How often a test may derail before that counts.
const TRIES: u32 = 5;

/// The verdicts.
pub(super) const OK: &str = "ok";
pub(super) const FAILED: &str = "FAILED";
pub(super) const SKIPPED: &str = "skipped";

/// A file's name, without extension, for the log of test `name`.
pub(super) fn log_name(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    format!("test-{}", words.join("-"))
}

/// Runs one test and counts it, a program of Rust's tests as its tests; how it
/// ended, and at which try. Its guest is the one with number `worker` of those
/// that run now.
pub(super) fn one(
    guest: &Guest,
    case: &Case,
    programs: &[Program],
    worker: usize,
    lines: &mut Lines,
    tally: &mut Tally,
) -> (&'static str, u32) {
    let name = log_name(&case.name);
    let job = Job {
        programs: programs.iter().filter(|program| program.name == case.program).collect(),
        append: case.append,
        limit: case.limit,
        processors: case.processors,
        worker,
        nests: case.nests,
        ..Job::new(&name, case.command.clone())
    };
    let mut tried = 1;
    let mut last = attempt(guest, case, &job, lines);
    while last.derailed(case) && tried < TRIES {
        tried += 1;
        lines.say(&format!("DERAILED {}: try {tried} of {TRIES}", case.name));
        last = attempt(guest, case, &job, lines);
    }
    (last.count(case, lines, tally), tried)
}

/// How a test ended, and what it said.
struct Attempt {
    ended: Result<Ended>,
    /// Of a program of Rust's tests.
    tests: Tally,
    /// Whether one of the signs in [`DERAILED`] was there.
    said: bool,
    /// The last lines.
    last: VecDeque<String>,
}

/// Whether a vCPU that has derailed is what a test says.
fn is_sign(line: &str) -> bool {
    DERAILED.iter().any(|sign| line.contains(sign))
}

fn attempt(guest: &Guest, case: &Case, job: &Job<'_>, lines: &mut Lines) -> Attempt {
    let (mut tests, mut said, mut last) = (Tally::default(), false, VecDeque::new());
    let ended = guest.run(job, |line| {
        said |= is_sign(line);
        if !case.rust || tests.line(line).is_worth_showing() {
            lines.say(line);
            remember(&mut last, line);
        }
    });
    Attempt { ended, tests, said, last }
}

impl Attempt {
    /// Not if the kernel complained, or the test found something else wrong.
    fn derailed(&self, case: &Case) -> bool {
        case.again != Again::Nothing
            && match &self.ended {
                Ok(ended) => ended.status != 0 && self.said,
                Err(e) => case.limit.is_some() && e.downcast_ref::<Hang>().is_some(),
            }
    }

    /// Counts it in `tally`; the verdict.
    fn count(self, case: &Case, lines: &mut Lines, tally: &mut Tally) -> &'static str {
        let (tests, failed) = (self.tests.tests(), self.tests.failed);
        tally.add(self.tests);
        let why = match &self.ended {
            Ok(ended) => format!("exit status {}", ended.status),
            Err(e) => format!("{e:#}"),
        };
        match (self.ended.map(|ended| ended.status), case.rust) {
            (Ok(0), true) if tests > 0 && failed == 0 => return OK,
            (Ok(0), false) => {
                tally.passed += 1;
                return OK;
            }
            (Ok(KSFT_SKIP), false) => {
                tally.skipped.push(format!("SKIPPED {}: see its output", case.name));
                return SKIPPED;
            }
            // Counted already, by the tests' own result.
            (Ok(_), true) if failed > 0 => {}
            _ => {
                tally.failed += 1;
                tally.failures.push(case.name.clone());
            }
        }
        lines.say(&format!("FAILED {}: {why}", case.name));
        let mut last = self.last;
        last.push_front(format!("the end of {}: {why}", case.name));
        tally.reasons.push(Vec::from(last).join("\n    "));
        FAILED
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::super::tests::case;
    use super::*;

    /// How a test ends whose output is `output`.
    fn ends(ended: Result<i32>, output: &str) -> Attempt {
        let ended = ended.map(|status| Ended { status, took: Duration::ZERO });
        let mut tests = Tally::default();
        for line in output.lines() {
            tests.line(line);
        }
        let said = output.lines().any(is_sign);
        Attempt { ended, tests, said, last: output.lines().map(str::to_owned).collect() }
    }

    #[test]
    fn only_what_derailed_is_tried_again() {
        let (race, api, rust) = (case("race_test"), case("regions_test"), case("bench guest"));
        let [shutdown, _, lost, ..] = DERAILED;
        let derailed = |status, said, case| ends(Ok(status), said).derailed(case);
        assert!(derailed(254, shutdown, &race) && derailed(101, lost, &rust));
        assert!(!derailed(254, "", &race) && !derailed(254, shutdown, &api));
        assert!(!derailed(0, shutdown, &race));
        let hang = || Err(anyhow::Error::from(Hang("no end".to_owned())).context("log"));
        assert!(ends(hang(), "").derailed(&race) && !ends(hang(), "").derailed(&rust));
        let complained = Err(anyhow::anyhow!("the guest's kernel complained"));
        assert!(!ends(complained, shutdown).derailed(&race));
    }

    #[test]
    fn a_failure_is_counted_once_and_says_why() {
        let counted = |attempt: Attempt, filter| {
            let mut tally = Tally::default();
            let verdict = attempt.count(&case(filter), &mut Lines::Kept(String::new()), &mut tally);
            (verdict, tally)
        };
        let (verdict, tally) = counted(ends(Ok(0), ""), "race_test");
        assert_eq!((verdict, tally.passed, tally.reasons.len()), ("ok", 1, 0));
        let (verdict, tally) = counted(ends(Ok(KSFT_SKIP), ""), "race_test");
        assert_eq!((verdict, tally.skipped.len()), ("skipped", 1));

        let output = "test a ... FAILED\nthread 'a' panicked\n\
                      test result: FAILED. 3 passed; 1 failed; 0 ignored";
        let (verdict, tally) = counted(ends(Ok(101), output), "bench guest");
        assert_eq!((verdict, tally.passed, tally.failed), ("FAILED", 3, 1));
        assert_eq!(tally.failures, ["a"]);
        assert!(tally.reasons[0].contains("exit status 101\n    test a"), "{:?}", tally.reasons);

        // Without one result, nothing was tested.
        for attempt in [ends(Ok(0), ""), ends(Err(anyhow::anyhow!("no end")), output)] {
            let failed_tests = attempt.tests.failed;
            let (verdict, tally) = counted(attempt, "bench guest");
            assert_eq!((verdict, tally.failed), ("FAILED", failed_tests + 1));
            assert_eq!(tally.reasons.len(), 1);
        }
    }
}
