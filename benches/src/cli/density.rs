//! `memslots density`.

use clap::Args;

use super::shown::{About, OutputArgs};
use super::{Failure, need_kvm};
use crate::density::{self, Density};

#[derive(Debug, Args)]
pub(super) struct DensityArgs {
    #[command(flatten)]
    density: Density,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn density(args: &DensityArgs) -> Result<(), Failure> {
    need_kvm(&[])?;
    let output = args.output.prepare()?;
    let about = About {
        pin: false,
        ..About::of(
            "What assigning irqfds costs beside other VMs",
            &density::COLUMNS,
            args.density.rounds,
        )
    };
    output.compare(about, |session| density::density(&args.density, session))
}
