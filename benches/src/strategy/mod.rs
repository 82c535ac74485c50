//! Ways to make the changes of a scenario.

mod bells;
mod enabled;
mod per_region;
mod sets;

pub use crate::spent::Spent;
pub use bells::Bells;
pub use enabled::Enabled;
pub use per_region::PerRegion;
pub use sets::Sets;

use anyhow::{Error, Result, anyhow};
use kvm_memslots::Errno;

use crate::scenario::{Change, Step};
use crate::way::shown_by_name;

/// A way to make changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum Strategy {
    /// What VMMs do today: one ioctl a region.
    PerRegion,
    /// `kvm-memslots` on the kernel as it is: one set of changes a step,
    /// carried out in single calls.
    Shim,
    /// `kvm-memslots` on a kernel with the batch ioctl: one set of changes a
    /// step, one call each.
    Batch,
    /// The calls of `per-region`, those of a step in one call of the batch
    /// ioctl: what of `batch` is the kernel's.
    RawBatch,
    /// As `shim`, with regions that are mapped once the guest's accesses make
    /// that worth it: for scenarios that have a guest.
    Deferred,
}

impl Strategy {
    /// Those that make the changes of a scenario whatever a guest does.
    pub const GUESTLESS: [Self; 4] = [Self::PerRegion, Self::Shim, Self::Batch, Self::RawBatch];

    /// What a VMM has to choose between: compared where nothing else is asked
    /// for.
    pub const USUAL: [Self; 3] = [Self::PerRegion, Self::Shim, Self::Batch];

    /// Whether it takes a kernel with the batch ioctl.
    #[must_use]
    pub const fn needs_batch(self) -> bool {
        matches!(self, Self::Batch | Self::RawBatch)
    }

    /// Whether it makes its changes through `kvm-memslots`.
    #[must_use]
    pub const fn has_library(self) -> bool {
        matches!(self, Self::Shim | Self::Batch | Self::Deferred)
    }
}

shown_by_name!(Strategy);

/// Makes the changes of a scenario, step by step.
pub trait Apply {
    /// Makes one step.
    ///
    /// # Errors
    /// What was refused; what of the step has been made is not said.
    fn apply(&mut self, step: &Step) -> Result<Spent>;
}

/// KVM refused `call` of what is at `gpa`.
fn refused(call: &str, gpa: u64, errno: Errno) -> Error {
    anyhow!("KVM refused {call} of GPA {gpa:#x}: {errno}")
}

/// The scenario names a region that is not there.
fn no_such_region(change: &Change) -> Error {
    anyhow!("the scenario is wrong: {change:?}")
}
