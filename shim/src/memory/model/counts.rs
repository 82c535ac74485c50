//! What the model was asked.

use crate::fault;

/// A call, for counting and for failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// The ioctls that change one memslot.
    SetRegion,
    /// The batch ioctl, dry runs included.
    SetRegions,
    /// `KVM_GET_DIRTY_LOG`.
    GetDirtyLog,
    /// `KVM_CLEAR_DIRTY_LOG`.
    ClearDirtyLog,
}

/// A failure to come of a memslot call.
pub type Fault = fault::Fault<Call>;

/// What the model was asked, and what that would have cost on KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counts {
    /// Calls that change memslots, one region or a batch each, also those that
    /// were refused or changed nothing. Dry runs are not among them.
    pub ioctls: u64,
    /// Those of them that were refused.
    pub refused: u64,
    /// Batches that were dry runs.
    pub dry_runs: u64,
    /// SRCU grace periods that KVM would have waited for, those of a refused
    /// move among them.
    pub grace_periods: u64,
    /// `KVM_GET_DIRTY_LOG`, also where it was refused.
    pub get_dirty_log: u64,
    /// `KVM_CLEAR_DIRTY_LOG`, also where it was refused.
    pub clear_dirty_log: u64,
}
