//! What the address space does about regions that wait.

use std::sync::atomic::Ordering;

use kvm_memslots_shim::Extent;

use super::{Costs, Deferred};
use crate::space::Deferral;
use crate::{AddressSpace, CommitReport, Error, RegionId};

/// What to do after an access that KVM could not decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Retry {
    /// Run the vCPU again: there is memory now where there may have been none.
    Reenter,
    /// No deferred region was in the way: the VMM's to deal with.
    NotDeferred,
}

impl AddressSpace {
    /// Serves exits of deferrable regions: one for each vCPU thread.
    #[must_use]
    pub fn deferred(&self) -> Deferred {
        Deferred::new(&self.deferred.shared)
    }

    /// How many regions wait for a slot.
    #[must_use]
    pub fn deferred_count(&self) -> usize {
        self.waiting().count()
    }

    /// How many exits were served for a region while it waited for a slot, since
    /// it was mapped or a promotion failed.
    ///
    /// # Errors
    /// Those of an id that is not valid.
    pub fn exits_served(&self, id: RegionId) -> Result<u64, Error> {
        let index = self.regions.index_of(id)?;
        let life = self.deferred.lives.get(&index);
        Ok(life.map_or(0, |life| life.exits.load(Ordering::Relaxed)))
    }

    /// What things cost here, as far as it was measured, or as
    /// [`Deferral::costs`](super::Deferral::costs) said: a slot, made and taken
    /// away again, and an exit, in nanoseconds.
    #[must_use]
    pub fn deferral_costs(&self) -> (u64, u64) {
        let (slot_ns, exit_ns) = self.deferred.shared.costs();
        (slot_ns, exit_ns.unwrap_or(Costs::UNMEASURED.exit_ns))
    }

    /// Does what an exit's [`due`](super::Served::due) asks for: where a region
    /// is due, maps all that wait for a slot in one commit, or with
    /// [`Deferral::only_due`](super::Deferral::only_due) those that are due.
    /// `None` where none is any more: another thread was faster, or the region
    /// was unmapped meanwhile.
    ///
    /// # Errors
    /// As [`promote`](Self::promote).
    pub fn promote_due(&mut self) -> Result<Option<CommitReport>, Error> {
        let due = |space: &Self, index: u32| space.is_due(index);
        if self.deferred.only_due {
            return self.promote_where(due);
        }
        let any = self.waiting().any(|index| self.is_due(index));
        if any { self.promote() } else { Ok(None) }
    }

    /// Maps the regions that wait for a slot, all in one commit, whether any is
    /// due or not. `None` where none waits.
    ///
    /// # Errors
    /// Those of a commit. The regions then wait on, their exits are served as
    /// before, and are counted from zero.
    pub fn promote(&mut self) -> Result<Option<CommitReport>, Error> {
        self.promote_where(|_, _| true)
    }

    /// Says what to do after `KVM_EXIT_ARM_NISV`, after `KVM_RUN` has failed
    /// with `ENOSYS`, or after `KVM_INTERNAL_ERROR_EMULATION`, of the thread
    /// that `exits` belongs to: maps all regions that wait, or finds that
    /// another thread has just done so.
    ///
    /// KVM then carries the instruction out anew. On x86 the VM must have
    /// `KVM_CAP_EXIT_ON_EMULATION_FAILURE` enabled for that.
    ///
    /// # Errors
    /// As [`promote`](Self::promote).
    pub fn undecoded(&mut self, exits: &Deferred) -> Result<Retry, Error> {
        self.promote()?;
        // One promotion is a reason to try again only once.
        Ok(if exits.promoted_meanwhile() { Retry::Reenter } else { Retry::NotDeferred })
    }

    fn promote_where(
        &mut self,
        which: impl Fn(&Self, u32) -> bool,
    ) -> Result<Option<CommitReport>, Error> {
        // A transaction that was leaked left its edits behind.
        self.regions.roll_back();
        let chosen: Vec<u32> = self.waiting().filter(|index| which(self, *index)).collect();
        if chosen.is_empty() {
            return Ok(None);
        }
        for index in &chosen {
            self.regions.promote(*index);
        }
        let report = self.commit().inspect_err(|_| {
            // Not to be tried again at the very next exit.
            for life in chosen.iter().filter_map(|index| self.deferred.lives.get(index)) {
                life.exits.store(0, Ordering::Relaxed);
            }
        });
        let report = report?;
        self.deferred.shared.promotions.fetch_add(1, Ordering::Release);
        Ok(Some(report))
    }

    fn waiting(&self) -> impl Iterator<Item = u32> + '_ {
        self.regions.deferrable().filter(|index| self.regions.wanted(*index).is_none())
    }

    fn is_due(&self, index: u32) -> bool {
        let exits = |life: &std::sync::Arc<super::table::Life>| life.exits.load(Ordering::Relaxed);
        self.deferred.shared.is_due(self.deferred.lives.get(&index).map_or(0, exits))
    }

    /// Whether a deferrable region is to wait.
    pub(crate) fn deferral_of(&self, extent: &Extent) -> Deferral {
        // Nothing is gained by waiting where a slot has just that memory.
        let range = extent.mapping.range;
        let has_it = |slot: &kvm_memslots_shim::Slot| {
            let whole = slot.mapping.range;
            slot.mapping.flags == extent.mapping.flags
                && slot.mapping.same_host_pages_as(&extent.mapping)
                && whole.gpa <= range.gpa
                && whole.end() >= range.end()
                && (!extent.alone || whole == range)
        };
        if self.deferred.shared.is_due(0) || self.slots.overlapping(range).any(|s| has_it(&s)) {
            Deferral::Over
        } else {
            Deferral::Waiting
        }
    }

    /// Tells the vCPU threads which regions there are.
    pub(crate) fn publish_deferred(&mut self) {
        let page_size = self.limits().page_size;
        let regions = &self.regions;
        let of = |index| {
            let waits = regions.wanted(index).is_none();
            (index, regions.extent(index).mapping, waits)
        };
        self.deferred.publish(regions.deferrable().map(of), page_size, &mut self.overlay);
    }
}
