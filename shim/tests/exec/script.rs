//! A VM that follows a script: a guest that writes between two calls, and
//! calls that fail.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_memslots_shim::memory::model::{Fault, GuestAccess, Model, ModelConfig};
use kvm_memslots_shim::memory::{
    BatchRefusal, Carry, Done, Failed, How, MemoryCalls, Op, Plan, SavedDirty, execute,
};
use kvm_memslots_shim::{Errno, Kind, Limits, Mapping, MemFlags, Range, Slot};

pub(crate) const PAGE: u64 = 4096;

pub(crate) fn range(gpa: u64, size: u64) -> Range {
    Range::new(gpa, size).unwrap()
}

pub(crate) fn mapping(gpa: u64, size: u64, hva: u64) -> Mapping {
    Mapping::new(range(gpa, size), hva, Kind::Ram).unwrap()
}

/// A kernel with the batch ioctl.
pub(crate) fn limits() -> Limits {
    Limits::x86().with_batch(1 << 16)
}

/// A logged slot of 100 pages that becomes two.
pub(crate) fn split() -> (Slot, Plan) {
    let mapping = mapping(0x10_0000, 100 * PAGE, 0x7f00_0000_0000);
    let old = Slot { id: 0, mapping: mapping.with_flags(MemFlags::LOG_DIRTY_PAGES) };
    let part = |id, gpa, pages| {
        let mapping = old.mapping.clipped_to(range(gpa, pages * PAGE)).unwrap();
        Slot { id, mapping }
    };
    let (low, high) = (part(0, 0x10_0000, 30), part(1, 0x10_0000 + 30 * PAGE, 70));
    let plan = Plan {
        ops: vec![Op::Delete(old), Op::Create(low), Op::Create(high)],
        holes: vec![mapping.range()],
        carries: [low, high].map(|new| Carry { slot: old, range: new.mapping.range() }).to_vec(),
        ..Plan::default()
    };
    (old, plan)
}

/// The model, with a guest and a fate.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) model: Model,
    /// Before each call, the guest writes to the next of these pages.
    pub(crate) writes: Vec<Vec<u64>>,
    calls: AtomicUsize,
    written: Mutex<BTreeSet<u64>>,
}

impl Script {
    /// A VM with these slots.
    pub(crate) fn new(slots: &[Slot]) -> Self {
        Self::with_config(ModelConfig::new(limits()), slots)
    }

    pub(crate) fn with_config(config: ModelConfig, slots: &[Slot]) -> Self {
        let model = Model::with_config(config);
        for slot in slots {
            // SAFETY: the model maps nothing.
            unsafe { model.change(0, &Op::Create(*slot)) }.unwrap();
        }
        model.reset_counts();
        Self { model, writes: Vec::new(), calls: AtomicUsize::default(), written: Mutex::default() }
    }

    /// Another VM that is as this one is now.
    pub(crate) fn fork(&self) -> Self {
        Self {
            model: self.model.fork(),
            writes: self.writes.clone(),
            calls: AtomicUsize::new(self.calls()),
            written: Mutex::new(self.written().clone()),
        }
    }

    /// Calls so far.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// Host addresses that the guest has written to.
    pub(crate) fn written(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest writes to a page.
    pub(crate) fn write(&self, page: u64) {
        for piece in self.model.guest_write(0, page * PAGE, 1) {
            if let GuestAccess::Ram { hva } = piece.access {
                self.written().insert(hva);
            }
        }
    }

    /// The slots, by guest address.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        self.model.slots(0)
    }

    pub(crate) fn failing(self, faults: impl IntoIterator<Item = Fault>) -> Self {
        for fault in faults {
            self.model.inject(fault);
        }
        self
    }

    /// Carries `plan` out in address space 0.
    #[allow(clippy::result_large_err)]
    pub(crate) fn execute(
        &self,
        plan: &Plan,
        how: How,
        read_logs: bool,
        saved: &mut Vec<SavedDirty>,
    ) -> Result<Done, Failed> {
        // SAFETY: the model maps nothing.
        unsafe { execute(self, 0, plan, how, &mut false, read_logs, saved) }
    }

    /// The pages that the model's logs or `saved` call dirty.
    pub(crate) fn reported(&self, saved: &[SavedDirty]) -> BTreeSet<u64> {
        self.reported_without(&[], saved)
    }

    /// The same, to somebody who does not know of these slots.
    pub(crate) fn reported_without(&self, ids: &[u16], saved: &[SavedDirty]) -> BTreeSet<u64> {
        let mut pages = BTreeSet::new();
        self.model.clear_faults();
        let known = |slot: &Slot| slot.mapping.is_logged() && !ids.contains(&slot.id);
        for slot in self.slots().into_iter().filter(known) {
            let count = slot.mapping.range().size() / PAGE;
            let mut bits = vec![0; count.div_ceil(64) as usize];
            match self.model.get_dirty_log(0, slot.id, &mut bits) {
                // The VMM looks at its ring instead.
                Ok(()) | Err(Errno::ENXIO) => {}
                Err(errno) => panic!("{slot}: {errno}"),
            }
            pages.extend(set_bits(&bits).map(|bit| slot.mapping.range().gpa() / PAGE + bit));
        }
        for SavedDirty { range, pages: bits } in saved {
            let (first, count) = (range.gpa() / PAGE, range.size() / PAGE);
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

    fn call(&self) {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        for page in self.writes.get(call).into_iter().flatten() {
            self.write(*page);
        }
    }
}

fn set_bits(bits: &[u64]) -> impl Iterator<Item = u64> + '_ {
    (0..bits.len() as u64 * 64).filter(|bit| bits[(bit / 64) as usize] >> (bit % 64) & 1 == 1)
}

impl MemoryCalls for Script {
    fn limits(&self) -> Limits {
        self.model.limits()
    }

    fn name(&self) -> &'static str {
        "script"
    }

    unsafe fn change(&self, as_id: u16, op: &Op) -> Result<(), Errno> {
        self.call();
        // SAFETY: the model maps nothing.
        unsafe { self.model.change(as_id, op) }
    }

    unsafe fn change_all(&self, as_id: u16, ops: &[Op]) -> Result<(), BatchRefusal> {
        self.call();
        // SAFETY: the model maps nothing.
        unsafe { self.model.change_all(as_id, ops) }
    }

    fn check_all(&self, as_id: u16, ops: &[Op]) -> Result<(), BatchRefusal> {
        self.call();
        self.model.check_all(as_id, ops)
    }

    fn dirty_log(
        &self,
        as_id: u16,
        slot: &Slot,
        look: &mut dyn FnMut(&[u64]),
    ) -> Result<(), Errno> {
        self.call();
        self.model.dirty_log(as_id, slot, look)
    }

    fn clear_dirty_log(
        &self,
        as_id: u16,
        slot: &Slot,
        first: u64,
        pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        self.model.clear_dirty_log(as_id, slot.id, first, pages, bitmap)
    }
}
