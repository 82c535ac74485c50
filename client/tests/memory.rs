//! What a VM costs in memory.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use kvm_memslots::backend::Yes;
use kvm_memslots::{Access, Backing, Changes, HolePolicy, Limits, RegionSpec, Vm, at};

thread_local! {
    /// Bytes that this thread allocated, less those that it freed.
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static ALLOCATIONS: Cell<u32> = const { Cell::new(0) };
}

/// The system's allocator, counting.
struct Counting;

// SAFETY: hands every call on to `System` unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LIVE.try_with(|live| live.set(live.get().wrapping_add(layout.size())));
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are System's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let _ = LIVE.try_with(|live| live.set(live.get().wrapping_sub(layout.size())));
        // SAFETY: the caller's promises are System's.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn open(holes: HolePolicy) -> Vm {
    // It keeps nothing, so that only the VM is counted.
    let yes = Arc::new(Yes::new(Limits::x86()));
    Vm::builder().holes(holes).open_on(yes.clone(), yes).unwrap()
}

/// No two are contiguous: the worst case is a slot for each region.
fn page(n: u64) -> RegionSpec {
    // SAFETY: the backend maps nothing.
    let memory =
        unsafe { Backing::borrowed(0x7000_0000_0000 + n * 0x1000, 0x1000, Access::ReadWrite) };
    RegionSpec::ram(at(n * 0x2000, 0x1000), memory)
}

/// Bytes a region, after mapping `n` of them `batch` at a time.
fn bytes_per_region(n: u64, batch: u64) -> usize {
    let before = LIVE.get();
    let vm = open(HolePolicy::NoVcpuRuns);
    for first in (0..n).step_by(batch as usize) {
        let mut c = Changes::new();
        (first..(first + batch).min(n)).for_each(|n| _ = c.map(page(n)));
        vm.apply(c).unwrap();
    }
    assert_eq!(vm.slot_usage(0).unwrap().used, n as u32);
    // What a thread freed may have been another's: it counts from anywhere.
    LIVE.get().wrapping_sub(before) / n as usize
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

/// One change is the hot path: applying it allocates nothing, also behind chunks
/// of tables that are full.
#[test]
fn one_change_is_applied_without_an_allocation() {
    for regions in [3, 1_000, 1_024, 12_800] {
        let vm = open(HolePolicy::default());
        let mut c = Changes::new();
        (0..regions).for_each(|n| _ = c.map(page(n)));
        vm.apply(c).unwrap();
        let apply = |c| {
            let before = ALLOCATIONS.get();
            vm.apply(c).unwrap();
            ALLOCATIONS.get() - before
        };
        let pair = |n| {
            let mut c = Changes::new();
            let id = c.map(page(n));
            let map = apply(c);
            let mut c = Changes::new();
            c.unmap(id);
            (map, apply(c))
        };
        // Room for one more, once.
        pair(regions + 1);
        for n in 1..100 {
            assert_eq!(pair(regions + n), (0, 0), "beside {regions} regions");
        }
    }
}
