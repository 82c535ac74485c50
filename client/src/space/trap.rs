//! Flipping the trap flag of one region.

use std::time::Instant;

use kvm_memslots_shim::{Extent, Mapping, MemFlags, Slot};

use super::{AddressSpace, Deferral};
use crate::{CommitReport, Error, RegionId};

impl AddressSpace {
    /// Has the guest's accesses to the region exit as MMIO, as if it were not
    /// mapped, or not any more. One call, without a grace period, without a
    /// plan: for a device that does this at a register write of the guest.
    ///
    /// When this has returned, no vCPU reaches memory that traps, and none exits
    /// for memory that does not. A dirty log goes on as if nothing had happened.
    ///
    /// # Errors
    /// [`Error::TrapUnsupported`], where [`Limits::trap`](crate::Limits::trap)
    /// is false; [`Error::NotAlone`]; [`Error::NotDeferrable`] for a region that
    /// is; [`Error::GuestMemfdFlags`]; [`Error::Refused`]; and those of an id
    /// that is not valid.
    pub fn set_trap(&mut self, id: RegionId, trap: bool) -> Result<CommitReport, Error> {
        // A transaction that was leaked left its edits behind.
        self.regions.roll_back();
        let index = self.regions.index_of(id)?;
        let extent = self.with_trap(index, trap)?;
        let range = extent.mapping.range;
        let slot = self.slots.overlapping(range).next().filter(|slot| slot.mapping.range == range);
        let (Some(slot), false) = (slot, self.unsettled) else {
            // After a failure: whatever it takes.
            let mut tx = self.begin();
            tx.set_trap(id, trap)?;
            return tx.commit();
        };
        let flipped =
            Slot { mapping: Mapping { flags: extent.mapping.flags, ..slot.mapping }, ..slot };
        let start = Instant::now();
        let calls = u64::from(flipped != slot);
        if calls > 0 {
            let region = flipped.to_kvm(self.as_id);
            // SAFETY: whoever mapped the region vouched for its host memory,
            // and the slot has it already.
            unsafe { self.backend.set_region(&region) }.map_err(|errno| {
                let region = Some(self.regions.describe(index));
                Error::Refused { range, region, errno }
            })?;
            self.slots.insert(&flipped);
            self.regions.change(index, &extent);
            self.regions.settle();
        }
        tracing::trace!(as_id = self.as_id, %range, trap, calls, "trap");
        Ok(CommitReport {
            ioctls: calls,
            grace_periods: 0,
            regions_merged: 0,
            regions_cancelled: 0,
            regions_deferred: 0,
            elapsed: start.elapsed(),
            executor: self.executor(),
            backend: self.backend.name(),
            vcpus_paused: false,
            slots: self.slots.len(),
        })
    }

    /// The region, trapping or not, if it can.
    pub(crate) fn with_trap(&self, index: u32, trap: bool) -> Result<Extent, Error> {
        let extent = self.regions.extent(index);
        let region = || self.regions.describe(index);
        let mut flags = extent.mapping.flags;
        flags.set(MemFlags::TRAP, trap);
        if !self.limits.trap {
            return Err(Error::TrapUnsupported { region: region() });
        }
        if flags.contains(MemFlags::GUEST_MEMFD) {
            return Err(Error::GuestMemfdFlags { region: region(), flags: MemFlags::TRAP });
        }
        if self.regions.deferral(index) != Deferral::Never {
            let why = "it is to trap, and its exits would be served from memory";
            return Err(Error::NotDeferrable { region: region(), why });
        }
        if !extent.alone {
            return Err(Error::NotAlone { region: region() });
        }
        Ok(Extent { mapping: Mapping { flags, ..extent.mapping }, ..extent })
    }
}
