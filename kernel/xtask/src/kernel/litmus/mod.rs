//! Litmus tests against the kernel's memory model, where there is no herd7.
//!
//! The model is `tools/memory-model` of 6.12, written down once more in
//! [`model`]. The kernel's own tests, which say what is to be found, are what
//! it is checked with.

mod model;
mod parse;
mod relation;
mod run;
mod thread;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use super::args::Chosen;
use super::record::Record;
use super::target::Target;
use super::{source, test};
use crate::{run as say, workspace};
use parse::Litmus;
use run::Found;

/// The version whose model it is.
pub(super) const LINUX: &str = "6.12";

/// Runs the tests of `kernel/litmus` that are `chosen`, and the kernel's own.
pub(super) fn run(target: &Target, chosen: &Chosen) -> Result<ExitCode> {
    let record = Record::begin(chosen, "litmus", target)?;
    let ours = tests(&workspace::root().join("kernel/litmus"))?;
    let ours: Vec<&PathBuf> =
        ours.iter().filter(|path| test::wanted(&name(path), &chosen.filters)).collect();
    if ours.is_empty() {
        bail!("no litmus test is called so");
    }
    let mut wrong = 0;
    let mut rows = vec!["| test | found | expected |".to_owned(), "| --- | --- | --- |".to_owned()];
    for path in ours {
        let (found, expected) = one(path)?;
        wrong += usize::from(found.verdict() != expected);
        let Found { allowed, holds } = found;
        let name = name(path);
        rows.push(format!("| {name} | {}, {holds} of {allowed} | {expected} |", found.verdict()));
    }
    let source = source::pristine(&target.version)?;
    let mut same = 0;
    let mut notes = Vec::new();
    for path in tests(&source.join("tools/memory-model/litmus-tests"))? {
        match one(&path) {
            Ok((found, expected)) if found.verdict() == expected => same += 1,
            Ok((found, expected)) => {
                wrong += 1;
                notes.push(format!("WRONG {}: {} for {expected}", name(&path), found.verdict()));
            }
            Err(e) => notes.push(format!("skipped {e:#}")),
        }
    }
    rows.push(format!("\nOf the kernel's own tests {same} say what they are to say."));
    rows.extend(notes.into_iter().map(|note| format!("- {note}")));
    let found = rows.join("\n");
    say::say(&found);
    if let Some(record) = record {
        record.write(target, &found)?;
    }
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is found of the test in `path`, and what it expects.
fn one(path: &Path) -> Result<(Found, String)> {
    let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    let litmus = Litmus::parse(&text).with_context(|| name(path))?;
    let found = run::run(&litmus).with_context(|| name(path))?;
    Ok((found, litmus.expected))
}

/// The tests in `dir`, in order.
fn tests(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut tests = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("{}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "litmus") {
            tests.push(path);
        }
    }
    tests.sort();
    Ok(tests)
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn verdict(threads: &str, exists: &str) -> &'static str {
        let text = format!("C t\n(* Result: Never *)\n{{}}\n{threads}\nexists ({exists})\n");
        run::run(&Litmus::parse(&text).unwrap()).unwrap().verdict()
    }

    #[test]
    fn ours_say_what_they_are_to_say() {
        let all = super::tests(&workspace::root().join("kernel/litmus")).unwrap();
        assert!(!all.is_empty());
        for path in all {
            let (found, expected) = one(&path).unwrap();
            assert_eq!(found.verdict(), expected, "{}", path.display());
        }
    }

    /// None of the kernel's own has a grace period.
    #[test]
    fn grace_periods() {
        let reader = |srcu: &str| {
            format!(
                "P1(int *x, int *y, struct srcu_struct *{srcu})\n{{\nint r0; int r1; int r3;\n\
                 r3 = srcu_read_lock({srcu}); r0 = READ_ONCE(*x); r1 = READ_ONCE(*y);\n\
                 srcu_read_unlock({srcu}, r3);\n}}\n"
            )
        };
        let writer = |wait: &str| {
            format!(
                "P0(int *x, int *y, struct srcu_struct *s)\n\
                 {{\nWRITE_ONCE(*x, 1); {wait} WRITE_ONCE(*y, 1);\n}}\n"
            )
        };
        let both =
            |wait: &str, srcu: &str| verdict(&(writer(wait) + &reader(srcu)), "1:r0=0 /\\ 1:r1=1");
        assert_eq!(both("synchronize_srcu(s);", "s"), "Never");
        assert_eq!(both("synchronize_srcu(s);", "t"), "Sometimes");
        assert_eq!(both("smp_mb();", "s"), "Sometimes");
    }

    /// A grace period is as good as one critical section, not as two.
    #[test]
    fn as_many_grace_periods_as_critical_sections() {
        let thread = |nth: usize, wait: bool| {
            let (before, after) = (["x", "y", "z"][nth], ["y", "z", "x"][nth]);
            let (enter, middle, leave) = if wait {
                ("", "synchronize_rcu();", "")
            } else {
                ("rcu_read_lock();", "", "rcu_read_unlock();")
            };
            format!(
                "P{nth}(int *{before}, int *{after})\n{{\nint r0;\n{enter} \
                 r0 = READ_ONCE(*{before}); {middle} WRITE_ONCE(*{after}, 1); {leave}\n}}\n"
            )
        };
        let all = |waits: [bool; 3]| {
            let threads: String = (0..3).map(|nth| thread(nth, waits[nth])).collect();
            verdict(&threads, "0:r0=1 /\\ 1:r0=1 /\\ 2:r0=1")
        };
        assert_eq!(all([true, false, false]), "Sometimes");
        assert_eq!(all([true, true, false]), "Never");
    }
}
