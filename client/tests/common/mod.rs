//! VMs on a model, and what a guest sees of them.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

#[macro_use]
pub mod fixture;
pub mod host;
pub mod naive;
pub mod numbers;
mod reference;
pub mod told;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_memslots::backend::model::memory::GuestAccess;
use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::{
    Access, Backing, Builder, Changes, GateError, HolePolicy, HostMemory, Limits, MemFlags,
    RegionId, RegionSpec, VcpuGate, Vm, at,
};
pub use reference::*;

pub const PAGE: u64 = 4096;
pub const PAGES: u64 = 64;
pub const HVA: u64 = 0x7000_0000_0000;
/// How many pages the backing of a random region has.
pub const REACH: u64 = 16;

/// Memory that is on paper only.
pub const fn memory(hva: u64, len: u64) -> Backing {
    // SAFETY: only ever mapped into a model, which touches nothing.
    unsafe { Backing::borrowed(hva, len, Access::ReadWrite) }
}

/// RAM over `pages` pages from `page` on, whose host addresses carry on from one
/// region to the next.
pub fn ram(page: u64, pages: u64) -> RegionSpec {
    let size = pages * PAGE;
    RegionSpec::ram(at(page * PAGE, size), memory(HVA + page * PAGE, size))
}

/// Host memory that is on paper only, with an owner.
#[derive(Debug)]
pub struct Paper(pub u64, pub u64);

// SAFETY: only ever mapped into a model.
unsafe impl HostMemory for Paper {
    fn range(&self) -> (u64, u64) {
        (self.0, self.1)
    }
}

/// A gate that counts.
#[derive(Default)]
pub struct Gate {
    paused: AtomicU32,
    resumed: AtomicU32,
}

impl Gate {
    /// How often vCPUs were paused; they run now.
    pub fn pauses(&self) -> u32 {
        let paused = self.paused.load(Ordering::SeqCst);
        assert_eq!(paused, self.resumed.load(Ordering::SeqCst));
        paused
    }
}

impl VcpuGate for Gate {
    fn pause(&self) -> Result<(), GateError> {
        assert_eq!(self.paused.fetch_add(1, Ordering::SeqCst), self.resumed.load(Ordering::SeqCst));
        Ok(())
    }

    fn resume(&self) {
        let resumed = self.resumed.fetch_add(1, Ordering::SeqCst) + 1;
        assert_eq!(resumed, self.paused.load(Ordering::SeqCst));
    }
}

/// All hole policies.
pub fn policies() -> [HolePolicy; 4] {
    let gate = HolePolicy::Gate(Arc::new(Gate::default()));
    [HolePolicy::Refuse, HolePolicy::Named, HolePolicy::NoVcpuRuns, gate]
}

pub fn limits() -> Limits {
    Limits::x86()
}

/// The same, with or without the batch ioctl.
pub fn batched(limits: Limits, entries: Option<u32>) -> Limits {
    entries.map_or(limits, |entries| limits.with_batch(entries))
}

/// A VM on a model, and a handle to look at what the model has.
pub fn on_model(builder: Builder, model: MemoryModel) -> (Vm, MemoryModel) {
    let events = Arc::new(EventModel::new(Irqchip::Split));
    (builder.open_on(Arc::new(model.clone()), events).unwrap(), model)
}

/// The same with these limits, and nothing else.
pub fn vm(limits: Limits) -> (Vm, MemoryModel) {
    on_model(Vm::builder(), MemoryModel::new(limits))
}

/// Maps these, in one set.
pub fn map_all<const N: usize>(vm: &Vm, specs: [RegionSpec; N]) -> [RegionId; N] {
    let mut c = Changes::new();
    let ids = specs.map(|spec| c.map(spec));
    vm.apply(c).unwrap();
    ids
}

/// A set of changes that `f` makes.
pub fn changes(f: impl FnOnce(&mut Changes)) -> Changes {
    let mut c = Changes::new();
    f(&mut c);
    c
}

/// Calls and grace periods since they were last counted.
pub fn cost(model: &MemoryModel) -> (u64, u64) {
    let counts = model.counts();
    model.reset_counts();
    (counts.ioctls, counts.grace_periods)
}

/// What a guest finds at each page.
pub fn guest_pages(model: &MemoryModel) -> BTreeMap<u64, (u64, MemFlags)> {
    let slots = model.slots(0);
    (0..PAGES * 2)
        .filter_map(|page| match model.guest_at(0, page * PAGE) {
            GuestAccess::Ram { hva } => {
                let over = slots.iter().find(|slot| slot.mapping.range().contains(page * PAGE));
                Some((page, (hva, over.unwrap().mapping.flags())))
            }
            _ => None,
        })
        .collect()
}

/// The slots of the VM are those of the model, and each of them leads back to a
/// region; the model knows no kinds.
pub fn assert_same_slots(vm: &Vm, model: &MemoryModel) {
    let own: Vec<_> = vm.slots(0);
    assert_eq!(own, model.slots(0));
    assert_eq!(vm.slot_usage(0).unwrap().used as usize, own.len());
    for slot in own {
        let (region, page) = vm.region_at_slot(0, slot.id, 0).unwrap();
        assert_eq!(region.range.gpa() + page * PAGE, slot.mapping.range().gpa());
    }
}
