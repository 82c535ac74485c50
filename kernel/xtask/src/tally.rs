//! What the output of tests says, counted.

use std::fmt;

/// Counts over everything that ran.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) ignored: usize,
    /// The `SKIPPED TEST: REASON` lines.
    pub(crate) skipped: Vec<String>,
    /// Names of tests and steps that failed.
    pub(crate) failures: Vec<String>,
    /// Why: what a test that failed panicked with, how the output of a guest ends.
    pub(crate) reasons: Vec<String>,
    tests: usize,
    in_successes: bool,
    panic: Panic,
}

/// What of a failed test's output is being read.
#[derive(Debug, Default, PartialEq)]
enum Panic {
    #[default]
    Nothing,
    /// Its output, up to the panic.
    Output(String),
    /// The panic, of which this many lines more are kept.
    Message(usize),
}

/// How many lines of a panic the summary repeats, and characters of a line: a
/// property test's input has thousands.
const MESSAGE: (usize, usize) = (6, 400);

/// Whether a line tells a reader something.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Line {
    Shown,
    /// With `--show-output`, without which a test that passes can't say that
    /// it skipped, libtest lists the names of all tests that passed again.
    Noise,
}

impl Line {
    pub(crate) fn is_worth_showing(self) -> bool {
        self == Self::Shown
    }
}

impl Tally {
    /// Takes a line of output, without colours.
    pub(crate) fn line(&mut self, line: &str) -> Line {
        if line == "successes:" {
            self.in_successes = true;
            return Line::Noise;
        }
        if self.in_successes && line.starts_with("    ") {
            return Line::Noise;
        }
        self.in_successes = false;
        self.read_panic(line);
        if let Some(result) = line.strip_prefix("test result: ") {
            self.result(result);
        } else if let Some(skipped) = skipped_test(line) {
            self.skipped.push(skipped.trim_end().to_owned());
        } else if let Some(name) = failed_test(line) {
            self.failures.push(name.to_owned());
        }
        Line::Shown
    }

    /// `thread 'NAME' panicked at PLACE`, and its message, after the headline of
    /// a test that has failed.
    fn read_panic(&mut self, line: &str) {
        let (lines, characters) = MESSAGE;
        let headline =
            line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(name) = headline {
            let failed = self.failures.iter().any(|failure| failure == name);
            self.panic = if failed { Panic::Output(name.to_owned()) } else { Panic::Nothing };
            return;
        }
        match &mut self.panic {
            Panic::Output(name) if line.contains(" panicked at ") => {
                self.reasons.push(format!("{name}: {line}"));
                self.panic = Panic::Message(lines);
            }
            Panic::Message(_) if line.is_empty() => {}
            Panic::Message(left) if *left > 0 && !line.starts_with("stack backtrace:") => {
                let line: String = line.chars().take(characters).collect();
                if let Some(reason) = self.reasons.last_mut() {
                    *reason = format!("{reason}\n    {line}");
                }
                *left -= 1;
            }
            Panic::Message(_) => self.panic = Panic::Nothing,
            Panic::Nothing | Panic::Output(_) => {}
        }
    }

    /// What there is to say in the end.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = self.reasons.clone();
        if self.ignored > 0 {
            lines.push(format!("{} tests are marked as ignored and did not run", self.ignored));
        }
        lines.extend(self.skipped.iter().cloned());
        lines.extend(self.failures.iter().map(|failure| format!("FAILED {failure}")));
        lines.push(self.to_string());
        lines
    }

    /// `ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; ...`
    fn result(&mut self, result: &str) {
        let count = |what: &str| {
            let words: Vec<&str> =
                result.split([' ', ';']).filter(|word| !word.is_empty()).collect();
            let at = words.iter().position(|word| *word == what)?;
            words.get(at.checked_sub(1)?)?.parse::<usize>().ok()
        };
        let (passed, failed) = (count("passed").unwrap_or(0), count("failed").unwrap_or(0));
        self.passed += passed;
        self.failed += failed;
        self.ignored += count("ignored").unwrap_or(0);
        self.tests += passed + failed;
    }

    /// Takes what `other` has counted.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.skipped.extend(other.skipped);
        self.failures.extend(other.failures);
        self.reasons.extend(other.reasons);
        self.tests += other.tests;
    }

    /// How many tests have had a result so far.
    pub(crate) fn tests(&self) -> usize {
        self.tests
    }
}

/// `SKIPPED TEST: REASON`, which follows `test NAME ... ` where libtest has one
/// thread, and says what it is about to run.
fn skipped_test(line: &str) -> Option<&str> {
    let begun = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "));
    Some(begun.map_or(line, |(_, said)| said)).filter(|said| said.starts_with("SKIPPED "))
}

/// The name in `test NAME ... FAILED`.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped, .. } = self;
        write!(f, "{passed} passed, {failed} failed, {} skipped", skipped.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `output` to a tally; what is left to show.
    fn read(output: &str) -> (Tally, String) {
        let mut tally = Tally::default();
        let shown: Vec<&str> =
            output.lines().filter(|line| tally.line(line).is_worth_showing()).collect();
        (tally, shown.join("\n"))
    }

    const PASSES: &str = "
running 3 tests
test one ... ok
test two ... ok
test three ... ignored

successes:

---- two stdout ----
SKIPPED two: no VM from /dev/kvm: No such file or directory
    indented output


successes:
    one
    two

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.17s
";

    #[test]
    fn tests_that_pass_or_skip() {
        let (tally, _) = read(PASSES);
        assert_eq!((tally.passed, tally.failed, tally.ignored), (2, 0, 1));
        assert_eq!(tally.tests(), 2);
        let skipped = "SKIPPED two: no VM from /dev/kvm: No such file or directory";
        assert_eq!(tally.skipped, [skipped]);
        assert_eq!(tally.to_string(), "2 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn tests_that_skip_one_after_the_other() {
        let (tally, _) = read("test two ... SKIPPED two: no VM ... at all\nok\n");
        assert_eq!(tally.skipped, ["SKIPPED two: no VM ... at all"]);
    }

    #[test]
    fn names_of_tests_are_shown_once_and_their_output_is_kept() {
        let (_, shown) = read(PASSES);
        assert!(!shown.contains("successes:"));
        assert!(!shown.contains("    one"));
        assert!(shown.contains("test one ... ok"));
        assert!(shown.contains("---- two stdout ----"));
        assert!(shown.contains("    indented output"));
    }

    #[test]
    fn a_failed_test_says_what_it_panicked_with() {
        let (tally, _) = read(
            "test good ... ok\n\
             test bad ... FAILED\n\n\
             successes:\n\n\
             ---- good stdout ----\n\
             thread 'good' panicked at src/lib.rs:1:1:\n\
             as it should\n\n\
             failures:\n\n\
             ---- bad stdout ----\n\
             a line of its own\n\
             thread 'bad' (7) panicked at src/lib.rs:2:1:\n\
             one is two\n\
             stack backtrace:\n   0: main\n\n\
             failures:\n    bad\n",
        );
        let reason = "bad: thread 'bad' (7) panicked at src/lib.rs:2:1:\n    one is two";
        assert_eq!(tally.reasons, [reason]);
        let total = "0 passed, 0 failed, 0 skipped";
        assert_eq!(tally.lines(), [reason, "FAILED bad", total]);
    }

    #[test]
    fn counts_add_up_over_binaries() {
        let (tally, _) = read(
            "test a::b ... FAILED\n\
             test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n\
             test result: ok. 10 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
             SKIPPED c: why\n\
             SKIPPED c: why else\n",
        );
        assert_eq!(tally.to_string(), "14 passed, 1 failed, 2 skipped");
        assert_eq!(tally.tests(), 15);
        assert_eq!(tally.failures, ["a::b"]);
    }

    #[test]
    fn what_only_looks_like_a_result_is_not_counted() {
        let (tally, _) = read(
            "  test result: ok. 4 passed; 1 failed\n\
             a SKIPPED line in the middle\n\
             test name ... ok\n\
             test result: garbage\n\
             test result: passed\n\
             test src/lib.rs - (line 13) - compile fail ... ok\n",
        );
        assert_eq!(tally, Tally::default());
    }
}
