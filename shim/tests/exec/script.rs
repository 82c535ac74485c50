//! A VM that follows a script: a guest that writes between two calls, and
//! calls that fail.

use std::collections::BTreeSet;

use kvm_memslots_shim::backend::model::{Fault, GuestAccess, ModelConfig};
use kvm_memslots_shim::backend::{Errno, Memslots, Model};
use kvm_memslots_shim::exec::{self, Done, ExecError, Holes, How, SavedDirty};
use kvm_memslots_shim::uapi::{MemoryRegions, kvm_userspace_memory_region2};
use kvm_memslots_shim::{Limits, Plan, Slot};

pub(crate) const PAGE: u64 = 4096;

/// A kernel with the batch ioctl.
pub(crate) fn limits() -> Limits {
    Limits::x86().with_batch(1 << 16)
}

/// The model, with a guest and a fate.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) model: Model,
    /// Before each call, the guest writes to the next of these pages.
    pub(crate) writes: Vec<Vec<u64>>,
    /// Panic instead of making this call, the first is 0.
    pub(crate) panic_at: Option<usize>,
    /// Calls so far.
    pub(crate) calls: usize,
    /// Host addresses that the guest has written to.
    pub(crate) written: BTreeSet<u64>,
}

impl Script {
    /// A VM with these slots.
    pub(crate) fn new(slots: &[Slot]) -> Self {
        Self::with_config(ModelConfig::new(limits()), slots)
    }

    pub(crate) fn with_config(config: ModelConfig, slots: &[Slot]) -> Self {
        let mut model = Model::with_config(config);
        for slot in slots {
            model.set_user_memory_region2(&slot.to_kvm(0)).unwrap();
        }
        model.reset_counts();
        let writes = Vec::new();
        Self { model, writes, panic_at: None, calls: 0, written: BTreeSet::new() }
    }

    /// The guest writes to a page.
    pub(crate) fn write(&mut self, page: u64) {
        for piece in self.model.guest_write(0, page * PAGE, 1) {
            if let GuestAccess::Ram { hva } = piece.access {
                self.written.insert(hva);
            }
        }
    }

    /// The slots, by guest address.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        self.model.slots(0).collect()
    }

    pub(crate) fn failing(mut self, faults: impl IntoIterator<Item = Fault>) -> Self {
        for fault in faults {
            self.model.inject(fault);
        }
        self
    }

    /// Carries `plan` out in address space 0.
    pub(crate) fn execute(
        &mut self,
        plan: &Plan,
        how: How,
        holes: Holes<'_>,
        saved: &mut Vec<SavedDirty>,
    ) -> Result<Done, ExecError> {
        // SAFETY: the model maps nothing.
        unsafe { exec::execute(self, 0, plan, how, holes, saved) }
    }

    /// The pages that the model's logs or `saved` call dirty.
    pub(crate) fn reported(&mut self, saved: &[SavedDirty]) -> BTreeSet<u64> {
        let mut pages = BTreeSet::new();
        self.model.clear_faults();
        for slot in self.slots().into_iter().filter(|slot| slot.mapping.is_logged()) {
            let count = slot.mapping.range.size / PAGE;
            let mut bits = vec![0; count.div_ceil(64) as usize];
            match self.model.get_dirty_log(0, slot.id, &mut bits) {
                // The VMM looks at its ring instead.
                Ok(()) | Err(Errno::ENXIO) => {}
                Err(errno) => panic!("{slot}: {errno}"),
            }
            pages.extend(set_bits(&bits).map(|bit| slot.mapping.range.gpa / PAGE + bit));
        }
        for SavedDirty { range, pages: bits } in saved {
            let (first, count) = (range.gpa / PAGE, range.size / PAGE);
            match bits {
                Some(bits) => {
                    assert_eq!(bits.len() as u64, count.div_ceil(64));
                    assert!(set_bits(bits).all(|bit| bit < count), "a bit beyond {range}");
                    pages.extend(set_bits(bits).map(|bit| first + bit));
                }
                None => pages.extend(first..first + count),
            }
        }
        pages
    }

    fn call(&mut self) {
        assert_ne!(self.panic_at, Some(self.calls), "as scripted");
        for page in self.writes.get(self.calls).cloned().unwrap_or_default() {
            self.write(page);
        }
        self.calls += 1;
    }
}

fn set_bits(bits: &[u64]) -> impl Iterator<Item = u64> + '_ {
    (0..bits.len() as u64 * 64).filter(|bit| bits[(bit / 64) as usize] >> (bit % 64) & 1 == 1)
}

impl Memslots for Script {
    fn limits(&self) -> Limits {
        self.model.limits()
    }

    fn name(&self) -> &'static str {
        "script"
    }

    unsafe fn set_region(&mut self, region: &kvm_userspace_memory_region2) -> Result<(), Errno> {
        self.call();
        // SAFETY: the model maps nothing.
        unsafe { self.model.set_region(region) }
    }

    unsafe fn set_regions(&mut self, regions: &mut MemoryRegions) -> Result<(), Errno> {
        self.call();
        // SAFETY: the model maps nothing.
        unsafe { self.model.set_regions(regions) }
    }

    fn dirty_log(&mut self, as_id: u16, slot: &Slot, bitmap: &mut [u64]) -> Result<(), Errno> {
        self.call();
        self.model.dirty_log(as_id, slot, bitmap)
    }

    fn clear_dirty_log(
        &mut self,
        as_id: u16,
        slot: &Slot,
        first: u64,
        pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        self.model.clear_dirty_log(as_id, slot.id, first, pages, bitmap)
    }
}
