//! One slot: what the VMM believes KVM has, and what KVM has.

use kvm_memslots::deferred::policy::Churn;
use serde::Serialize;

use super::region::Region;

/// What KVM has of a slot that the VMM has asked for at least once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    Mapped,
    Trapping,
    Nothing,
}

/// What was done for one slot.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct SlotCounts {
    /// Calls of the VMM's.
    pub(crate) asked: u64,
    /// Nanoseconds that the VMM waited for them.
    pub(crate) asked_ns: u64,
    /// Calls and flips of the trap bit that KVM got.
    pub(crate) calls: u64,
    /// Removals, and additions of what was removed.
    pub(crate) flips: u64,
    /// Times that it was deferred instead of added.
    pub(crate) deferred: u64,
    /// Exits served.
    pub(crate) exits: u64,
}

#[derive(Debug)]
pub(crate) struct Slot {
    /// As it was mapped last.
    pub(crate) region: Region,
    /// Whether it is there, as the VMM sees it.
    pub(super) wanted: bool,
    pub(super) held: Held,
    pub(super) churn: Churn<Region>,
    /// Whether it is in the list of those that churn.
    pub(super) listed: bool,
    pub(crate) counts: SlotCounts,
}

impl Slot {
    pub(super) const fn is_deferred(&self) -> bool {
        self.wanted && matches!(self.held, Held::Nothing)
    }

    const fn is_spare(&self) -> bool {
        !self.wanted && matches!(self.held, Held::Trapping)
    }

    /// Whether it churns.
    pub(crate) const fn churns(&self) -> bool {
        self.listed
    }

    /// What makes KVM's slot what the VMM believes it is.
    pub(super) fn repair(&self) -> Option<Repair> {
        if self.is_deferred() {
            Some(Repair::Map(self.region))
        } else if self.is_spare() {
            Some(Repair::Delete(self.region))
        } else {
            None
        }
    }
}

/// A call that makes KVM's slot what the VMM believes it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repair {
    /// Maps a slot that was deferred.
    Map(Region),
    /// Deletes a slot that traps only.
    Delete(Region),
}

impl Repair {
    /// What is to be asked of KVM.
    pub(crate) const fn call(&self) -> Region {
        match self {
            Self::Map(region) => *region,
            Self::Delete(region) => region.gone(),
        }
    }
}
