//! Accesses that came out of the guest: which memory they are to reach.

use super::region::READONLY;
use super::slot::Slot;
use super::slots::Slots;

/// A piece of host memory that a guest's access reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) hva: u64,
    pub(crate) bytes: usize,
}

/// An access of a guest's that came out as MMIO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mmio {
    /// The address space.
    pub(crate) space: u32,
    pub(crate) gpa: u64,
    /// 8 at most.
    pub(crate) bytes: usize,
    pub(crate) write: bool,
}

/// What becomes of an access that came out of the guest as MMIO.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It is for the VMM.
    Pass,
    /// It is served from these pieces, in order; the second may be empty. More
    /// than two pages are in no access.
    Serve {
        pieces: [Piece; 2],
        /// The slot that the first is in.
        slot: u32,
        /// Whether it came out because a slot is deferred; else the slot has
        /// just been mapped.
        deferred: bool,
    },
}

impl Slots {
    /// What becomes of an access. A write to memory that the guest may only read is the VMM's also
    /// where that memory is mapped.
    pub(crate) fn access(&self, access: Mmio) -> Access {
        let Mmio { space, gpa, bytes, write } = access;
        let none = Piece { hva: 0, bytes: 0 };
        let (mut pieces, mut count) = ([none; 2], 0);
        let (mut deferred, mut ours) = (false, None);
        let mut done = 0;
        while done < bytes {
            let Some(at) = gpa.checked_add(done as u64) else { return Access::Pass };
            let Some((slot, (hva, left))) = self.reached(space, at, count > 0) else {
                return Access::Pass;
            };
            if count == pieces.len() || write && slot.region.flags & READONLY != 0 {
                return Access::Pass;
            }
            deferred |= slot.is_deferred();
            if slot.listed {
                ours = ours.or(Some(slot.region.slot));
            }
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            pieces[count] = Piece { hva, bytes: left.min(bytes - done) };
            done += pieces[count].bytes;
            count += 1;
        }
        ours.map_or(Access::Pass, |slot| Access::Serve { pieces, slot, deferred })
    }

    /// The slot that is at `gpa` as the VMM sees it, and where that is in host
    /// memory. Of an access that begins in a slot that does not churn, none is
    /// served but one that goes on in one that does.
    fn reached(&self, space: u32, gpa: u64, goes_on: bool) -> Option<(&Slot, (u64, u64))> {
        let at = |slot: &'_ Slot| {
            (slot.wanted && slot.region.space() == space).then(|| slot.region.at(gpa))?
        };
        let found = self.churning().find_map(|slot| Some((slot, at(slot)?)));
        if found.is_some() || !(goes_on || self.crosses(space, gpa)) {
            return found;
        }
        self.iter().find_map(|slot| Some((slot, at(slot)?)))
    }

    /// Whether an access at `gpa` can reach a slot that churns beyond its page.
    fn crosses(&self, space: u32, gpa: u64) -> bool {
        let behind = |slot: &Slot| {
            slot.region.space() == space && (1..8).contains(&slot.region.gpa.wrapping_sub(gpa))
        };
        self.churning().any(behind)
    }
}
