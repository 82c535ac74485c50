//! Programs that say much, to a log, with a word now and then to those who
//! wait.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::run;

/// How often there is a word.
const EVERY: Duration = Duration::from_secs(15);
/// How much of a log an error shows.
const LAST_LINES: usize = 15;

/// Runs `command` with its output in `log`, replaced or, with `append`, added
/// to.
///
/// # Errors
/// If it can't be run or does not succeed: what it said last, and the log's
/// name.
pub(super) fn run(what: &str, command: &mut Command, log: &Path, append: bool) -> Result<()> {
    read(what, command, log, append, |_| true)
}

/// As [`run()`]; `keep` gets each line and says whether the log is to have it.
pub(super) fn read(
    what: &str,
    command: &mut Command,
    log: &Path,
    append: bool,
    mut keep: impl FnMut(&str) -> bool,
) -> Result<()> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
    }
    let mut file = File::options()
        .create(true)
        .write(true)
        .truncate(!append)
        .append(append)
        .open(log)
        .with_context(|| format!("{}", log.display()))?;
    writeln!(file, "$ {}", run::shown(command))?;
    run::say(&format!("{what} (log: {})", super::target::shown(log)));
    let start = Instant::now();
    let (mut said, mut lines) = (start, 0_usize);
    let mut last = VecDeque::new();
    let status = run::streamed(command, |line| {
        if !keep(line) {
            return;
        }
        // A full disk is noticed by the command too.
        let _ = writeln!(file, "{line}");
        lines += 1;
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(line.to_owned());
        if said.elapsed() >= EVERY {
            said = Instant::now();
            let line = line.trim();
            run::say(&format!("  {:>4} s, {lines} lines: {line}", start.elapsed().as_secs()));
        }
    })?;
    if !status.success() {
        let last = Vec::from(last).join("\n  ");
        bail!("{what}: ended with {status}, log {}, which ends with\n  {last}", log.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_failure_names_the_log_and_shows_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("new/x.log");
        let mut command = Command::new("sh");
        command.args(["-c", "seq 1 100; echo no room >&2; exit 2"]);
        let e = run("counting", &mut command, &log, false).unwrap_err().to_string();
        assert!(e.contains("counting") && e.contains("new/x.log"), "{e}");
        assert!(e.contains("  100\n  no room") && !e.contains("  50\n"), "{e}");
        assert!(fs::read_to_string(&log).unwrap().contains("\n1\n2\n"));
    }

    #[test]
    fn lines_that_somebody_reads_need_not_be_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x.log");
        let mut seen = Vec::new();
        let mut command = Command::new("printf");
        read("", command.arg("{1}\\ntwo\\n"), &log, false, |line| {
            seen.push(line.to_owned());
            !line.starts_with('{')
        })
        .unwrap();
        assert_eq!(seen, ["{1}", "two"]);
        let log = fs::read_to_string(&log).unwrap();
        assert_eq!(log.lines().skip(1).collect::<Vec<_>>(), ["two"]);
    }

    #[test]
    fn a_log_is_replaced_or_added_to() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x.log");
        let echo = |word: &str, append| {
            run("", Command::new("echo").arg(word), &log, append).unwrap();
        };
        echo("one", false);
        echo("two", true);
        assert_eq!(fs::read_to_string(&log).unwrap(), "$ echo one\none\n$ echo two\ntwo\n");
        echo("three", false);
        assert_eq!(fs::read_to_string(&log).unwrap(), "$ echo three\nthree\n");
    }
}
