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
    /// Why what ran in a guest failed: how its output ends.
    pub(crate) reasons: Vec<String>,
    tests: usize,
    in_successes: bool,
}

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
        if let Some(result) = line.strip_prefix("test result: ") {
            self.result(result);
        } else if line.starts_with("SKIPPED ") {
            self.skipped.push(line.trim_end().to_owned());
        } else if let Some(name) = failed_test(line) {
            self.failures.push(name.to_owned());
        }
        Line::Shown
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
    fn names_of_tests_are_shown_once_and_their_output_is_kept() {
        let (_, shown) = read(PASSES);
        assert!(!shown.contains("successes:"));
        assert!(!shown.contains("    one"));
        assert!(shown.contains("test one ... ok"));
        assert!(shown.contains("---- two stdout ----"));
        assert!(shown.contains("    indented output"));
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
