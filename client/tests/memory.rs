//! What an address space costs in memory.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use kvm_memslots::backend::{Errno, Memslots};
use kvm_memslots::{AddressSpace, HolePolicy, Limits, RegionSpec, Slot};
use kvm_memslots_shim::uapi::{MemoryRegions, kvm_userspace_memory_region2};

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

/// Keeps nothing, so that only the address space is counted.
struct Void;

impl Memslots for Void {
    fn limits(&self) -> Limits {
        Limits::x86()
    }

    fn name(&self) -> &'static str {
        "void"
    }

    unsafe fn set_region(&mut self, _: &kvm_userspace_memory_region2) -> Result<(), Errno> {
        Ok(())
    }

    unsafe fn set_regions(&mut self, _: &mut MemoryRegions) -> Result<(), Errno> {
        Err(Errno::ENOTTY)
    }

    fn dirty_log(&mut self, _: u16, _: &Slot, _: &mut [u64]) -> Result<(), Errno> {
        Err(Errno::ENOENT)
    }

    fn clear_dirty_log(
        &mut self,
        _: u16,
        _: &Slot,
        _: u64,
        _: u32,
        _: &[u64],
    ) -> Result<(), Errno> {
        Err(Errno::ENOENT)
    }
}

/// Bytes a region, after mapping `n` of them `batch` at a time.
fn bytes_per_region(n: u64, batch: u64) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    let mut space =
        AddressSpace::builder().holes(HolePolicy::NoVcpuRuns).open_on(Box::new(Void)).unwrap();
    for first in (0..n).step_by(batch as usize) {
        let mut tx = space.begin();
        for n in first..(first + batch).min(n) {
            // No two are contiguous: the worst case is a slot for each region.
            let spec = RegionSpec::ram(n * 0x2000, 0x1000, 0x7000_0000_0000 + n * 0x1000);
            // SAFETY: the backend maps nothing.
            unsafe { tx.map(spec) }.unwrap();
        }
        tx.commit().unwrap();
    }
    assert_eq!(space.slot_count() as u64, n);
    (LIVE.load(Ordering::Relaxed) - before) / n as usize
}

#[test]
fn at_most_200_bytes_a_region() {
    for n in [1_000, 9_000, 20_000, 32_764] {
        for batch in [1, 100, n] {
            let bytes = bytes_per_region(n, batch);
            println!("{n} regions, {batch} a commit: {bytes} bytes a region");
            assert!(bytes <= 200, "{n} regions, {batch} a commit: {bytes} bytes a region");
        }
    }
}
