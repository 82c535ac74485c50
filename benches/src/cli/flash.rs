//! `memslots flash`.

use clap::Args;

use super::shown::{About, OutputArgs};
use super::{Failure, counter, need_kvm};
use crate::compare::ways;
use crate::flash::{self, Way};
use crate::rig::{Busy, Target, Vcpus};

#[derive(Debug, Args)]
pub(super) struct FlashArgs {
    /// Command cycles: a word is programmed, its status polled, two words are
    /// read.
    #[arg(long, value_name = "N", default_value_t = 6000, value_parser = clap::value_parser!(u32).range(1..))]
    cycles: u32,
    /// Busy vCPUs meanwhile; several numbers for several comparisons.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [0, 1])]
    vcpus: Vec<usize>,
    /// What keeps the vCPUs busy.
    #[arg(long, value_enum, default_value_t = Busy::Fault)]
    busy: Busy,
    /// Ways to compare [default: all].
    #[arg(long, value_enum, value_name = "A,B", value_delimiter = ',')]
    way: Vec<Way>,
    /// Runs that are measured; the median counts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn flash(args: &FlashArgs) -> Result<(), Failure> {
    need_kvm(&args.vcpus)?;
    let output = args.output.prepare()?;
    let about = About {
        pin: false,
        calls: counter(Target::Kvm),
        ..About::of("What a guest that programs flash costs", &flash::COLUMNS, args.runs)
    };
    output.compare(about, |session| {
        args.vcpus.iter().try_for_each(|count| {
            let vcpus = Vcpus { count: *count, busy: args.busy };
            flash::compare(&ways(&args.way), args.cycles as usize, vcpus, session)
        })?;
        Ok::<_, anyhow::Error>(())
    })
}
