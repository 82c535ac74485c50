//! `memslots bench`, and `memslots` alone.

use clap::Args;

use super::shown::{About, OutputArgs};
use super::{Failure, counter, need_kvm};
use crate::bench::{self, Bench, Sizes};
use crate::compare::ways;
use crate::note::note;
use crate::rig::{Busy, Target};
use crate::scenario::Workload;
use crate::strategy::Strategy;
use kvm_memslots_kit::machine::open_kvm;

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// Scenarios to run [default: all that stand for something a VMM does].
    #[arg(value_enum)]
    scenario: Vec<Workload>,
    /// Size of each scenario; several numbers for several comparisons [default:
    /// each one's own; with --html also a tenth and a hundredth of it].
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=Workload::MOST_REGIONS as i64))]
    regions: Vec<u32>,
    /// Strategies to compare [default: per-region,shim, and batch where the
    /// kernel has it].
    #[arg(long, value_enum, value_name = "A,B", value_delimiter = ',')]
    strategy: Vec<Strategy>,
    /// Busy vCPUs meanwhile; several numbers for several comparisons
    /// [default: 0,1].
    #[arg(long, value_name = "N", value_delimiter = ',')]
    vcpus: Vec<usize>,
    /// What keeps the vCPUs busy.
    #[arg(long, value_enum, default_value_t = Busy::Fault)]
    busy: Busy,
    /// Leave the thread that makes the calls to the scheduler, as a VMM does,
    /// instead of keeping it on one CPU: slower and noisier grace periods.
    #[arg(long)]
    no_pin: bool,
    /// Runs that are measured; the median counts.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Who carries the changes out [default: kvm, or the model of it where
    /// there is no /dev/kvm].
    #[arg(long, value_enum)]
    executor: Option<Target>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn bench(args: &BenchArgs) -> Result<(), Failure> {
    let bench = args.bench()?;
    if bench.target == Target::Kvm {
        need_kvm(&bench.vcpus)?;
    }
    let output = args.output.prepare()?;
    let about = About {
        model: bench.target == Target::Model,
        pin: !args.no_pin,
        calls: counter(bench.target),
        ..About::of("What KVM memslot changes cost", &bench::COLUMNS, args.runs)
    };
    output.compare(about, |session| bench.run(session))
}

impl BenchArgs {
    fn bench(&self) -> Result<Bench, Failure> {
        let target = self.target()?;
        let asked = self.scenario.clone();
        Ok(Bench {
            workloads: if asked.is_empty() { Workload::USUAL.to_vec() } else { asked },
            sizes: match &self.regions[..] {
                [] if self.output.has_page() => Sizes::Swept,
                [] => Sizes::Default,
                given => Sizes::Given(given.iter().map(|size| *size as usize).collect()),
            },
            strategies: self.strategies(target)?,
            vcpus: match (&self.vcpus[..], target) {
                ([], Target::Kvm) => vec![0, 1],
                ([], Target::Model) => vec![0],
                (given, _) => given.to_vec(),
            },
            busy: self.busy,
            target,
        })
    }

    fn target(&self) -> Result<Target, Failure> {
        match (self.executor, open_kvm()) {
            (Some(Target::Kvm), Err(why)) => {
                Err(Failure::Usage(format!("this needs KVM: {why}; --executor model needs none")))
            }
            (None, Err(why)) => {
                note(format_args!(
                    "memslots: {why}; running on the model of KVM, where no time is real"
                ));
                Ok(Target::Model)
            }
            (Some(Target::Model), _) => Ok(Target::Model),
            (_, Ok(_)) => Ok(Target::Kvm),
        }
    }

    fn strategies(&self, target: Target) -> Result<Vec<Strategy>, Failure> {
        let has_batch = target.limits()?.batch.is_some();
        let mut strategies = self.strategy.clone();
        if strategies.is_empty() {
            strategies = Strategy::USUAL.to_vec();
            strategies.retain(|strategy| has_batch || !strategy.needs_batch());
            // What that scenario is there to show.
            let has_guest = self.scenario.iter().any(|workload| workload.has_guest());
            strategies.extend(has_guest.then_some(Strategy::Deferred));
        } else if let (Some(strategy), false) =
            (strategies.iter().find(|strategy| strategy.needs_batch()), has_batch)
        {
            note(format_args!(
                "memslots: this kernel has no KVM_SET_USER_MEMORY_REGIONS, so {strategy} is \
                 skipped; --executor model shows what it would save"
            ));
        }
        Ok(ways(&strategies))
    }
}
