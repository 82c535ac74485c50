//! `memslots bench window`: blobs that come and go while a guest runs, each in a
//! slot of its own, and in a window.

mod blobs;
mod guest;
mod run;
mod ways;

pub use guest::Guest;
pub use run::{COLUMNS, windows};
pub use ways::Way;

use std::io;

use clap::Args;
use kvm_memslots::window::{Window, WindowSpec};
use kvm_memslots::{Changes, Span, Vm};

use crate::rig::Busy;

/// What to measure.
#[derive(Debug, Clone, Args)]
pub struct Windows {
    /// Sizes of the blobs, in KiB.
    #[arg(long, value_name = "KIB,..", value_delimiter = ',', default_value = "4,64,1024,4096", value_parser = clap::value_parser!(u64).range(4..=1 << 20))]
    pub sizes: Vec<u64>,
    /// Blobs that are there at any time.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub live: u64,
    /// Busy vCPUs meanwhile; several numbers for several comparisons.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,4")]
    pub vcpus: Vec<usize>,
    /// What keeps the vCPUs busy.
    #[arg(long, value_enum, default_value_t = Busy::Fault)]
    pub busy: Busy,
    /// Also with one vCPU whose page faults each sleep so long in userfaultfd;
    /// 0 for without.
    #[arg(long, value_name = "MS", default_value_t = 100)]
    pub sleep: u64,
    /// Ways to compare [default: all].
    #[arg(long, value_enum, value_name = "A,B", value_delimiter = ',')]
    pub way: Vec<Way>,
    /// Blobs that are removed and placed in a run, at most.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub pairs: u32,
    /// Milliseconds for each run, at most.
    #[arg(long, value_name = "MS", default_value_t = 400, value_parser = clap::value_parser!(u64).range(1..))]
    pub time: u64,
    /// Runs that are measured; the median counts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
}

/// A window there, mapped.
pub(crate) fn map(vm: &Vm, span: Span) -> io::Result<Window> {
    let window = Window::new(WindowSpec::new(span)).map_err(io::Error::other)?;
    let mut changes = Changes::new();
    changes.map(window.region());
    vm.apply(changes).map(|_| window).map_err(io::Error::other)
}
