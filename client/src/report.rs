//! What a commit cost.

use std::fmt;
use std::time::Duration;

use crate::{Executor, Range};

/// What a commit cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CommitReport {
    /// System calls that changed memslots, as counted while they were made.
    pub ioctls: u64,
    /// SRCU grace periods that those calls wait for, by KVM's rules: one for a
    /// call that creates or changes flags, two for one that deletes or moves.
    pub grace_periods: u64,
    /// Regions that were put into a slot beside another one, so that they cost
    /// no call of their own.
    pub regions_merged: usize,
    /// Regions mapped in this transaction that cost nothing, as a slot already
    /// had just that memory there: their unmap and map cancelled.
    pub regions_cancelled: usize,
    /// Regions mapped in this transaction that got no slot yet, as they are
    /// deferrable.
    pub regions_deferred: usize,
    /// From the first call to the last.
    pub elapsed: Duration,
    /// How the calls were made.
    pub executor: Executor,
    /// `"kvm"`, or `"model"` where nothing of this really happened.
    pub backend: &'static str,
    /// Whether vCPUs were paused through the gate.
    pub vcpus_paused: bool,
    /// Slots in the address space afterwards.
    pub slots: usize,
}

impl fmt::Display for CommitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ioctls, {} grace periods, {} merged, {} cancelled, {:?} ({})",
            self.ioctls,
            self.grace_periods,
            self.regions_merged,
            self.regions_cancelled,
            self.elapsed,
            self.backend
        )
    }
}

/// What a commit would cost.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preview {
    /// System calls that would change memslots.
    pub ioctls: u64,
    /// Grace periods those calls would wait for.
    pub grace_periods: u64,
    /// Guest pages that stay mapped, but would be unmapped for a moment
    /// between two calls. Empty where one batch ioctl does it all.
    pub holes: Vec<Range>,
    /// Slots in the address space afterwards.
    pub slots: usize,
}
