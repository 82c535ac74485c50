//! Looking regions, slots and devices up.

use kvm_memslots_shim::events::{EventLimits, State};
use kvm_memslots_shim::{Range, Slot};

use super::check::Checks;
use super::{SlotTable, Vm};
use crate::device::{DeviceId, Vector};
use crate::error::{Error, ErrorKind};
use crate::{Region, RegionId, RegionSpec};

/// How many slots an address space uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotUsage {
    /// In use by regions.
    pub used: u32,
    /// Free.
    pub available: u32,
    /// KVM's limit less the reserved ids.
    pub capacity: u32,
}

impl Vm {
    /// The region of this name.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownRegion`].
    pub fn region(&self, id: RegionId) -> Result<Region, Error> {
        let tables = self.tables();
        let index = tables.regions.find(id).ok_or(ErrorKind::UnknownRegion(id))?;
        Ok(tables.regions.region(index))
    }

    /// All regions, by address space and guest address, as they are now.
    #[must_use]
    pub fn regions(&self) -> Vec<Region> {
        let tables = self.tables();
        let all = (0..self.limits.address_spaces).flat_map(|as_id| tables.regions.iter(as_id));
        all.map(|index| tables.regions.region(index)).collect()
    }

    /// The region at a guest address of an address space.
    #[must_use]
    pub fn region_at(&self, as_id: u16, gpa: u64) -> Option<Region> {
        let tables = self.tables();
        tables.regions.at(as_id, gpa).map(|index| tables.regions.region(index))
    }

    /// The region of an address space whose memory is at a host virtual address,
    /// and how many bytes into it that is: for what the host reports, as a fault or
    /// a poisoned page. Of several, the one that starts last.
    #[must_use]
    pub fn region_at_hva(&self, as_id: u16, hva: u64) -> Option<(Region, u64)> {
        let mut tables = self.tables();
        if !tables.regions.knows_hvas() {
            drop(tables);
            self.tables_mut().regions.learn_hvas();
            tables = self.tables();
        }
        let (index, offset) = tables.regions.at_hva(as_id, hva)?;
        Some((tables.regions.region(index), offset))
    }

    /// The region that page `page` of slot `slot` belongs to, and which page of
    /// the region it is: for what KVM reports by slot, as entries of a dirty
    /// ring.
    #[must_use]
    pub fn region_at_slot(&self, as_id: u16, slot: u16, page: u64) -> Option<(Region, u64)> {
        let tables = self.tables();
        let range = tables.slots.get(usize::from(as_id))?.by_id(slot)?.mapping.range();
        let page_size = self.limits.page_size;
        let offset = page.checked_mul(page_size).filter(|offset| *offset < range.size())?;
        let gpa = range.gpa() + offset;
        let region = tables.regions.region(tables.regions.at(as_id, gpa)?);
        let page = (gpa - region.range.gpa()) / page_size;
        Some((region, page))
    }

    /// The regions with this [tag](crate::RegionSpec::tag).
    #[must_use]
    pub fn tagged(&self, tag: u64) -> Vec<Region> {
        let tables = self.tables();
        tables.regions.tagged(tag).map(|index| tables.regions.region(index)).collect()
    }

    /// The slots that KVM has of an address space, by guest address.
    #[must_use]
    pub fn slots(&self, as_id: u16) -> Vec<Slot> {
        let tables = self.tables();
        tables.slots.get(usize::from(as_id)).into_iter().flat_map(SlotTable::iter).collect()
    }

    /// How many slots an address space uses. Waits for a change that is being
    /// applied.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchAddressSpace`]; [`ErrorKind::Reentrant`],
    /// [`ErrorKind::Forked`].
    pub fn slot_usage(&self, as_id: u16) -> Result<SlotUsage, Error> {
        let available = self.limits.address_spaces;
        let committing = self.enter()?;
        let space = committing.commit.spaces.get(usize::from(as_id));
        let ids = &space.ok_or(ErrorKind::NoSuchAddressSpace { asked: as_id, available })?.ids;
        Ok(SlotUsage { used: ids.in_use(), available: ids.available(), capacity: ids.capacity() })
    }

    /// What the VM allows of routes, irqfds and coalesced zones.
    #[must_use]
    pub fn event_limits(&self) -> EventLimits {
        self.events.limits()
    }

    /// The routes, irqfds, ioeventfds and zones that KVM has, as far as they are known.
    /// Waits for a change that is being applied.
    ///
    /// # Errors
    /// [`ErrorKind::Reentrant`], [`ErrorKind::Forked`].
    pub fn event_state(&self) -> Result<State, Error> {
        Ok(self.enter()?.commit.events.live.clone())
    }

    /// The devices that are attached, by when they were made.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceId> {
        self.tables().devices.keys().copied().collect()
    }

    /// The regions of a device, in the order in which they were added; those that
    /// were unmapped among them.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownDevice`].
    pub fn device_regions(&self, id: DeviceId) -> Result<Vec<RegionId>, Error> {
        let tables = self.tables();
        let device = tables.devices.get(&id).ok_or(ErrorKind::UnknownDevice { id })?;
        Ok(device.regions.clone())
    }

    /// The GSI of a device's vector; `None` before its first message. While it is
    /// masked, another vector may need the GSI: it has none then.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownDevice`], [`ErrorKind::NoSuchVector`].
    pub fn gsi(&self, id: DeviceId, vector: usize) -> Result<Option<u32>, Error> {
        let tables = self.tables();
        let device = tables.devices.get(&id).ok_or(ErrorKind::UnknownDevice { id })?;
        let vectors = device.vectors.len();
        let found = device.vectors.get(vector).map(Vector::gsi);
        found.ok_or_else(|| {
            let error = Error::from(ErrorKind::NoSuchVector { vectors });
            error.of_device(&device.name, None)
        })
    }

    /// Whether a region could be mapped, if its addresses were free.
    pub(crate) fn check_spec(&self, spec: &RegionSpec) -> Result<(), Error> {
        let checks = Checks { limits: &self.limits, waits: &|_, _| true };
        checks.record(RegionId::new(), spec).map(|_| ())
    }

    /// Where a region is, if it is mapped.
    pub(crate) fn range_of(&self, id: RegionId) -> Option<Range> {
        let tables = self.tables();
        tables.regions.find(id).map(|index| tables.regions.range(index))
    }

    /// Whether a region that is not `ours` is in `range`.
    pub(crate) fn is_taken(
        &self,
        as_id: u16,
        range: Range,
        ours: impl Fn(RegionId) -> bool,
    ) -> bool {
        let tables = self.tables();
        let mut there = tables.regions.overlapping(as_id, range);
        there.any(|index| !ours(tables.regions.id(index)))
    }
}
