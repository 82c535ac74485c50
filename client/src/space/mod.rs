//! One KVM address space of one VM.

mod builder;
mod commit;
mod regions;
mod slots;
mod trap;

pub use builder::{Builder, Executor, HolePolicy};
pub(crate) use regions::{Deferral, Edit, RegionTable};
pub(crate) use slots::SlotTable;

use std::fmt;
use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;

use kvm_memslots_shim::backend::Memslots;
use kvm_memslots_shim::exec::How;
use kvm_memslots_shim::{Limits, Range, Slot, SlotIds};

use crate::deferred::DeferredMaps;
use crate::dirty::Overlay;
use crate::{CommitReport, Error, HostMemory, Region, RegionId, Transaction};

/// One KVM address space of one VM: the regions that are mapped in it, and the
/// slots that they are in.
///
/// It knows the slots that it made. A VMM that makes slots of its own in the
/// same VM reserves their ids ([`Builder::reserve_slots`]) and keeps their
/// guest addresses clear of its regions.
///
/// Dropping an address space leaves the slots to the VM, which frees them when
/// it goes; only regions that hold [`HostMemory`](crate::HostMemory) are
/// unmapped, and where that fails their memory is leaked rather than left to
/// the guest. [`close`](Self::close) unmaps everything.
pub struct AddressSpace {
    pub(crate) backend: Box<dyn Memslots>,
    limits: Limits,
    pub(crate) as_id: u16,
    how: How,
    holes: HolePolicy,
    pub(crate) manual_dirty_log: bool,
    pub(crate) regions: RegionTable,
    pub(crate) slots: SlotTable,
    ids: SlotIds,
    pub(crate) overlay: Overlay,
    /// Reused for reading dirty logs.
    pub(crate) scratch: Vec<u64>,
    /// A commit failed and could not be undone: slots and regions disagree,
    /// anywhere.
    unsettled: bool,
    /// Host memory that slots may still map although no region does, since the
    /// commit that left `unsettled`.
    limbo: Vec<Arc<dyn HostMemory>>,
    pub(crate) deferred: DeferredMaps,
}

impl AddressSpace {
    /// The first address space of the VM behind `vm`, with the defaults of
    /// [`builder`](Self::builder).
    ///
    /// The descriptor is duplicated: the VM lives at least as long as the
    /// address space.
    ///
    /// # Errors
    /// [`Error::Open`] where `vm` is no VM.
    pub fn open(vm: impl AsFd) -> Result<Self, Error> {
        Self::builder().open(vm)
    }

    /// Options, before an address space is opened.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Begins a change. Nothing happens before it is committed; dropping the
    /// transaction changes nothing.
    pub fn begin(&mut self) -> Transaction<'_> {
        // A transaction that was leaked left its edits behind.
        self.regions.roll_back();
        Transaction::new(self)
    }

    /// What the VM allows.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The id of the address space, 0 unless said otherwise.
    #[must_use]
    pub const fn as_id(&self) -> u16 {
        self.as_id
    }

    /// How commits are carried out.
    #[must_use]
    pub const fn executor(&self) -> Executor {
        match self.how {
            How::PerRegion => Executor::PerRegion,
            How::Batch { .. } => Executor::Batch,
        }
    }

    /// `"kvm"` or `"model"`.
    #[must_use]
    pub fn backend_name(&self) -> &'static str {
        self.backend.name()
    }

    /// Says what to do about plans that open a hole, from now on.
    pub fn set_hole_policy(&mut self, policy: HolePolicy) {
        self.holes = policy;
    }

    /// Marks slot ids as the VMM's own, as [`Builder::reserve_slots`].
    ///
    /// # Errors
    /// [`Error::SlotInUse`]; nothing is reserved then.
    pub fn reserve_slots(&mut self, ids: std::ops::RangeInclusive<u16>) -> Result<(), Error> {
        self.ids.try_reserve(ids).map_err(|id| Error::SlotInUse { id })
    }

    /// The region that `id` names.
    ///
    /// # Errors
    /// [`Error::UnknownRegion`], [`Error::StaleRegion`],
    /// [`Error::ForeignRegion`].
    pub fn region(&self, id: RegionId) -> Result<Region<'_>, Error> {
        self.regions.index_of(id).map(|index| self.regions.region(index))
    }

    /// All regions, by guest address.
    pub fn regions(&self) -> impl Iterator<Item = Region<'_>> + '_ {
        self.regions.iter().map(|index| self.regions.region(index))
    }

    /// The region at a guest address.
    #[must_use]
    pub fn region_at(&self, gpa: u64) -> Option<Region<'_>> {
        self.regions.at(gpa).map(|index| self.regions.region(index))
    }

    /// The region that page `page` of slot `slot` belongs to, and which page of
    /// the region it is: for what KVM reports by slot, as entries of a dirty
    /// ring.
    #[must_use]
    pub fn region_at_slot(&self, slot: u16, page: u64) -> Option<(Region<'_>, u64)> {
        let range = self.slots.by_id(slot)?.mapping.range;
        let offset = page.checked_mul(self.limits.page_size).filter(|o| *o < range.size)?;
        let gpa = range.gpa + offset;
        let region = self.region_at(gpa)?;
        let page = (gpa - region.range.gpa) / self.limits.page_size;
        Some((region, page))
    }

    /// The slots that KVM has of this address space, by guest address.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.slots.iter()
    }

    /// How many slots this address space uses.
    #[must_use]
    pub fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Unmaps everything.
    ///
    /// # Errors
    /// Those of a commit, with the address space as it was.
    pub fn close(mut self) -> Result<CommitReport, (Box<Self>, Error)> {
        match self.unmap_where(|_| true) {
            Ok(report) => Ok(report),
            Err(error) => Err((Box::new(self), error)),
        }
    }

    fn unmap_where(&mut self, mut which: impl FnMut(u32) -> bool) -> Result<CommitReport, Error> {
        let gone: Vec<_> = self.regions.iter().filter(|index| which(*index)).collect();
        let gone: Vec<_> = gone.into_iter().map(|index| self.regions.id(index)).collect();
        let mut tx = self.begin();
        for id in gone {
            tx.unmap(id)?;
        }
        tx.commit()
    }

    pub(crate) fn named(&self, range: Range) -> Option<Box<crate::Described>> {
        self.regions.in_or_from(range).map(|index| self.regions.describe(index))
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        self.regions.roll_back();
        self.deferred.close();
        if !self.regions.has_owners() && self.limbo.is_empty() {
            return;
        }
        let owned = self.regions.owned();
        if self.unmap_where(|index| owned.contains(&index)).is_err() {
            // The guest may still reach this memory: nobody else may get it.
            mem::forget(self.regions.take_owners());
            mem::forget(mem::take(&mut self.limbo));
        }
    }
}

impl fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace")
            .field("backend", &self.backend.name())
            .field("as_id", &self.as_id)
            .field("executor", &self.executor())
            .field("regions", &self.regions.len())
            .field("slots", &self.slots.len())
            .finish_non_exhaustive()
    }
}
