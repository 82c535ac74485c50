//! `cargo xtask test`: every check of the repository, and a count.

mod api;
mod msrv;
mod programs;
mod step;
mod steps;
mod tools;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::builder::PossibleValuesParser;

use crate::log::{Log, Outcome};
use crate::machine::Machine;
use crate::run;
use crate::tally::Tally;
use step::Step;

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The host's tests only: no fuzzing, rustdoc, oldest Rust, packages or kernel
    #[arg(long)]
    quick: bool,

    /// Run these steps only
    #[arg(value_name = "STEP", value_parser = PossibleValuesParser::new(all().map(|step| step.name)))]
    steps: Vec<String>,
}

/// Every check, in the order in which they run: what fails fast first.
fn all() -> impl Iterator<Item = Step> {
    steps::STEPS.into_iter()
}

/// What became of a check.
struct Done {
    name: &'static str,
    verdict: String,
    took: Duration,
    /// Its last lines, if it failed and nothing else says why.
    last: Vec<String>,
}

/// Runs the steps that `args` names. Failure of one does not keep the others
/// from running.
pub(crate) fn run(args: &Args) -> ExitCode {
    let wanted = |step: &Step| args.steps.is_empty() || args.steps.iter().any(|s| s == step.name);
    let left_out = |step: &Step| args.quick && step.slow && args.steps.is_empty();
    let steps: Vec<(Step, bool)> = all()
        .filter(wanted)
        .map(|step| {
            let out = left_out(&step);
            (step, out)
        })
        .collect();
    for line in plan(&steps) {
        run::say(&line);
    }
    let machine = Machine::look();
    tools::install();
    let mut log = Log::new(run::say);
    let mut done = Vec::new();
    for (step, left_out) in steps {
        run::say(&format!("\n==> {}", step.name));
        let start = Instant::now();
        log.last.clear();
        let (failed, reasons) = (log.tally.failed, log.tally.reasons.len());
        let verdict =
            if left_out { skip(&mut log, step.name, LEFT_OUT) } else { run_step(&mut log, &step) };
        // Tests that panicked and guests have said why.
        let unexplained = log.tally.failed > failed && log.tally.reasons.len() == reasons;
        let last = if unexplained { log.last.drain(..).collect() } else { vec![] };
        done.push(Done { name: step.name, verdict, took: start.elapsed(), last });
    }
    summarise(&done, &log.tally, &machine.restore());
    if log.tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

const LEFT_OUT: &str = "left out by --quick";

/// What will be done, and how long it will take: a line for each step, with
/// whether it is left out, and one for all.
fn plan(steps: &[(Step, bool)]) -> Vec<String> {
    let mut lines = vec!["==> plan".to_owned()];
    let (mut first, mut again) = (0, 0);
    for (Step { name, what, seconds, .. }, left_out) in steps {
        let takes = if *left_out {
            LEFT_OUT.to_owned()
        } else {
            first += seconds.0;
            again += seconds.1;
            roughly(*seconds)
        };
        lines.push(format!("{name:<14} {what}: {takes}"));
    }
    lines.push(format!("{:<14} {}, on 2 cores", "in all", roughly((first, again))));
    lines
}

fn roughly((first, again): (u32, u32)) -> String {
    let shown = |seconds: u32| match seconds {
        0..90 => format!("{seconds} s"),
        _ => format!("{} min", (seconds + 30) / 60),
    };
    let (first, again) = (shown(first), shown(again));
    if first == again { format!("~{again}") } else { format!("~{again}, the first time ~{first}") }
}

/// Runs one check and counts it, unless it consists of tests that were
/// counted; says how it ended.
fn run_step(log: &mut Log, step: &Step) -> String {
    let (tests, failed) = (log.tally.tests(), log.tally.failed);
    match (step.run)(log) {
        Ok(Outcome::Skipped(reason)) => skip(log, step.name, &reason),
        Ok(Outcome::Done) if log.tally.failed > failed => "FAILED".to_owned(),
        Ok(Outcome::Done) if log.tally.tests() > tests => {
            format!("ok, {} tests", log.tally.tests() - tests)
        }
        Ok(Outcome::Done) => {
            log.tally.passed += 1;
            "ok".to_owned()
        }
        Err(e) => {
            log.say(&format!("FAILED {}: {e:#}", step.name));
            if log.tally.failed == failed {
                log.tally.failed += 1;
                log.tally.failures.push(step.name.to_owned());
            }
            "FAILED".to_owned()
        }
    }
}

fn skip(log: &mut Log, step: &str, reason: &str) -> String {
    log.say(&format!("SKIPPED {step}: {}", reason.replace('\n', " ")));
    "skipped".to_owned()
}

fn summarise(done: &[Done], tally: &Tally, changed: &[String]) {
    run::say("\n==> summary");
    for Done { name, verdict, took, .. } in done {
        run::say(&format!("{name:<14} {:>7.1} s  {verdict}", took.as_secs_f64()));
    }
    for Done { name, last, .. } in done.iter().filter(|done| !done.last.is_empty()) {
        run::say(&format!("the end of {name}:"));
        for line in last {
            run::say(&format!("    {line}"));
        }
    }
    for change in changed {
        run::say(&format!("changed on this machine: {change}"));
    }
    for line in tally.lines() {
        run::say(&line);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use anyhow::Result;

    use super::*;

    /// Runs a step that runs a script; its verdict and what was counted.
    fn verdict(run: fn(&mut Log) -> Result<Outcome>) -> (String, Tally) {
        let mut log = Log::new(|_| {});
        let verdict =
            run_step(&mut log, &Step { name: "step", what: "", seconds: (0, 0), slow: false, run });
        (verdict, log.tally)
    }

    fn script(log: &mut Log, script: &str) -> Result<Outcome> {
        log.command(Command::new("sh").args(["-c", script])).map(|()| Outcome::Done)
    }

    #[test]
    fn a_step_counts_as_one_check() {
        let (verdict, tally) = verdict(|log| script(log, "echo hello"));
        assert_eq!(
            (verdict.as_str(), tally.to_string().as_str()),
            ("ok", "1 passed, 0 failed, 0 skipped")
        );
    }

    #[test]
    fn the_plan_says_what_and_how_long() {
        let step = |name, seconds, left_out| {
            let run = |_: &mut Log| Ok(Outcome::Done);
            (Step { name, what: "all of it", seconds, slow: left_out, run }, left_out)
        };
        let plan = plan(&[
            step("a", (5, 5), false),
            step("b", (100, 30), false),
            step("c", (900, 900), true),
        ]);
        let expected = [
            "==> plan",
            "a              all of it: ~5 s",
            "b              all of it: ~30 s, the first time ~2 min",
            "c              all of it: left out by --quick",
            "in all         ~35 s, the first time ~2 min, on 2 cores",
        ];
        assert_eq!(plan, expected);
    }

    #[test]
    fn every_step_is_announced() {
        for step in all() {
            assert!(!step.what.is_empty() && step.seconds.1 > 0, "{}", step.name);
            assert!(step.seconds.0 >= step.seconds.1, "{}", step.name);
            // --quick is for what is quick.
            assert!(step.slow || step.seconds.1 <= 300, "{}", step.name);
        }
    }

    #[test]
    fn a_step_that_fails_is_named() {
        let (verdict, tally) = verdict(|log| script(log, "exit 101"));
        assert_eq!(verdict, "FAILED");
        assert_eq!(tally.to_string(), "0 passed, 1 failed, 0 skipped");
        assert_eq!(tally.failures, ["step"]);
    }

    #[test]
    fn a_step_of_tests_counts_as_its_tests() {
        let (verdict, tally) = verdict(|log| {
            script(log, "echo 'test result: ok. 3 passed; 0 failed; 0 ignored'; echo SKIPPED a: b")
        });
        assert_eq!(verdict, "ok, 3 tests");
        assert_eq!(tally.to_string(), "3 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn tests_that_fail_are_not_counted_twice() {
        let (verdict, tally) = verdict(|log| {
            script(
                log,
                "echo 'test a ... FAILED'; echo 'test result: FAILED. 3 passed; 1 failed; 0 ignored'
                 exit 101",
            )
        });
        assert_eq!(verdict, "FAILED");
        assert_eq!(tally.to_string(), "3 passed, 1 failed, 0 skipped");
        assert_eq!(tally.failures, ["a"]);
    }

    /// One binary's tests pass, another does not compile, or dies of a signal.
    #[test]
    fn a_step_of_tests_that_breaks_off_has_failed() {
        let (verdict, tally) = verdict(|log| {
            script(log, "echo 'test result: ok. 3 passed; 0 failed; 0 ignored'; kill -9 $$")
        });
        assert_eq!(verdict, "FAILED");
        assert_eq!(tally.to_string(), "3 passed, 1 failed, 0 skipped");
        assert_eq!(tally.failures, ["step"]);
    }

    #[test]
    fn a_step_that_can_not_run_is_skipped_with_its_reason() {
        let (verdict, tally) = verdict(|_| Ok(Outcome::Skipped("no\ntool".to_owned())));
        assert_eq!(verdict, "skipped");
        assert_eq!(tally.to_string(), "0 passed, 0 failed, 1 skipped");
        assert_eq!(tally.skipped, ["SKIPPED step: no tool"]);
    }
}
