//! What a comparison found.

use kvm_memslots::Limits;
use serde::Serialize;

use super::{Contender, Replay, Strategy};
use crate::bench::{CountedBy, median};
use crate::trace::Trace;

/// One way of making the calls of a trace.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// [`Strategy::name`].
    pub strategy: &'static str,
    /// Calls in the trace; those that KVM refused then are not made again.
    pub traced: usize,
    /// Bursts that they were cut into.
    pub bursts: usize,
    /// Calls that changed memslots, flips not among them.
    pub calls: Option<u64>,
    /// Calls that only flipped the trap bit.
    pub flips: Option<u64>,
    /// Grace periods waited for.
    pub grace_periods: Option<u64>,
    /// Who counted them.
    pub grace_periods_by: CountedBy,
    /// Grace periods by KVM's rules, whoever counted.
    pub grace_periods_planned: Option<u64>,
    /// All calls back to back, and the library's own work between them: median
    /// over the runs, in nanoseconds.
    pub wall_ns: Option<u64>,
    /// The fastest run.
    pub wall_ns_min: Option<u64>,
    /// The slowest run.
    pub wall_ns_max: Option<u64>,
    /// All runs, in nanoseconds, in the order in which they were made.
    pub walls_ns: Vec<u64>,
    /// Runs measured.
    pub runs: usize,
    /// The median of `per-region` over this one.
    pub ratio: Option<f64>,
    /// What has to be said about the numbers.
    pub note: Option<&'static str>,
    /// Why there are none.
    pub skipped: Option<&'static str>,
}

pub(super) fn rows(
    replay: &Replay,
    trace: &Trace,
    bursts: usize,
    limits: &Limits,
    contenders: &[Contender],
) -> Vec<Row> {
    let of = |strategy| contenders.iter().find(|contender| contender.strategy == strategy);
    let wall = |contender: &Contender| median(&contender.walls);
    let baseline = of(Strategy::PerRegion).and_then(wall);
    let nanos = |duration: std::time::Duration| duration.as_nanos() as u64;
    let row = |strategy: &Strategy| {
        let ran = of(*strategy);
        let counted = ran.and_then(|ran| ran.counted);
        let planned = ran.map(|ran| ran.spent.grace_periods);
        let median = ran.and_then(wall);
        let walls = || ran.into_iter().flat_map(|ran| &ran.walls).copied();
        let ratio = baseline.zip(median).filter(|(_, wall)| !wall.is_zero());
        Row {
            strategy: strategy.name(),
            traced: trace.calls.len(),
            bursts,
            calls: ran.map(|ran| ran.spent.calls),
            flips: ran.map(|ran| ran.spent.flips),
            grace_periods: counted.or(planned),
            grace_periods_by: counted.map_or(CountedBy::Plan, |_| CountedBy::Kernel),
            grace_periods_planned: planned,
            wall_ns: median.map(nanos),
            wall_ns_min: walls().min().map(nanos),
            wall_ns_max: walls().max().map(nanos),
            walls_ns: walls().map(nanos).collect(),
            runs: walls().count(),
            ratio: ratio.map(|(baseline, wall)| baseline.as_secs_f64() / wall.as_secs_f64()),
            note: strategy.note(),
            skipped: strategy.lacks(limits),
        }
    };
    replay.strategies.iter().map(row).collect()
}
