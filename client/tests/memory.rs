//! What a VM costs in memory.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvm_memslots::backend::{BatchRefusal, EventCalls, EventLimits, MemoryCalls, Op};
use kvm_memslots::device::{Ioeventfd, Irqfd, Route};
use kvm_memslots::{Access, Backing, Changes, Errno, HolePolicy, Limits, RegionSpec, Slot, Vm, at};

static LIVE: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting.
struct Counting;

// SAFETY: hands every call on to `System` unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are System's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are System's.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Keeps nothing, so that only the VM is counted. A backend of somebody else's,
/// made of what the crate exports.
struct Void;

impl MemoryCalls for Void {
    fn limits(&self) -> Limits {
        Limits::x86()
    }

    fn name(&self) -> &'static str {
        "void"
    }

    unsafe fn change(&self, _: u16, _: &Op) -> Result<(), Errno> {
        Ok(())
    }

    unsafe fn change_all(&self, _: u16, _: &[Op]) -> Result<(), BatchRefusal> {
        Err(Errno::ENOTTY.into())
    }

    fn check_all(&self, _: u16, _: &[Op]) -> Result<(), BatchRefusal> {
        Err(Errno::ENOTTY.into())
    }

    fn dirty_log(&self, _: u16, _: &Slot, _: &mut [u64]) -> Result<(), Errno> {
        Err(Errno::ENOENT)
    }

    fn clear_dirty_log(&self, _: u16, _: &Slot, _: u64, _: u32, _: &[u64]) -> Result<(), Errno> {
        Err(Errno::ENOENT)
    }
}

impl EventCalls for Void {
    fn limits(&self) -> EventLimits {
        EventLimits { routes: 0, no_irqbypass: false, devid: false }
    }

    fn name(&self) -> &'static str {
        "void"
    }

    fn set_routes(&self, _: &[Route]) -> Result<(), Errno> {
        Ok(())
    }

    fn assign_irqfd(&self, _: &Irqfd) -> Result<(), Errno> {
        Ok(())
    }

    fn deassign_irqfd(&self, _: &Irqfd) -> Result<(), Errno> {
        Ok(())
    }

    fn assign_ioeventfd(&self, _: &Ioeventfd) -> Result<(), Errno> {
        Ok(())
    }

    fn deassign_ioeventfd(&self, _: &Ioeventfd) -> Result<(), Errno> {
        Ok(())
    }
}

/// Bytes a region, after mapping `n` of them `batch` at a time.
fn bytes_per_region(n: u64, batch: u64) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    let holes = HolePolicy::NoVcpuRuns;
    let vm = Vm::builder().holes(holes).open_on(Arc::new(Void), Arc::new(Void)).unwrap();
    for first in (0..n).step_by(batch as usize) {
        let mut c = Changes::new();
        for n in first..(first + batch).min(n) {
            let hva = 0x7000_0000_0000 + n * 0x1000;
            // SAFETY: the backend maps nothing.
            let memory = unsafe { Backing::borrowed(hva, 0x1000, Access::ReadWrite) };
            // No two are contiguous: the worst case is a slot for each region.
            c.map(RegionSpec::ram(at(n * 0x2000, 0x1000), memory));
        }
        vm.apply(c).unwrap();
    }
    assert_eq!(vm.slot_usage(0).unwrap().used, n as u32);
    (LIVE.load(Ordering::Relaxed) - before) / n as usize
}

#[test]
fn at_most_150_bytes_a_region() {
    for n in [1_000, 9_000, 20_000, 32_764] {
        for batch in [1, 100, n] {
            let bytes = bytes_per_region(n, batch);
            println!("{n} regions, {batch} a set: {bytes} bytes a region");
            assert!(bytes <= 150, "{n} regions, {batch} a set: {bytes} bytes a region");
        }
    }
}
