//! `memslots bench`: scenarios with strategies side by side.

use anyhow::Result;

use crate::compare::{Session, Shape, Stop, Taken, Watch, beside};
use crate::limit::Limit;
use crate::report::Column;
use crate::rig::{Busy, Rig, Target, Vcpus};
use crate::scenario::{Scenario, Workload};
use crate::strategy::Strategy;

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

/// The columns of the table.
pub const COLUMNS: [Column; 9] = [
    Column::Said("scenario", "scenario"),
    Column::Size("regions"),
    Column::Said("vCPUs", "vcpus"),
    Column::Way("strategy"),
    Column::Said("executor", "executor"),
    Column::Ioctls,
    Column::GracePeriods,
    Column::Time("time"),
    Column::Ratio("ratio", "per-region"),
];

impl Bench {
    /// Runs everything.
    ///
    /// # Errors
    /// What failed; what can't be done here is a row
    /// that says so.
    pub fn run(&self, session: &mut Session<'_>) -> Result<()> {
        let mut strategies = self.strategies.clone();
        strategies.sort_unstable();
        for vcpus in &self.vcpus {
            for workload in &self.workloads {
                let mut measured = Vec::new();
                for regions in self.sizes.of(*workload, *vcpus) {
                    let scenario = workload.generate(regions);
                    // Whatever was asked for, some have a size of their own.
                    if measured.contains(&scenario.regions) {
                        continue;
                    }
                    measured.push(scenario.regions);
                    let shape = self.shape(&scenario, *vcpus);
                    let vcpus = Vcpus { count: *vcpus, busy: self.busy };
                    session.compare(
                        &[shape],
                        &strategies,
                        &[Strategy::PerRegion],
                        |way, watch| self.run_one(&scenario, way, vcpus, watch),
                        |row| row.summarize(&["calls", "own"]),
                    )?;
                }
            }
        }
        Ok(())
    }

    fn shape(&self, scenario: &Scenario, vcpus: usize) -> Shape {
        let name = scenario.workload.to_string();
        Shape {
            what: format!("{name}, {}", beside(vcpus, self.busy)),
            size: scenario.regions as u64,
            unit: "regions",
            more: vec![
                ("scenario", name.into()),
                ("regions", scenario.regions.into()),
                ("vcpus", vcpus.into()),
                ("busy", (vcpus > 0).then(|| self.busy.to_string()).into()),
                ("executor", self.target.to_string().into()),
            ],
        }
    }

    fn run_one(
        &self,
        scenario: &Scenario,
        strategy: Strategy,
        vcpus: Vcpus,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<Taken>, Stop<anyhow::Error>> {
        let mut run = || {
            let mut rig = Rig::new(scenario, strategy, self.target, vcpus)?;
            let (spent, lap) = watch.lap(|| rig.apply(&scenario.steps));
            rig.finish()?;
            Ok((spent?, lap))
        };
        let (spent, lap) = run().map_err(|error: anyhow::Error| {
            if Limit::is(&error) { Stop::Skip(format!("{error:#}")) } else { Stop::Fail(error) }
        })?;
        let in_calls = spent.in_calls.as_nanos() as u64;
        let own = strategy.has_library().then(|| lap.wall.saturating_sub(spent.in_calls));
        Ok(vec![Taken {
            more: vec![("pauses", spent.pauses.into()), ("pinned", lap.pinned.into())],
            pools: vec![
                ("calls", vec![in_calls]),
                ("own", own.iter().map(|own| own.as_nanos() as u64).collect()),
            ],
            ..spent.taken(lap)
        }])
    }
}
