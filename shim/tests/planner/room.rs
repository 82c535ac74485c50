//! Where ids run out, and extents that no slot can hold.

use kvm_memslots_shim::memory::{Extent, Op, Plan, PlanError};
use kvm_memslots_shim::{GuestMemfd, Limits};

use crate::vm::{PAGE, Vm, mapping, ram};

const GIB: u64 = 1 << 30;

/// RAM that would rather have a slot of its own.
fn apart(gpa_page: u64, pages: u64) -> Extent {
    Extent { joins: false, ..ram(gpa_page, pages) }
}

fn private(gpa_page: u64, pages: u64) -> Extent {
    let extent = ram(gpa_page, pages);
    let memfd = GuestMemfd { fd: 9, offset: gpa_page * PAGE };
    Extent { mapping: extent.mapping.with_guest_memfd(memfd).unwrap(), ..extent }
}

/// A VM with a slot for each of these extents.
fn full(wanted: &[Extent], make_room: Option<u32>) -> Vm {
    let mut vm = Vm { make_room, ..Vm::default() };
    let plan = vm.plan(wanted, &Limits::x86()).unwrap();
    assert_eq!(plan.ops.len(), wanted.len());
    vm.carry_out(&plan);
    vm
}

fn deletes(plan: &Plan) -> usize {
    plan.ops.iter().filter(|op| matches!(op, Op::Delete(_))).count()
}

/// Of two runs of slots that could be joined, the one that frees all that is
/// needed goes, and the other stays.
#[test]
fn when_ids_run_out_the_longest_run_is_joined() {
    let mut vm = Vm { make_room: Some(0), ..Vm::default() };
    let mut wanted = Vec::new();
    for page in [0, 1, 10, 11, 12] {
        wanted.push(ram(page, 1));
        let plan = vm.plan(&wanted, &Limits::x86()).unwrap();
        vm.carry_out(&plan);
    }
    wanted.extend([ram(20, 1), ram(30, 1)]);
    let plan = vm.plan(&wanted, &Limits::x86().with_slots(5)).unwrap();
    let deleted: Vec<_> =
        plan.ops.iter().filter(|op| op.invalidates()).map(|op| op.range().gpa() / PAGE).collect();
    assert_eq!(deleted, [10, 11, 12]);
    assert_eq!(plan.ops.len(), 3 + 1 + 2);
}

/// Ten slots side by side, and an eleventh extent elsewhere.
#[test]
fn slots_are_given_up_only_where_the_caller_says_so() {
    let mut wanted: Vec<_> = (0..10).map(|page| apart(page, 1)).collect();
    let live = wanted.clone();
    wanted.push(apart(20, 1));
    let limits = Limits::x86().with_slots(10);
    let error = full(&live, None).plan(&wanted, &limits).unwrap_err();
    assert_eq!(error, PlanError::TooManySlots { needed: 11, available: 10 });
    // So many ids are free afterwards, as far as joining frees them.
    for (spare, free) in [(0, 0), (1, 1), (3, 3), (8, 8), (9, 8), (100, 8)] {
        let mut vm = full(&live, Some(spare));
        let plan = vm.plan(&wanted, &limits).unwrap();
        assert_eq!(deletes(&plan), free + 2, "{spare} to spare");
        vm.carry_out(&plan);
        assert_eq!(10 - vm.slots.len(), free, "{spare} to spare");
    }
}

#[test]
fn new_pieces_are_joined_before_a_slot_goes() {
    let live: Vec<_> = (0..8).map(|page| apart(page, 1)).collect();
    let vm = full(&live, Some(5));
    let new = (20..30).map(|page| apart(page, 1));
    let wanted: Vec<_> = live.iter().copied().chain(new).collect();
    let plan = vm.plan(&wanted, &Limits::x86().with_slots(10)).unwrap();
    assert_eq!((plan.ops.len(), plan.kept, plan.merged), (1, 8, 9));
}

#[test]
fn what_stands_alone_or_is_private_makes_no_room() {
    let alone = |page| Extent { alone: true, ..ram(page, 1) };
    let limits = Limits::x86().with_slots(6).with_guest_memfd();
    for extent in [alone, |page| private(page, 1)] {
        let live: Vec<_> = (0..6).map(extent).collect();
        let wanted: Vec<_> = (0..7).map(extent).collect();
        let error = full(&live, Some(3)).plan(&wanted, &limits).unwrap_err();
        assert_eq!(error, PlanError::TooManySlots { needed: 7, available: 6 });
    }
}

#[test]
fn an_extent_that_no_slot_holds_is_cut_by_itself() {
    let limits = Limits::x86().with_slot_pages(4);
    let sizes = |wanted: &[Extent], limits: &Limits| -> Vec<u64> {
        let mut vm = Vm::default();
        let plan = vm.plan(wanted, limits).unwrap();
        // Without looking at each page: there are many.
        plan.ops.iter().for_each(|op| vm.apply(op));
        assert_eq!(vm.plan(wanted, limits).unwrap().ops, [], "it stays that way");
        plan.ops.iter().map(|op| op.range().size() / PAGE).collect()
    };
    let joined: Vec<_> = (0..10).map(|n| ram(n, 1)).collect();
    assert_eq!(sizes(&joined, &limits), [4, 4, 2]);
    for extent in [ram(0, 10), apart(0, 10), Extent { alone: true, ..ram(0, 10) }] {
        assert_eq!(sizes(&[extent], &limits), [4, 4, 2]);
    }
    assert_eq!(sizes(&[private(0, 10)], &limits.with_guest_memfd()), [4, 4, 2]);
    // What is left over is joined as any other.
    assert_eq!(sizes(&[ram(0, 10), ram(10, 1)], &limits), [4, 4, 3]);
    assert_eq!(sizes(&[apart(0, 10), ram(10, 1)], &limits), [4, 4, 2, 1]);
    // Whole GiB, where a slot can have that.
    let gib = GIB / PAGE;
    let limits = Limits::x86().with_slot_pages(2 * gib - 1);
    assert_eq!(sizes(&[ram(0, 3 * gib)], &limits), [gib, gib, gib]);
    assert_eq!(sizes(&[apart(0, 2 * gib)], &limits), [gib, gib]);
    assert_eq!(sizes(&[ram(0, 2 * gib - 1)], &limits), [2 * gib - 1]);
    let eight_tib = (8 << 40) / PAGE;
    let sizes = sizes(&[ram(0, 2 * eight_tib)], &Limits::x86());
    assert_eq!(sizes, [eight_tib - gib, eight_tib - gib, 2 * gib]);
}

#[test]
fn an_extent_that_no_address_space_holds_is_refused_at_once() {
    let limits = Limits::x86().with_slot_pages(1).with_slots(4);
    let extent = Extent::of(mapping(0, u64::MAX, 0), false, true);
    for make_room in [None, Some(0)] {
        let vm = Vm { make_room, ..Vm::default() };
        let error = vm.plan(&[extent], &limits).unwrap_err();
        assert_eq!(error, PlanError::TooManySlots { needed: 1 << 52, available: 4 });
    }
}
