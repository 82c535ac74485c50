//! `memslots density`: what assigning irqfds costs when many VMs are up.
//!
//! On a kernel and architecture with interrupt bypass, assigning an irqfd takes
//! a mutex that all VMs share, and looks at all irqfds of the host (kernel bug
//! 217379). Background VMs provide these; then several VMs at a time, each in a
//! process of its own, get an interrupt controller and their irqfds.

mod background;
mod table;
mod vm;
mod worker;

pub use table::{Row, table};
pub use worker::worker;

use std::fmt;
use std::io;

use clap::Args;
use kvm_memslots::backend::EventCalls;

use crate::fleet::FleetError;
use background::Background;
use vm::Machine;

/// What to measure.
#[derive(Debug, Clone, Args)]
pub struct Density {
    /// Background VMs; several numbers for several measurements, in ascending
    /// order.
    #[arg(long, value_name = "B,..", value_delimiter = ',', default_value = "0,100")]
    pub background: Vec<usize>,
    /// VMs that are set up at a time, each in a process of its own.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub vms: u32,
    /// Irqfds of each VM, in the background and not.
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub irqfds: u32,
    /// How often: samples are those of all rounds.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Measure with `KVM_IRQFD_FLAG_NO_IRQBYPASS` only, not also without.
    #[arg(long)]
    pub no_irqbypass: bool,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub enum DensityError {
    /// A VM, or what belongs to one.
    #[error("{what}: {error}")]
    Vm {
        /// What was being done.
        what: &'static str,
        /// What came of it.
        error: io::Error,
    },
    /// Too few descriptors.
    #[error(
        "{vms} background VMs take {needed} file descriptors, a process may have {limit}: raise \
         the hard limit (ulimit -Hn, LimitNOFILE=), or ask for fewer with --background"
    )]
    Descriptors {
        /// How many VMs.
        vms: usize,
        /// What they need.
        needed: u64,
        /// `RLIMIT_NOFILE`, the hard one.
        limit: u64,
    },
    /// The processes with a VM each.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// `--no-irqbypass` on a kernel without.
    #[error("--no-irqbypass: this kernel has no KVM_IRQFD_FLAG_NO_IRQBYPASS")]
    NoFlag,
}

impl DensityError {
    fn vm(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Vm { what, error }
    }
}

/// Whether irqfds ask for no bypass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag(pub bool);

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "NO_IRQBYPASS" } else { "-" })
    }
}

/// Measures, and hands out each row as soon as there is one.
///
/// # Errors
/// [`DensityError`].
pub fn density(args: &Density, mut on_row: impl FnMut(Row)) -> Result<(), DensityError> {
    let has_flag = Machine::new()?.events.limits().no_irqbypass;
    let flags = match (args.no_irqbypass, has_flag) {
        (true, false) => return Err(DensityError::NoFlag),
        (true, true) => vec![Flag(true)],
        (false, true) => vec![Flag(false), Flag(true)],
        (false, false) => {
            eprintln!(
                "memslots: SKIPPED with NO_IRQBYPASS: this kernel has no KVM_IRQFD_FLAG_NO_IRQBYPASS"
            );
            vec![Flag(false)]
        }
    };
    let mut sizes = args.background.clone();
    sizes.sort_unstable();
    sizes.dedup();
    let mut background = Background::new(args.irqfds);
    background.make_room(sizes.last().copied().unwrap_or(0))?;
    for size in sizes {
        if let Err(why) = background.grow(size) {
            eprintln!("memslots: only {} of {size} background VMs fit: {why}", background.len());
        }
        for flag in &flags {
            let mut samples = table::Samples::default();
            for _ in 0..args.rounds {
                worker::measure(args.vms, args.irqfds, *flag, &mut samples)?;
            }
            on_row(samples.row(background.len(), args, *flag));
        }
        if background.len() < size {
            break;
        }
    }
    Ok(())
}
