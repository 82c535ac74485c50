//! Where a check runs its programs: their output is shown as it comes, and read
//! for test results.

use std::collections::VecDeque;
use std::process::Command;

use anyhow::{Result, bail};

use crate::run;
use crate::tally::Tally;

/// How a check that did not fail ended.
pub(crate) enum Outcome {
    /// It ran.
    Done,
    /// It could not run, for this reason.
    Skipped(String),
}

/// What checks have said, and what it counts as.
pub(crate) struct Log {
    pub(crate) tally: Tally,
    /// Where lines are shown.
    show: fn(&str),
    /// The last lines that the step showed, at most [`LAST`].
    pub(crate) last: VecDeque<String>,
}

/// How many lines of a failed step the summary repeats: what a reader sees of
/// a long log is often its end only.
pub(crate) const LAST: usize = 15;

impl Log {
    pub(crate) fn new(show: fn(&str)) -> Self {
        Self { tally: Tally::default(), show, last: VecDeque::new() }
    }

    /// Runs `command`.
    ///
    /// # Errors
    /// If it can't be run or does not succeed.
    pub(crate) fn command(&mut self, command: &mut Command) -> Result<()> {
        self.filtered(command, |_| true)
    }

    /// The same; lines of which `keep` says no are not shown.
    ///
    /// # Errors
    /// If it can't be run or does not succeed.
    pub(crate) fn filtered(
        &mut self,
        command: &mut Command,
        mut keep: impl FnMut(&str) -> bool,
    ) -> Result<()> {
        if run::colours() {
            command.env("CARGO_TERM_COLOR", "always");
        }
        self.say(&format!("$ {}", run::shown(command)));
        let status = run::streamed(command, |line| {
            if keep(line) {
                self.read(line);
            }
        })?;
        if !status.success() {
            bail!("{} ended with {status}", run::shown(command));
        }
        Ok(())
    }

    /// Counts what a line of a program's says, and shows it unless it is noise.
    pub(crate) fn read(&mut self, line: &str) {
        let plain = run::plain(line);
        if self.tally.line(&plain).is_worth_showing() {
            (self.show)(line);
            remember(&mut self.last, &plain);
        }
    }

    /// Shows a line of the check's own.
    pub(crate) fn say(&mut self, line: &str) {
        self.tally.line(line);
        (self.show)(line);
        remember(&mut self.last, line);
    }
}

/// Keeps `line` among the last [`LAST`].
pub(crate) fn remember(last: &mut VecDeque<String>, line: &str) {
    if last.len() == LAST {
        last.pop_front();
    }
    last.push_back(line.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept() {
        let mut log = Log::new(|_| {});
        let script = "seq 40; echo no >&2; exit 1";
        assert!(log.command(Command::new("sh").args(["-c", script])).is_err());
        let last: Vec<&str> = log.last.iter().map(String::as_str).collect();
        assert_eq!(last.len(), LAST);
        assert!(last.contains(&"no") && last.contains(&"40"), "{last:?}");
    }

    #[test]
    fn lines_that_are_not_kept_are_not_counted() {
        let mut log = Log::new(|_| {});
        let script = "echo {; echo 'test result: ok. 3 passed; 0 failed; 0 ignored'";
        let mut command = Command::new("sh");
        log.filtered(command.args(["-c", script]), |line| !line.starts_with("test")).expect("sh");
        assert_eq!((log.tally.tests(), log.last.back().map(String::as_str)), (0, Some("{")));
    }
}
