//! The programs that `cargo test` builds, run two at a time: most of them use one
//! processor.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::log::Log;
use crate::run;
use crate::workspace::{cargo, root};

/// A program with tests.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Program {
    /// Of its package, where cargo would run it.
    dir: PathBuf,
    /// What it is built from.
    source: PathBuf,
    executable: PathBuf,
}

/// How one has run.
struct Ran {
    /// What it said, a line each.
    lines: Vec<String>,
    ended: Result<ExitStatus>,
    took: Duration,
}

/// How many run at a time.
const AT_A_TIME: usize = 2;

/// Builds the tests of `what`, arguments of `cargo test`, and runs all of them, or
/// those of the package in `only`, whether others fail or not.
///
/// # Errors
/// If they can't be built, none ran, or one failed.
pub(super) fn run(log: &mut Log, what: &[&str], only: Option<&str>) -> Result<()> {
    let mut programs = build(log, what)?;
    programs.retain(|program| only.is_none_or(|package| program.dir == root().join(package)));
    programs.sort_unstable();
    programs.dedup();
    let tests = log.tally.tests();
    let failed = run_all(log, programs);
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    if log.tally.tests() == tests {
        bail!("not one test ran");
    }
    Ok(())
}

fn build(log: &mut Log, what: &[&str]) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    let mut test = cargo();
    // All that has tests, but for documentation. With --bins what says that it has
    // none would be built, too.
    test.arg("test").args(what).arg("--tests");
    test.args(["--no-run", "--message-format", "json-render-diagnostics"]);
    log.filtered(&mut test, |line| {
        let message = line.starts_with("{\"reason\"").then(|| serde_json::from_str(line).ok());
        let message: Option<Value> = message.flatten();
        programs.extend(message.as_ref().and_then(program));
        message.is_none()
    })?;
    Ok(programs)
}

/// The program with tests that cargo's `message` is about.
fn program(message: &Value) -> Option<Program> {
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    Some(Program {
        dir: Path::new(message["manifest_path"].as_str()?).parent()?.to_owned(),
        source: message["target"]["src_path"].as_str()?.into(),
        executable: message["executable"].as_str()?.into(),
    })
}

/// Runs `programs`; the names of those that fail.
fn run_all(log: &mut Log, programs: Vec<Program>) -> Vec<String> {
    let left = Mutex::new(VecDeque::from(programs));
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let (ran, all) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            let (ran, next) = (ran.clone(), &next);
            scope.spawn(move || {
                while let Some(program) = next() {
                    let done = run_one(&program);
                    if ran.send((program, done)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(ran);
        let shown = all.into_iter().map(|(program, ran)| show(log, &program, ran));
        shown.flatten().collect()
    })
}

fn run_one(program: &Program) -> Ran {
    let mut command = Command::new(&program.executable);
    // Without it a test that passes can't say that it skipped.
    command.arg("--show-output");
    command.current_dir(&program.dir).env("CARGO_MANIFEST_DIR", &program.dir);
    let (start, mut lines) = (Instant::now(), Vec::new());
    let ended = run::streamed(&mut command, |line| lines.push(line.to_owned()));
    Ran { lines, ended, took: start.elapsed() }
}

/// Shows what `program` has said, all at once; its name, if it failed.
fn show(log: &mut Log, program: &Program, ran: Ran) -> Option<String> {
    let name = program.source.strip_prefix(root()).unwrap_or(&program.source).display();
    let name = name.to_string();
    log.say(&format!("     Ran {name} ({:.1} s)", ran.took.as_secs_f64()));
    let failed = log.tally.failed;
    for line in &ran.lines {
        log.read(line);
    }
    let why = match ran.ended.with_context(|| name.clone()) {
        Ok(status) if status.success() => return None,
        Ok(status) => format!("{name} ended with {status}"),
        Err(error) => format!("{error:#}"),
    };
    // A program that a signal ends has named no test.
    if log.tally.failed == failed {
        log.say(&why);
        log.tally.failed += 1;
        log.tally.failures.push(why);
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn script(dir: &Path, name: &str, text: &str) -> Program {
        let executable = dir.join(name);
        // By a process of its own: a child that another test forks meanwhile would have
        // this one's descriptor, and what is open for writing is not executed (ETXTBSY).
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" >"$0" && chmod 755 "$0""#;
        let mut sh = Command::new("sh");
        assert!(sh.args(["-c", write]).arg(&executable).arg(text).status().unwrap().success());
        Program { dir: dir.to_owned(), source: name.into(), executable }
    }

    #[test]
    fn programs_of_messages() {
        let message = |test, executable| {
            json!({
                "reason": "compiler-artifact", "manifest_path": "/w/a/Cargo.toml",
                "target": {"src_path": "/w/a/tests/t.rs"},
                "profile": {"test": test}, "executable": executable,
            })
        };
        let expected = Program {
            dir: "/w/a".into(),
            source: "/w/a/tests/t.rs".into(),
            executable: "/t/t-1".into(),
        };
        assert_eq!(program(&message(true, json!("/t/t-1"))), Some(expected));
        // What a test runs, and a library.
        assert_eq!(program(&message(false, json!("/t/t-1"))), None);
        assert_eq!(program(&message(true, Value::Null)), None);
        assert_eq!(program(&json!({"reason": "build-finished"})), None);
    }

    #[test]
    fn each_runs_in_its_package_whatever_becomes_of_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let good = "[ $(pwd -P) = \"$CARGO_MANIFEST_DIR\" ] && echo 'test result: ok. 2 passed; 0 failed; 0 ignored'";
        let bad = "echo 'test x ... FAILED'; echo 'test result: FAILED. 1 passed; 1 failed; 0 ignored'; exit 101";
        let at = dir.path().canonicalize().unwrap();
        let programs = vec![
            script(&at, "bad", bad),
            script(&at, "dies", "kill -9 $$"),
            script(&at, "good", good),
            Program { executable: at.join("gone"), ..script(&at, "other", "") },
        ];
        let mut log = Log::new(|_| {});
        let mut failed = run_all(&mut log, programs);
        failed.sort();
        assert_eq!(failed, ["bad", "dies", "other"]);
        assert_eq!((log.tally.passed, log.tally.failed), (3, 3));
        assert_eq!(log.tally.failures.len(), 3, "{:?}", log.tally.failures);
        assert!(log.tally.failures.contains(&"x".to_owned()), "{:?}", log.tally.failures);
    }
}
