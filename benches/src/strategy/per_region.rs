//! What VMMs do today.

use std::time::Instant;

use anyhow::Result;
use kvm_memslots::{Errno, ErrorKind, MemFlags};
use kvm_memslots_shim::uapi::{MemoryRegions, MemoryRegionsFlags, kvm_userspace_memory_region2};

use super::{Apply, Spent, no_such_region, refused};
use crate::limit::Limit;
use crate::scenario::{Change, Name, Place, Step};
use kvm_memslots_kit::raw::RawCalls;

/// One slot a region and one ioctl a change, as Cloud Hypervisor, Firecracker,
/// crosvm and QEMU do it: what is gone or has changed its size is deleted, then
/// what is new or has changed its size is created (KVM can't resize a slot);
/// for dirty logging the flags are set. Slot ids come from a counter and a list
/// of freed ones.
///
/// vCPUs are not paused, as they are not in those VMMs but for QEMU (accel
/// blocker): between the delete and the create of a region that is resized, a
/// guest that uses it finds nothing there.
pub struct PerRegion {
    calls: Box<dyn RawCalls>,
    /// The calls of a step, if they are made in one.
    batch: Option<MemoryRegions>,
    hva: u64,
    /// By name.
    regions: Vec<Entry>,
    free: Vec<u16>,
    next: u32,
    limit: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// What KVM has.
    live: Option<(u16, Place)>,
    /// What is wanted.
    wanted: Option<Place>,
    touched: bool,
}

impl PerRegion {
    /// For a scenario of `names` names in host memory at `hva`, with the slot
    /// ids from 0 up to, not including, `limit`. With `batch` the calls of a step are
    /// one of the batch ioctl, so that the two ways differ in nothing but the ioctl.
    ///
    /// # Errors
    /// This kernel has no batch ioctl.
    ///
    /// # Safety
    /// The scenario's host memory is at `hva`, is as long as the scenario says,
    /// outlives the VM, and is the guest's to read and write.
    pub unsafe fn new(
        calls: Box<dyn RawCalls>,
        batch: bool,
        hva: u64,
        names: usize,
        limit: u32,
    ) -> Result<Self> {
        if batch && calls.limits().batch.is_none() {
            return Err(kvm_memslots::Error::from(ErrorKind::NoBatchIoctl).into());
        }
        let batch = batch.then(|| MemoryRegions::new(0, MemoryRegionsFlags::empty()));
        let regions = vec![Entry::default(); names];
        Ok(Self { calls, batch, hva, regions, free: Vec::new(), next: 0, limit })
    }

    fn want(&mut self, change: &Change, touched: &mut Vec<Name>) -> Result<()> {
        let wrong = || no_such_region(change);
        match *change {
            Change::Map(name, place) => {
                self.touch(name, touched).ok_or_else(wrong)?.wanted = Some(place);
            }
            Change::Unmap(name) => self.touch(name, touched).ok_or_else(wrong)?.wanted = None,
            Change::Resize(name, size) => self.wanted(name, touched).ok_or_else(wrong)?.size = size,
            Change::SetFlags(name, flags) => {
                self.wanted(name, touched).ok_or_else(wrong)?.flags = flags;
            }
            Change::Split { name, offset, rest } => {
                let low = self.wanted(name, touched).ok_or_else(wrong)?;
                let high = Place {
                    gpa: low.gpa + offset,
                    size: low.size - offset,
                    offset: low.offset + offset,
                    ..*low
                };
                low.size = offset;
                self.touch(rest, touched).ok_or_else(wrong)?.wanted = Some(high);
            }
        }
        Ok(())
    }

    fn touch(&mut self, name: Name, touched: &mut Vec<Name>) -> Option<&mut Entry> {
        let entry = self.regions.get_mut(name.index())?;
        if !entry.touched {
            entry.touched = true;
            touched.push(name);
        }
        Some(entry)
    }

    fn wanted(&mut self, name: Name, touched: &mut Vec<Name>) -> Option<&mut Place> {
        self.touch(name, touched)?.wanted.as_mut()
    }

    fn call(&mut self, call: &'static str, slot: u16, place: &Place, size: u64) -> Result<()> {
        let region = kvm_userspace_memory_region2 {
            slot: u32::from(slot),
            flags: place.flags.bits(),
            guest_phys_addr: place.gpa,
            memory_size: size,
            userspace_addr: self.hva + place.offset,
            ..Default::default()
        };
        // SAFETY: whoever made this value promised it, for all regions of the
        // scenario.
        let set = |calls: &dyn RawCalls| unsafe { calls.set_region(&region) };
        let set = match &mut self.batch {
            Some(batch) => batch.push(&region).map_err(|_| Errno::E2BIG),
            None => set(&*self.calls),
        };
        set.map_err(|errno| refused(call, place.gpa, errno))
    }

    fn delete(&mut self, name: Name) -> Result<Spent> {
        let entry = self.regions[name.index()];
        let Some((slot, live)) = entry.live else { return Ok(Spent::default()) };
        if entry.wanted.is_some_and(|wanted| same_slot(&live, &wanted)) {
            return Ok(Spent::default());
        }
        self.call("a delete", slot, &live, 0)?;
        self.free.push(slot);
        self.regions[name.index()].live = None;
        Ok(Spent::calls(1, 2))
    }

    fn create_or_set(&mut self, name: Name) -> Result<Spent> {
        let entry = &mut self.regions[name.index()];
        entry.touched = false;
        let Some(wanted) = entry.wanted else { return Ok(Spent::default()) };
        let (call, slot) = match entry.live {
            Some((_, live)) if live.flags == wanted.flags => return Ok(Spent::default()),
            Some((slot, _)) => ("a change of flags", slot),
            None => ("a create", self.new_id()?),
        };
        self.call(call, slot, &wanted, wanted.size)?;
        self.regions[name.index()].live = Some((slot, wanted));
        Ok(Spent::calls(1, 1))
    }

    /// The calls that a step took would have cost `spent`; what they do cost.
    fn end_of_step(&mut self, spent: Spent) -> Result<Spent> {
        let Some(batch) = self.batch.as_mut().filter(|batch| !batch.is_empty()) else {
            return Ok(spent);
        };
        let deletes = batch.entries().iter().any(|entry| entry.memory_size == 0);
        let started = Instant::now();
        // SAFETY: whoever made this value promised it, for all regions of the
        // scenario.
        let made = unsafe { self.calls.set_regions(batch) };
        let in_calls = started.elapsed();
        let made = made.map_err(|errno| {
            let gpa = batch.failed_entry().map_or(0, |(_, entry)| entry.guest_phys_addr);
            refused("a batch", gpa, errno)
        });
        batch.clear();
        made?;
        Ok(Spent { ioctls: 1, grace_periods: 1 + u64::from(deletes), in_calls, ..spent })
    }

    fn new_id(&mut self) -> Result<u16> {
        if let Some(id) = self.free.pop() {
            return Ok(id);
        }
        let id = u16::try_from(self.next).ok().filter(|_| self.next < self.limit);
        let id = id.ok_or_else(|| {
            let needed = self.regions.iter().filter(|entry| entry.wanted.is_some()).count();
            Limit(format!("{needed} slots are needed, {} are available", self.limit))
        })?;
        self.next += 1;
        Ok(id)
    }
}

/// Whether KVM can turn the one into the other with a change of flags.
fn same_slot(live: &Place, wanted: &Place) -> bool {
    let read_only = |place: &Place| place.flags.contains(MemFlags::READONLY);
    (live.gpa, live.size, live.offset) == (wanted.gpa, wanted.size, wanted.offset)
        && read_only(live) == read_only(wanted)
}

impl Apply for PerRegion {
    fn apply(&mut self, step: &Step) -> Result<Spent> {
        let mut touched = Vec::with_capacity(step.changes.len());
        for change in &step.changes {
            self.want(change, &mut touched)?;
        }
        let mut spent = Spent::default();
        let started = Instant::now();
        for name in &touched {
            spent += self.delete(*name)?;
        }
        for name in touched {
            spent += self.create_or_set(name)?;
        }
        spent.in_calls = started.elapsed();
        self.end_of_step(spent)
    }
}
