//! What a VM's first memslot takes after devices were registered on its I/O
//! buses, as `memslots doctor` tells it.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::super::boot::{Guest, Job};
use super::super::initrd::{Command, Program};
use super::super::programs;
use super::super::series::Series;
use super::super::target::{Arch, Target};
use super::super::test::wanted;
use super::told::{self, Compared};
use crate::run;

/// As filters see it.
pub(super) const NAME: &str = "first memslot after irqchip and PIT";

/// How many times as fast as what it is held against a first memslot has to be:
/// it may take 1.5 times that of a VM with no device.
const WANTED: f64 = 1.0 / 1.5;

/// Whether `target` has it, and `filters` let it run. Its devices are x86's.
pub(super) fn asked(target: &Target, filters: &[String]) -> Result<bool> {
    let has = target.arch == Arch::X86_64 && told::series(target)?.contains(&Series::Waits);
    Ok(has && wanted(NAME, filters))
}

/// Measures it on the kernel of `target`, and on one without any series, of
/// which nothing is wanted.
pub(super) fn measure(target: &Target, args: &super::super::Bench) -> Result<Vec<Compared>> {
    let vanilla = target.without_series();
    let programs = programs::build(&[super::MEMSLOTS], target.arch)?;
    let this = compared(&lines(target, args, &programs)?, "", Some(WANTED))?;
    Ok(vec![this, compared(&lines(&vanilla, args, &programs)?, ": no series", None)?])
}

/// What `memslots doctor` says on the kernel of `target`.
fn lines(target: &Target, args: &super::super::Bench, programs: &[Program]) -> Result<Vec<String>> {
    let (_, guest) = Guest::of(target, &args.qemu)?;
    let runs = args.runs.to_string();
    let words = ["/bin/memslots", "doctor", "--json", "--runs", &runs].map(str::to_owned).to_vec();
    let command = Command { words, env: args.qemu.env.clone() };
    run::say(&format!("\n==> {NAME}"));
    let programs = programs.iter().collect();
    guest.lines(&Job { programs, ..Job::new("bench-first-memslot", command) })
}

/// The row that `lines` of JSON tell.
fn compared(lines: &[String], kernel: &str, wanted: Option<f64>) -> Result<Compared> {
    let rows: Vec<Value> =
        lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let find = |after: &[&str]| {
        let is = |line: &&Value| {
            line["table"] == "first_calls"
                && line["call"] == "memory"
                && line["after"].as_array().is_some_and(|names| names == after)
        };
        let took = rows.iter().find(is).and_then(|line| line["wall_ns"].as_f64());
        let us = took.with_context(|| format!("memslots has no time of memory after {after:?}"))?;
        anyhow::Ok(us / 1000.0)
    };
    let work = format!("the {NAME}, against that of a VM without them{kernel}");
    Ok(Compared::of_times(work, find(&[])?, find(&["irqchip", "PIT"])?, wanted))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_first_memslot() {
        let line = |after: &str, wall_ns: u32| {
            format!(
                r#"{{"table":"first_calls","call":"memory","after":[{after}],"wall_ns":{wall_ns}}}"#
            )
        };
        let said = |ns| vec!["noise".to_owned(), line(r#""irqchip","PIT""#, ns), line("", 20_000)];
        let row = |ns| compared(&said(ns), "", Some(WANTED)).unwrap();
        assert!(row(29_000).reached() && !row(31_000).reached());
        assert_eq!(
            row(40_000).cells()[1..],
            ["20.0 us", "", "40.0 us", "", "0.500", "0.667", "NO"]
        );
        assert!(compared(&said(31_000), ": no series", None).unwrap().reached());
        assert!(compared(&said(1)[1..2], "", None).is_err());
    }
}
