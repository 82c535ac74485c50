//! Runs scenarios with strategies side by side.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::grace::GraceCounter;
use crate::pin::Pinned;
use crate::rig::{Busy, Rig, RunError, Target, Vcpus};
use crate::scenario::{Scenario, Workload};
use crate::strategy::{Spent, Strategy};

/// What to run.
#[derive(Debug, Clone)]
pub struct Bench {
    /// The scenarios.
    pub workloads: Vec<Workload>,
    /// Their sizes, one comparison each.
    pub sizes: Sizes,
    /// The strategies.
    pub strategies: Vec<Strategy>,
    /// How many busy vCPUs, one comparison each.
    pub vcpus: Vec<usize>,
    /// What keeps them busy.
    pub busy: Busy,
    /// Whether the thread that makes the calls is kept on one CPU, which takes
    /// the scheduler out of the comparison.
    pub pin: bool,
    /// Runs that are measured, beside the one that warms up and counts.
    pub runs: usize,
    /// Who carries the changes out.
    pub target: Target,
}

/// How large scenarios are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sizes {
    /// Each one's own default.
    Default,
    /// A hundredth and a tenth of it, and all of it: a line can be drawn.
    Swept,
    /// These numbers of regions.
    Given(Vec<usize>),
}

impl Sizes {
    fn of(&self, workload: Workload, vcpus: usize) -> Vec<usize> {
        let default = workload.default_regions(vcpus > 0);
        match self {
            Self::Default => vec![default],
            Self::Swept => {
                let mut sizes = vec![default.div_ceil(100), default.div_ceil(10), default];
                sizes.dedup();
                sizes
            }
            Self::Given(sizes) => sizes.clone(),
        }
    }
}

/// Who counted grace periods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CountedBy {
    /// The kernel, while the changes were made.
    Kernel,
    /// KVM's rules: what the calls that were made wait for.
    Plan,
}

impl fmt::Display for CountedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kernel => "counted",
            Self::Plan => "planned",
        })
    }
}

/// One scenario with one strategy.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// [`Workload::name`].
    pub scenario: &'static str,
    /// [`Strategy::name`].
    pub strategy: &'static str,
    /// `kvm` or `model`.
    pub executor: String,
    /// [`Scenario::regions`].
    pub regions: usize,
    /// Busy vCPUs beside it.
    pub vcpus: usize,
    /// What they did: [`Busy::name`]; `None` without any.
    pub busy: Option<&'static str>,
    /// Calls that changed memslots.
    pub ioctls: Option<u64>,
    /// Grace periods waited for.
    pub grace_periods: Option<u64>,
    /// Who counted them.
    pub grace_periods_by: CountedBy,
    /// Grace periods by KVM's rules, whoever counted.
    pub grace_periods_planned: Option<u64>,
    /// How often vCPUs were paused.
    pub pauses: Option<u64>,
    /// Median over the runs, in nanoseconds: all steps of the scenario.
    pub wall_ns: Option<u64>,
    /// The fastest run.
    pub wall_ns_min: Option<u64>,
    /// The slowest run.
    pub wall_ns_max: Option<u64>,
    /// All runs, in nanoseconds, in the order in which they were made.
    pub walls_ns: Vec<u64>,
    /// What of that is in the calls: median over the runs.
    pub calls_ns: Option<u64>,
    /// What of that is the library's own, outside of the calls: median over the
    /// runs. `None` where there is no library.
    pub own_ns: Option<u64>,
    /// Whether the thread that makes the calls was kept on one CPU.
    pub pinned: bool,
    /// Runs measured.
    pub runs: usize,
    /// The median of `per-region` in the same comparison over this one: 2 is
    /// twice as fast. `None` where `per-region` was not run.
    pub ratio: Option<f64>,
    /// Why there are no numbers.
    pub skipped: Option<String>,
}

/// One strategy of a comparison, while it is made.
#[derive(Debug)]
struct Contender {
    strategy: Strategy,
    walls: Vec<Duration>,
    calls: Vec<Duration>,
    owns: Vec<Duration>,
    /// Whether the last run was measured on one CPU.
    pinned: bool,
    spent: Spent,
    counted: Option<u64>,
    /// Why it is out.
    skipped: Option<String>,
}

impl Bench {
    /// How many runs there are, warm-ups included.
    #[must_use]
    pub fn length(&self) -> usize {
        self.comparisons().count() * self.strategies.len() * (self.runs + 1)
    }

    fn comparisons(&self) -> impl Iterator<Item = (Workload, usize, usize)> + '_ {
        let pairs = self
            .vcpus
            .iter()
            .flat_map(|vcpus| self.workloads.iter().map(move |workload| (*workload, *vcpus)));
        pairs.flat_map(|(workload, vcpus)| {
            let sizes = self.sizes.of(workload, vcpus);
            sizes.into_iter().map(move |regions| (workload, vcpus, regions))
        })
    }

    /// Runs everything. `counter` counts grace periods in the warm-up runs, so
    /// that nothing is traced while time is measured; `on_run` is told before
    /// each run what it is, `on_rows` gets each comparison when it is done.
    ///
    /// # Errors
    /// [`RunError`] where something failed; what can't be done here is a row
    /// that says so.
    pub fn run(
        &self,
        mut counter: Option<&mut GraceCounter>,
        mut on_run: impl FnMut(Workload, Strategy, usize),
        mut on_rows: impl FnMut(Vec<Row>),
    ) -> Result<(), RunError> {
        for (workload, vcpus, regions) in self.comparisons() {
            let scenario = workload.generate(regions);
            let on_run = |strategy| on_run(workload, strategy, vcpus);
            let contenders = self.compare(&scenario, vcpus, counter.as_deref_mut(), on_run)?;
            on_rows(self.rows(&scenario, vcpus, &contenders));
        }
        Ok(())
    }

    /// All strategies in turn, round by round, so that what else the machine
    /// does hits all of them alike; every other round backwards.
    fn compare(
        &self,
        scenario: &Scenario,
        vcpus: usize,
        mut counter: Option<&mut GraceCounter>,
        mut on_run: impl FnMut(Strategy),
    ) -> Result<Vec<Contender>, RunError> {
        let vcpus = Vcpus { count: vcpus, busy: self.busy };
        let mut contenders: Vec<_> =
            self.strategies.iter().map(|strategy| Contender::new(*strategy)).collect();
        for round in 0..=self.runs {
            if round > 0 {
                contenders.reverse();
            }
            for contender in &mut contenders {
                on_run(contender.strategy);
                if contender.skipped.is_some() {
                    continue;
                }
                let ran = if round == 0 {
                    contender.warm_up(scenario, self.target, vcpus, counter.as_deref_mut())
                } else {
                    contender.measure(scenario, self.target, vcpus, self.pin)
                };
                match ran {
                    Err(error) if error.is_limit() => contender.skipped = Some(error.to_string()),
                    ran => ran?,
                }
            }
        }
        contenders.sort_by_key(|contender| contender.strategy);
        Ok(contenders)
    }

    fn rows(&self, scenario: &Scenario, vcpus: usize, contenders: &[Contender]) -> Vec<Row> {
        let baseline = contenders
            .iter()
            .find(|contender| contender.strategy == Strategy::PerRegion)
            .and_then(Contender::median);
        let row = |contender: &Contender| {
            let ran = contender.skipped.is_none();
            let wall = contender.median();
            let ratio = baseline.zip(wall).filter(|(_, wall)| !wall.is_zero());
            Row {
                scenario: scenario.workload.name(),
                strategy: contender.strategy.name(),
                executor: self.target.to_string(),
                regions: scenario.regions,
                vcpus,
                busy: (vcpus > 0).then(|| self.busy.name()),
                ioctls: ran.then_some(contender.spent.ioctls),
                grace_periods: ran
                    .then_some(contender.counted.unwrap_or(contender.spent.grace_periods)),
                grace_periods_by: match contender.counted {
                    Some(_) => CountedBy::Kernel,
                    None => CountedBy::Plan,
                },
                grace_periods_planned: ran.then_some(contender.spent.grace_periods),
                pauses: ran.then_some(contender.spent.pauses),
                wall_ns: wall.map(nanos),
                wall_ns_min: contender.walls.iter().min().copied().map(nanos),
                wall_ns_max: contender.walls.iter().max().copied().map(nanos),
                walls_ns: contender.walls.iter().copied().map(nanos).collect(),
                calls_ns: median(&contender.calls).map(nanos),
                own_ns: median(&contender.owns).map(nanos),
                pinned: contender.pinned,
                runs: contender.walls.len(),
                ratio: ratio.map(|(baseline, wall)| baseline.as_secs_f64() / wall.as_secs_f64()),
                skipped: contender.skipped.clone(),
            }
        };
        contenders.iter().map(row).collect()
    }
}

impl Contender {
    const fn new(strategy: Strategy) -> Self {
        let spent = Spent { ioctls: 0, grace_periods: 0, pauses: 0, in_calls: Duration::ZERO };
        Self {
            strategy,
            walls: Vec::new(),
            calls: Vec::new(),
            owns: Vec::new(),
            pinned: false,
            spent,
            counted: None,
            skipped: None,
        }
    }

    /// A run whose time does not count, but whose calls and grace periods do.
    fn warm_up(
        &mut self,
        scenario: &Scenario,
        target: Target,
        vcpus: Vcpus,
        counter: Option<&mut GraceCounter>,
    ) -> Result<(), RunError> {
        let mut rig = Rig::new(scenario, self.strategy, target, vcpus)?;
        if let Some(counter) = counter.filter(|_| target == Target::Kvm) {
            let apply = || rig.apply(&scenario.steps);
            let (spent, counted) = counter.count(apply).map_err(RunError::Count)?;
            self.spent = spent?;
            self.counted = Some(counted);
        } else {
            self.spent = rig.apply(&scenario.steps)?;
        }
        rig.finish()
    }

    fn measure(
        &mut self,
        scenario: &Scenario,
        target: Target,
        vcpus: Vcpus,
        pin: bool,
    ) -> Result<(), RunError> {
        let mut rig = Rig::new(scenario, self.strategy, target, vcpus)?;
        // The vCPUs run already, wherever they like.
        let pinned = pin.then(Pinned::to_first_cpu).flatten();
        let (spent, wall) = rig.time(&scenario.steps)?;
        self.pinned = pinned.is_some();
        drop(pinned);
        rig.finish()?;
        self.spent = spent;
        self.walls.push(wall);
        self.calls.push(spent.in_calls);
        if self.strategy.has_library() {
            self.owns.push(wall.saturating_sub(spent.in_calls));
        }
        Ok(())
    }

    fn median(&self) -> Option<Duration> {
        median(&self.walls)
    }
}

/// The median; of an even number, the mean of the two in the middle.
#[must_use]
pub fn median(durations: &[Duration]) -> Option<Duration> {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted.get((sorted.len() - 1) / 2)?;
    Some((*lower + *upper) / 2)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let ms = Duration::from_millis;
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[ms(7)]), Some(ms(7)));
        assert_eq!(median(&[ms(9), ms(1), ms(5)]), Some(ms(5)));
        assert_eq!(median(&[ms(9), ms(1), ms(5), ms(3)]), Some(ms(4)));
    }
}
