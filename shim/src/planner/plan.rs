//! What the planner gives out.

use crate::{Mapping, Range, Slot};
use kvm_memslots_uapi::MemFlags;

/// One memslot change: one single-region ioctl, or one entry of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Delete the slot: two grace periods (`kvm_set_memslot`: one for making it
    /// invalid, one for taking it out).
    Delete(Slot),
    /// The slot's memory appears at another guest address: two grace periods.
    Move {
        /// The slot as it is.
        from: Slot,
        /// Its new guest address.
        gpa: u64,
    },
    /// Only the flags change: one grace period, or none where nothing but
    /// [`MemFlags::TRAP`] does.
    SetFlags {
        /// The slot as it is.
        from: Slot,
        /// Its new flags.
        flags: MemFlags,
    },
    /// A new slot: one grace period.
    Create(Slot),
}

impl Op {
    /// The slot before the change, if there is one.
    #[must_use]
    pub const fn before(&self) -> Option<Slot> {
        match *self {
            Self::Delete(slot) => Some(slot),
            Self::Move { from, .. } | Self::SetFlags { from, .. } => Some(from),
            Self::Create(_) => None,
        }
    }

    /// The slot after the change, if there is one.
    #[must_use]
    pub fn after(&self) -> Option<Slot> {
        match *self {
            Self::Delete(_) => None,
            Self::Move { from, gpa } => Some(Slot { mapping: from.mapping.moved_to(gpa), ..from }),
            Self::SetFlags { from, flags } => {
                Some(Slot { mapping: Mapping { flags, ..from.mapping }, ..from })
            }
            Self::Create(slot) => Some(slot),
        }
    }

    /// The change that takes this one back.
    #[must_use]
    pub fn inverse(&self) -> Self {
        match *self {
            Self::Delete(slot) => Self::Create(slot),
            Self::Create(slot) => Self::Delete(slot),
            Self::Move { from, gpa } => Self::Move {
                from: Slot { mapping: from.mapping.moved_to(gpa), ..from },
                gpa: from.mapping.range.gpa,
            },
            Self::SetFlags { from, flags } => Self::SetFlags {
                from: Slot { mapping: Mapping { flags, ..from.mapping }, ..from },
                flags: from.mapping.flags,
            },
        }
    }

    /// Whether the change takes something away first, which costs the second
    /// grace period.
    #[must_use]
    pub const fn invalidates(&self) -> bool {
        matches!(self, Self::Delete(_) | Self::Move { .. })
    }

    /// How many grace periods the single-region ioctl waits for.
    #[must_use]
    pub fn grace_periods(&self) -> u64 {
        match self {
            Self::Delete(_) | Self::Move { .. } => 2,
            Self::SetFlags { from, flags } => {
                u64::from(from.mapping.flags ^ *flags != MemFlags::TRAP)
            }
            Self::Create(_) => 1,
        }
    }

    /// The id of the slot that changes.
    #[must_use]
    pub const fn slot_id(&self) -> u16 {
        match self {
            Self::Delete(slot) | Self::Create(slot) => slot.id,
            Self::Move { from, .. } | Self::SetFlags { from, .. } => from.id,
        }
    }

    /// The guest addresses the change is about: those that get mapped, or
    /// those that were, for a delete.
    #[must_use]
    pub fn range(&self) -> Range {
        match self {
            Self::Delete(slot) | Self::Create(slot) => slot.mapping.range,
            Self::Move { from, gpa } => Range::new(*gpa, from.mapping.range.size),
            Self::SetFlags { from, .. } => from.mapping.range,
        }
    }
}

/// What a plan costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// System calls that change memslots.
    pub ioctls: u64,
    /// SRCU grace periods that those calls wait for.
    pub grace_periods: u64,
}

/// Dirty bits that a delete would lose: these pages stay mapped to the same
/// host pages, in slots that are logged before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carry {
    /// The slot that goes.
    pub slot: Slot,
    /// The pages that stay, in bytes.
    pub range: Range,
}

/// How to get from the live slots to the wanted memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The changes, in an order in which KVM accepts each one.
    pub ops: Vec<Op>,
    /// Guest pages that are mapped before and after, but not all the time
    /// between if the changes are made one by one. Sorted, disjoint.
    pub holes: Vec<Range>,
    /// Dirty bits that have to be saved if the changes are made one by one,
    /// grouped by slot.
    pub carries: Vec<Carry>,
    /// Slots that the plan leaves as they are.
    pub kept: usize,
    /// How many extents found a place in a created slot beside another one:
    /// calls that a slot for each would have cost in addition.
    pub merged: usize,
}

impl Plan {
    /// The cost of one ioctl per change.
    #[must_use]
    pub fn cost_per_region(&self) -> Cost {
        Cost {
            ioctls: self.ops.len() as u64,
            grace_periods: self.ops.iter().map(Op::grace_periods).sum(),
        }
    }

    /// The cost with the batch ioctl, `max_entries` changes a call.
    #[must_use]
    pub fn cost_batched(&self, max_entries: u32) -> Cost {
        let chunks = self.ops.chunks(max_entries.max(1) as usize);
        Cost {
            ioctls: chunks.len() as u64,
            grace_periods: chunks
                .map(|ops| ops.iter().map(Op::grace_periods).max().unwrap_or_default())
                .sum(),
        }
    }
}
