//! What a memslot costs in instructions, which neither a scheduler nor a busy
//! machine disturbs: one emulated processor, whose clock they are.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::super::boot::{Guest, Job};
use super::super::initrd::{Command, Program};
use super::super::programs;
use super::super::target::Target;
use super::super::test::wanted;
use crate::run;

/// A scenario of `memslots bench`, by single calls and by the batch ioctl.
#[derive(Debug, PartialEq)]
pub(super) struct Work {
    what: &'static str,
    scenario: &'static str,
    regions: u64,
    limit: Limit,
}

/// What the batch ioctl may take for a slot.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Limit {
    Instructions(f64),
    /// So many times what a single call takes on a kernel without the series.
    Vanilla(f64),
}

/// Instructions a slot.
#[derive(Debug)]
pub(super) struct Counted {
    work: &'static Work,
    vanilla: f64,
    single: f64,
    batch: f64,
}

static ALL: [Work; 2] = [
    Work {
        what: "create 9000",
        scenario: "sparse",
        regions: 9000,
        limit: Limit::Instructions(3000.0),
    },
    Work {
        what: "create one, 256 times",
        scenario: "singly",
        regions: 256,
        limit: Limit::Vanilla(1.0),
    },
];

/// What `filters` let run.
pub(super) fn work(filters: &[String]) -> Vec<&'static Work> {
    ALL.iter().filter(|work| wanted(&work.name(), filters)).collect()
}

/// Counts `work` on the kernel of `target`, and on one without any series.
pub(super) fn count(
    target: &Target,
    args: &super::super::Bench,
    work: &[&'static Work],
) -> Result<Vec<Counted>> {
    if work.is_empty() {
        return Ok(Vec::new());
    }
    let programs = programs::build(&[super::MEMSLOTS], target.arch)?;
    let with = lines(target, args, work, &programs, "per-region,raw-batch")?;
    let vanilla = target.without_series();
    let without = lines(&vanilla, args, work, &programs, "per-region")?;
    let counted = work.iter().map(|work| {
        Ok(Counted {
            work,
            vanilla: work.found(&without, "per-region")?,
            single: work.found(&with, "per-region")?,
            batch: work.found(&with, "raw-batch")?,
        })
    });
    counted.collect()
}

/// What `memslots` says of `work` on the kernel of `target`.
fn lines(
    target: &Target,
    args: &super::super::Bench,
    work: &[&'static Work],
    programs: &[Program],
    strategies: &str,
) -> Result<Vec<String>> {
    let qemu = super::super::Qemu { icount: true, ..args.qemu.clone() };
    let (_, guest) = Guest::of(target, &qemu)?;
    let bench = |work: &&Work| {
        format!(
            "/bin/memslots bench {} --regions {} --vcpus 0 --runs 3 --json --strategy {strategies}",
            work.scenario, work.regions
        )
    };
    let script = work.iter().map(bench).collect::<Vec<_>>().join(" && ");
    let words = ["sh", "-c", &script].map(str::to_owned).to_vec();
    let command = Command { words, env: args.qemu.env.clone() };
    run::say("\n==> instructions");
    let programs = programs.iter().collect();
    guest.lines(&Job { programs, ..Job::new("bench-instructions", command) })
}

impl Work {
    /// As filters see it.
    pub(super) fn name(&self) -> String {
        format!("{}, instructions", self.what)
    }

    /// Instructions a slot, as `lines` of JSON tell.
    fn found(&self, lines: &[String], strategy: &str) -> Result<f64> {
        let is = |line: &Value| {
            line["scenario"] == self.scenario
                && line["regions"] == self.regions
                && line["way"] == strategy
        };
        let mut rows = lines.iter().rev().filter_map(|line| serde_json::from_str(line).ok());
        let calls = rows.find(is).and_then(|line: Value| line["calls_p50_ns"].as_u64());
        let calls = calls
            .with_context(|| format!("memslots has no figures for {strategy} of {}", self.what))?;
        Ok(calls as f64 / self.regions as f64)
    }
}

impl Counted {
    fn limit(&self) -> f64 {
        match self.work.limit {
            Limit::Instructions(limit) => limit,
            Limit::Vanilla(times) => times * self.vanilla,
        }
    }

    pub(super) fn reached(&self) -> bool {
        self.batch <= self.limit()
    }

    /// As [`HEADER`] names them.
    pub(super) fn cells(&self) -> Vec<String> {
        let verdict = if self.reached() { "yes" } else { "NO" };
        vec![
            self.work.what.to_owned(),
            format!("{:.0}", self.vanilla),
            format!("{:.0}", self.single),
            format!("{:.0}", self.batch),
            format!("{:.0}", self.limit()),
            verdict.to_owned(),
        ]
    }
}

pub(super) const HEADER: [&str; 6] =
    ["work", "single call, vanilla", "single call", "batch ioctl", "wanted at most", "reached"];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn line(scenario: &str, regions: u64, strategy: &str, calls: u64) -> String {
        format!(
            "{{\"scenario\":\"{scenario}\",\"regions\":{regions},\"way\":\"{strategy}\",\
             \"calls_p50_ns\":{calls}}}"
        )
    }

    #[test]
    fn instructions_are_a_slot() {
        let lines = ["# x".to_owned(), line("sparse", 9000, "raw-batch", 27_000_000)];
        assert!((ALL[0].found(&lines, "raw-batch").unwrap() - 3000.0).abs() < 1e-9);
        let e = ALL[0].found(&lines, "per-region").unwrap_err().to_string();
        assert!(e.contains("per-region of create 9000"), "{e}");
    }

    #[test]
    fn a_limit_may_be_that_of_the_kernel_without() {
        let counted = |work: usize, batch: f64| Counted {
            work: &ALL[work],
            vanilla: 14_000.0,
            single: 10_000.0,
            batch,
        };
        assert!(counted(0, 3000.0).reached() && !counted(0, 3001.0).reached());
        assert!(counted(1, 14_000.0).reached() && !counted(1, 14_001.0).reached());
        assert_eq!(counted(1, 10_728.0).cells()[3..], ["10728", "14000", "yes"]);
    }

    #[test]
    fn work_is_chosen_by_parts_of_its_name() {
        assert_eq!(work(&["instructions".to_owned()]).len(), ALL.len());
        assert_eq!(work(&["one".to_owned()]).len(), 1);
    }
}
