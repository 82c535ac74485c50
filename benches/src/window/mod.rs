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
use thiserror::Error;

use crate::rig::Busy;
use kvm_memslots_kit::guest::GuestError;

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

/// Why there is no comparison.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WindowsError {
    /// No VM.
    #[error("no VM: {0}")]
    Vm(io::Error),
    /// Host memory for the blobs.
    #[error("the blobs' memory: {0}")]
    Blobs(io::Error),
    /// `userfaultfd` is not to be had.
    #[error("userfaultfd: {0}; --sleep 0 does without")]
    Userfault(io::Error),
    /// The vCPUs.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A call that was refused.
    #[error("{way}, {what}: {error}")]
    Call {
        /// Which way.
        way: Way,
        /// What was being done.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
}
