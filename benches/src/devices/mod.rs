//! `memslots bench devices`: devices with memory, ioeventfds and MSI-X vectors,
//! attached and detached, call by call as VMMs do it and with `Changes`.

mod board;
mod churn;
mod decode;
mod hotplug;
mod library;
mod rig;
mod run;
mod taken;
mod ways;

pub(crate) use board::{Board, Device as BoardDevice};
pub use run::devices;
pub use taken::{COLUMNS, PROFILE};
pub use ways::Way;
pub(crate) use ways::{Apply, ByHand, CallOrder, of_set};

use clap::Args;

use crate::rig::Busy;

/// Devices, and what each of them has.
#[derive(Debug, Clone, Copy, Args)]
pub struct Size {
    /// Devices.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub devices: u32,
    /// BARs of each that are memory.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=6))]
    pub bars: u32,
    /// Ioeventfds of each.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=64))]
    pub ioeventfds: u32,
    /// MSI-X vectors of each.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(0..=64))]
    pub vectors: u32,
    /// Leave a gap between BARs, so that none can share a slot.
    #[arg(long)]
    pub scattered: bool,
}

/// What to measure.
#[derive(Debug, Clone, Args)]
pub struct Devices {
    /// What they are.
    #[command(flatten)]
    pub size: Size,
    /// Ways to compare [default: all].
    #[arg(long, value_enum, value_name = "A,B", value_delimiter = ',')]
    pub way: Vec<Way>,
    /// Busy vCPUs meanwhile; several numbers for several comparisons.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "0,1")]
    pub vcpus: Vec<usize>,
    /// What keeps the vCPUs busy.
    #[arg(long, value_enum, default_value_t = Busy::Fault)]
    pub busy: Busy,
    /// Say where the time goes: in calls of which kind, and in none.
    #[arg(long, conflicts_with_all = ["hotplug", "decode"])]
    pub profile: bool,
    /// Runs that are measured; the median counts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// Instead: one device attached so many milliseconds after another one,
    /// without vCPUs.
    #[arg(long, value_name = "MS,..", value_delimiter = ',', num_args = 0.., default_missing_value = "0,2,5,20")]
    pub hotplug: Option<Vec<u64>>,
    /// Instead: a VM with so many vectors, 64 of which are masked and unmasked
    /// and one of which gets another message, without vCPUs.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "2048", value_parser = clap::value_parser!(u32).range(65..=4000), conflicts_with = "hotplug")]
    pub churn: Option<u32>,
    /// Instead: one BAR of each device, memory and doorbells, that the guest
    /// enables, switches off and on again, and moves, without vCPUs.
    #[arg(long, conflicts_with_all = ["hotplug", "churn"])]
    pub decode: bool,
}
