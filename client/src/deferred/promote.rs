//! What a VM does about regions that wait for a slot.

use std::sync::atomic::Ordering;

use super::{Costs, Deferred};
use crate::dirty::DirtyState;
use crate::error::{Error, ErrorKind};
use crate::vm::{Commit, Tables};
use crate::{Changes, RegionId, Report, Vm};

/// What to do after an access that KVM could not decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Retry {
    /// Run the vCPU again: there is memory now where there may have been none.
    Reenter,
    /// No deferred region was in the way: the VMM's to deal with.
    NotDeferred,
}

impl Vm {
    /// Serves exits of deferrable regions of an address space: one for each vCPU
    /// thread.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchAddressSpace`].
    pub fn deferred(&self, as_id: u16) -> Result<Deferred, Error> {
        let available = self.limits().address_spaces;
        match self.serving.get(usize::from(as_id)) {
            Some(serving) => Ok(Deferred::new(serving)),
            None => Err(ErrorKind::NoSuchAddressSpace { asked: as_id, available }.into()),
        }
    }

    /// How many regions wait for a slot.
    #[must_use]
    pub fn deferred_count(&self) -> usize {
        self.tables().regions.waiting().count()
    }

    /// How many exits were served for a region while it waited for a slot, since
    /// it was mapped or a promotion failed.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownRegion`].
    pub fn exits_served(&self, id: RegionId) -> Result<u64, Error> {
        let region = self.region(id)?;
        Ok(self.serving[usize::from(region.as_id)].exits(id))
    }

    /// What things cost here, as far as it was measured, or as
    /// [`Deferral::costs`](super::Deferral::costs) said: a slot, made and taken
    /// away again, and an exit, in nanoseconds.
    #[must_use]
    pub fn deferral_costs(&self) -> (u64, u64) {
        let (slot_ns, exit_ns) = self.serving[0].costs();
        (slot_ns, exit_ns.unwrap_or(Costs::UNMEASURED.exit_ns))
    }

    /// Does what an exit's [`due`](super::Served::due) asks for: where a region
    /// is due, maps all that wait for a slot together, or with
    /// [`Deferral::only_due`](super::Deferral::only_due) those that are due.
    /// `None` where none is any more: another thread was faster, or the region
    /// was unmapped meanwhile.
    ///
    /// # Errors
    /// As [`promote`](Self::promote).
    pub fn promote_due(&self) -> Result<Option<Report>, Error> {
        self.promote_where(|commit, tables| {
            let due: Vec<u32> =
                tables.regions.waiting().filter(|index| self.is_due(tables, *index)).collect();
            let only_due = commit.deferred.first().is_some_and(|maps| maps.only_due);
            if due.is_empty() || only_due { due } else { tables.regions.waiting().collect() }
        })
    }

    /// Maps the regions that wait for a slot, all together, whether any is due or
    /// not. `None` where none waits.
    ///
    /// # Errors
    /// As [`apply`](Self::apply). The regions then wait on, their exits are
    /// served as before, and are counted from zero.
    pub fn promote(&self) -> Result<Option<Report>, Error> {
        self.promote_where(|_, tables| tables.regions.waiting().collect())
    }

    /// Says what to do after `KVM_EXIT_ARM_NISV`, after `KVM_RUN` has failed with
    /// `ENOSYS`, or after `KVM_INTERNAL_ERROR_EMULATION`, of the thread that
    /// `exits` belongs to: maps all regions that wait, or finds that another
    /// thread has just done so.
    ///
    /// KVM then carries the instruction out anew. On x86 the VM must have
    /// `KVM_CAP_EXIT_ON_EMULATION_FAILURE` enabled for that.
    ///
    /// # Errors
    /// As [`promote`](Self::promote).
    pub fn undecoded(&self, exits: &Deferred) -> Result<Retry, Error> {
        self.promote()?;
        // One promotion is a reason to try again only once.
        Ok(if exits.promoted_meanwhile() { Retry::Reenter } else { Retry::NotDeferred })
    }

    fn promote_where(
        &self,
        which: impl FnOnce(&Commit, &Tables) -> Vec<u32>,
    ) -> Result<Option<Report>, Error> {
        let mut chosen: Vec<(u16, RegionId)> = Vec::new();
        let report = self.apply_with(Changes::new(), |commit| {
            let tables = self.tables();
            let indices = which(commit, &tables);
            let named = |index: &u32| (tables.regions.as_id(*index), tables.regions.id(*index));
            chosen = indices.iter().map(named).collect();
            indices
        });
        if chosen.is_empty() {
            return report.map(|_| None);
        }
        let report = report.inspect_err(|_| {
            // Not to be tried again at the very next exit.
            for (as_id, id) in &chosen {
                if let Some(life) = self.serving[usize::from(*as_id)].life(*id) {
                    life.exits.store(0, Ordering::Relaxed);
                }
            }
        })?;
        for serving in &self.serving {
            serving.promotions.fetch_add(1, Ordering::Release);
        }
        Ok(Some(report))
    }

    fn is_due(&self, tables: &Tables, index: u32) -> bool {
        let serving = &self.serving[usize::from(tables.regions.as_id(index))];
        serving.is_due(serving.exits(tables.regions.id(index)))
    }

    /// Tells the vCPU threads which regions there are.
    pub(crate) fn publish_deferred(&self, commit: &mut Commit, dirty: &mut DirtyState) {
        let page_size = self.limits().page_size;
        for (as_id, maps) in (0..).zip(&mut commit.deferred) {
            let regions: Vec<_> = {
                let tables = self.tables();
                let mine = |index: &u32| tables.regions.as_id(*index) == as_id;
                let of = |index| {
                    let record = tables.regions.record(index);
                    let never = record.extra.as_ref().is_some_and(|extra| extra.never_faults);
                    (tables.regions.id(index), record.mapping, never, record.waits())
                };
                tables.regions.deferrable().filter(mine).map(of).collect()
            };
            maps.publish(regions.into_iter(), page_size, dirty.overlay(as_id));
        }
    }
}
