//! One change is the hot path: how often it allocates.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use kvm_memslots_shim::memory::{Extent, How, Request, execute, plan};
use kvm_memslots_shim::{Kind, Limits, Mapping, Range, Slot, SlotIds, Yes};

thread_local! {
    static ALLOCATIONS: Cell<u32> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: the system's, as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations<T>(f: impl FnOnce() -> T) -> (T, u32) {
    let before = ALLOCATIONS.get();
    let value = f();
    (value, ALLOCATIONS.get() - before)
}

#[test]
fn one_change_is_planned_with_few_allocations_and_carried_out_with_none() {
    let (limits, ids) = (Limits::x86(), SlotIds::new(100));
    let mapping = Mapping::new(Range::new(0, 0x1000).unwrap(), 0, Kind::Ram).unwrap();
    let wanted = [Extent::of(mapping, false, true)];
    let live = [Slot { id: 0, mapping }];
    let yes = Yes::new(limits);
    for (live, wanted, most) in [(&[][..], &wanted[..], 2), (&live[..], &[][..], 4)] {
        let request = Request { live, wanted, ids: &ids, limits: &limits, make_room: None };
        let (plan, count) = allocations(|| plan(&request).unwrap());
        assert!(count <= most, "{count} for {:?}", plan.ops);
        assert_eq!(plan.ops.len(), 1);
        for how in [How::PerRegion, How::Batch { max_entries: 64 }] {
            for read_logs in [false, true] {
                let (mut traps, mut saved) = (false, Vec::new());
                let run = || {
                    // SAFETY: nobody maps anything.
                    unsafe { execute(&yes, 0, &plan, how, &mut traps, read_logs, &mut saved) }.ok()
                };
                let (done, count) = allocations(run);
                let done = done.unwrap();
                assert_eq!((done.ioctls, count), (1, 0), "{how:?}");
            }
        }
    }
}
