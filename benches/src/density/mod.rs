//! `memslots density`: what assigning irqfds costs when many VMs are up.
//!
//! On a kernel and architecture with interrupt bypass, assigning an irqfd takes
//! a mutex that all VMs share, and looks at all irqfds of the host (kernel bug
//! 217379). Background VMs provide these; then several VMs at a time, each in a
//! process of its own, get an interrupt controller and their irqfds.

mod background;
mod vm;
mod worker;

pub use worker::worker;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum as _};
use kvm_memslots::backend::EventCalls;

use crate::compare::{Lap, Session, Shape, Stop, Taken, Watch};
use crate::note::note;
use crate::report::Column;
use background::Background;
use vm::Machine;
use worker::Measured;

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
}

/// Whether irqfds ask for no bypass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Flag {
    /// They don't.
    #[value(name = "-")]
    None,
    /// `KVM_IRQFD_FLAG_NO_IRQBYPASS`.
    #[value(name = "NO_IRQBYPASS")]
    NoBypass,
}

/// The columns of the table.
pub const COLUMNS: [Column; 10] = [
    Column::Size("background VMs"),
    Column::With("VMs x irqfds", |row| format!("{} x {}", row.more["vms"], row.more["irqfds"])),
    Column::Way("flag"),
    Column::SaidTime("KVM_IRQFD p50", "irqfd_p50_ns"),
    Column::SaidTime("p99", "irqfd_p99_ns"),
    Column::SaidTime("max", "irqfd_max_ns"),
    Column::Time("a VM's irqfds"),
    Column::SaidTime("max", "vm_max_ns"),
    Column::SaidTime("create VM p50", "create_p50_ns"),
    Column::Ratio("ratio", "-"),
];

/// Measures. The time of a run is that of a VM's irqfds, mean over the VMs.
///
/// # Errors
/// What is not to be had.
pub fn density(args: &Density, session: &mut Session<'_>) -> Result<()> {
    let has_flag = Machine::new()?.events.limits().no_irqbypass;
    if args.no_irqbypass && !has_flag {
        bail!("--no-irqbypass: this kernel has no KVM_IRQFD_FLAG_NO_IRQBYPASS");
    }
    let flags = if args.no_irqbypass { &[Flag::NoBypass] } else { Flag::value_variants() };
    let mut sizes = args.background.clone();
    sizes.sort_unstable();
    sizes.dedup();
    let mut background = Background::new(args.irqfds);
    background.make_room(sizes.last().copied().unwrap_or(0))?;
    for size in sizes {
        if let Err(why) = background.grow(size) {
            note(format_args!(
                "memslots: only {} of {size} background VMs fit: {why:#}",
                background.len()
            ));
        }
        let shape = shape(args, background.len());
        let run = |flag: Flag, _: &mut Watch<'_>| {
            if flag == Flag::NoBypass && !has_flag {
                let why = "this kernel has no KVM_IRQFD_FLAG_NO_IRQBYPASS";
                return Err(Stop::Skip(why.to_owned()));
            }
            Ok(vec![taken(&worker::measure(args.vms, args.irqfds, flag)?)])
        };
        session.compare(&[shape], flags, &[Flag::None], run, |row| {
            row.more.insert("no_irqbypass".to_owned(), (row.way != "-").into());
            row.more.insert("samples".to_owned(), row.pools.get("irqfd").map(Vec::len).into());
            row.summarize(&["irqfd", "vm", "create"]);
        })?;
        if background.len() < size {
            break;
        }
    }
    Ok(())
}

fn shape(args: &Density, background: usize) -> Shape {
    Shape {
        what: format!("{} VMs at a time, {} irqfds each", args.vms, args.irqfds),
        size: background as u64,
        unit: "background VMs",
        more: vec![
            ("background", background.into()),
            ("vms", args.vms.into()),
            ("irqfds", args.irqfds.into()),
        ],
    }
}

fn taken(vms: &[Measured]) -> Taken {
    let sums: Vec<u64> = vms.iter().map(|vm| vm.irqfd_ns.iter().sum()).collect();
    let irqfds: Vec<u64> = vms.iter().flat_map(|vm| &vm.irqfd_ns).copied().collect();
    Taken {
        lap: Lap::of_nanos(sums.iter().sum::<u64>() / (sums.len() as u64).max(1)),
        ioctls: Some(irqfds.len() as u64),
        pools: vec![
            ("irqfd", irqfds),
            ("vm", sums),
            ("create", vms.iter().map(|vm| vm.create_ns).collect()),
        ],
        ..Taken::default()
    }
}
