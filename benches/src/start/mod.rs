//! `memslots bench start`: a VM set up in KVM, from `KVM_CREATE_VM` to where its
//! vCPUs could run, in the order and with the calls of VMMs and with the library;
//! one VM, and many at once.

mod run;
mod steps;
mod ways;
mod worker;

pub use run::{COLUMNS, PROFILE, start};
pub(crate) use steps::{Parts, Step};
pub use ways::Way;
pub use worker::{Worker, worker};

use clap::Args;

/// What a VM has.
#[derive(Debug, Clone, Copy, Args)]
pub struct Shape {
    /// Devices.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub devices: u32,
    /// BARs of each that are memory.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=6))]
    pub bars: u32,
    /// MSI-X vectors of each.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(0..=32))]
    pub vectors: u32,
    /// Doorbells (ioeventfds) of each.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=32))]
    pub doorbells: u32,
    /// vCPUs, which are created and do not run.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub vcpus: u32,
}

/// What to measure.
#[derive(Debug, Clone, Args)]
pub struct Start {
    /// What each VM has.
    #[command(flatten)]
    pub shape: Shape,
    /// VMs that are set up at once, each in a process of its own; several
    /// numbers for several comparisons.
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,20,50", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub at_once: Vec<u32>,
    /// Ways to compare [default: all].
    #[arg(long, value_enum, value_name = "A,B", value_delimiter = ',')]
    pub way: Vec<Way>,
    /// Say where the time goes: in calls of which kind, and in none.
    #[arg(long)]
    pub profile: bool,
    /// Have the time of a process's first use of its code in it.
    #[arg(long)]
    pub cold: bool,
    /// How often: samples are those of all runs.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
}
