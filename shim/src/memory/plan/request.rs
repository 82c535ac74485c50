//! What the planner is asked.

use thiserror::Error;

use crate::errno::Errno;
use crate::ids::SlotIds;
use crate::limits::Limits;
use crate::mapping::{Mapping, Slot};
use crate::range::Range;

/// A mapping that is wanted.
///
/// One that is larger than the largest slot is cut into extents of
/// [`Limits::piece_bytes`] and the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// What is to be mapped.
    pub mapping: Mapping,
    /// It will change alone: it gets a slot that holds nothing else, and one
    /// only.
    pub alone: bool,
    /// It shares a new slot with neighbours of which this is true as well. One
    /// with a `guest_memfd` never does.
    pub joins: bool,
    /// A slot that is there stays for it only if it holds just this extent: one
    /// that holds more, or is one of several, would cost what changes later more
    /// than a slot of its own does.
    pub whole: bool,
}

impl Extent {
    /// What slots that are there may stay for, whatever their cut.
    #[must_use]
    pub const fn of(mapping: Mapping, alone: bool, joins: bool) -> Self {
        Self { mapping, alone, joins, whole: false }
    }
}

/// What is, what is wanted, and what is allowed.
///
/// `live` and `wanted` may be a part of the address space, as long as no slot
/// outside of `live` overlaps an extent of `wanted`. Order does not matter; in
/// ascending order of GPA nothing needs to be sorted.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Slots that KVM has.
    pub live: &'a [Slot],
    /// What is to be mapped where those slots are, and beside them.
    pub wanted: &'a [Extent],
    /// All ids of the address space, those of `live` among them.
    pub ids: &'a SlotIds,
    /// What KVM allows.
    pub limits: &'a Limits,
    /// What happens where ids run out. `None`: [`PlanError::TooManySlots`].
    /// Else extents share slots whether they [join](Extent::joins) or not; and
    /// where that is not enough slots that stay are replaced to be joined, and
    /// so many more ids than needed are freed where that is possible, so that
    /// not every change that follows has to do the same. What stands
    /// [alone](Extent::alone) or has a `guest_memfd` takes no part.
    pub make_room: Option<u32>,
}

/// Why there is no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Two extents, or two slots, overlap.
    #[error("GPA {first} and GPA {second} overlap")]
    Overlap {
        /// The one with the lower address.
        first: Range,
        /// The other.
        second: Range,
    },
    /// There are not enough slot ids, also after joining all that may be.
    #[error("{needed} slots are needed, {available} are available")]
    TooManySlots {
        /// How many slots the address space would have.
        needed: u64,
        /// How many it can have.
        available: u32,
    },
}

impl PlanError {
    /// `EEXIST`, or `ENOSPC` where slots are short.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Overlap { .. } => Errno::EEXIST,
            Self::TooManySlots { .. } => Errno::ENOSPC,
        }
    }
}
