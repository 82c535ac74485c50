//! The batch ioctl by itself.

use std::fmt;
use std::time::Instant;

use anyhow::Result;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_memslots::Errno;
use kvm_memslots_shim::uapi::{MemoryRegions, MemoryRegionsFlags};

use super::per_region::region2;
use super::{SetRegion, Spent, refused};
use kvm_memslots_kit::raw::RawCalls;

/// Takes the calls that [`PerRegion`](super::PerRegion) makes in a step and
/// makes one of them, so that the two differ in nothing but the ioctl.
pub struct Gathered {
    slots: Box<dyn RawCalls>,
    regions: MemoryRegions,
}

impl Gathered {
    /// For slots whose kernel has the ioctl.
    #[must_use]
    pub fn new(slots: Box<dyn RawCalls>) -> Self {
        Self { slots, regions: MemoryRegions::new(0, MemoryRegionsFlags::empty()) }
    }
}

impl fmt::Debug for Gathered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gathered").finish_non_exhaustive()
    }
}

impl SetRegion for Gathered {
    unsafe fn set_region(&mut self, region: kvm_userspace_memory_region) -> Result<(), Errno> {
        self.regions.push(&region2(&region)).map_err(|_| Errno::E2BIG)
    }

    fn end_of_step(&mut self, spent: Spent) -> Result<Spent> {
        if self.regions.is_empty() {
            return Ok(spent);
        }
        let deletes = self.regions.entries().iter().any(|entry| entry.memory_size == 0);
        let started = Instant::now();
        // SAFETY: whoever called `set_region` promised it for each entry.
        let made = unsafe { self.slots.set_regions(&mut self.regions) };
        let in_calls = started.elapsed();
        let made = made.map_err(|errno| {
            let gpa = self.regions.failed_entry().map_or(0, |(_, entry)| entry.guest_phys_addr);
            refused("a batch", gpa, errno)
        });
        self.regions.clear();
        made?;
        Ok(Spent { ioctls: 1, grace_periods: 1 + u64::from(deletes), in_calls, ..spent })
    }
}
