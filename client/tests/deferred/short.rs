//! More deferrable regions than slots.

use kvm_memslots::deferred::{Costs, Deferral, Deferred, Policy, Retry};
use kvm_memslots::{Changes, ErrorKind, HolePolicy, Limits, RegionId, Vm};
use proptest::prelude::*;

use crate::memory::{Memory, PAGE, device, open_with};

const EXITS: u64 = 4;

/// `count` deferrable pages, for which there are `slots` slots.
fn rig(memory: &Memory, count: u64, slots: u32) -> (Vm, Vec<RegionId>) {
    let policy =
        Deferral::default().policy(Policy::Fixed { exits: EXITS }).costs(Costs::UNMEASURED);
    let mut limits = Limits::x86();
    limits.slots = slots;
    let (vm, _) = open_with(policy, limits);
    let mut c = Changes::new();
    let page = |n| device(2 * n * PAGE, PAGE, memory.hva() + n * PAGE).deferrable();
    let ids = (0..count).map(|n| c.map(page(n))).collect();
    vm.apply(c).unwrap();
    (vm, ids)
}

/// An access to page `n`, as a VMM deals with it: whether it exited.
fn access(vm: &Vm, exits: &Deferred, ids: &[RegionId], n: usize) -> bool {
    let waits = vm.region(ids[n]).unwrap().deferred;
    if waits {
        let served = exits.read(2 * n as u64 * PAGE, &mut [0; 4], |_, _| panic!("a device"));
        if served.due {
            vm.promote_due().unwrap();
        }
    }
    waits
}

fn has_slot(vm: &Vm, ids: &[RegionId]) -> Vec<bool> {
    ids.iter().map(|id| !vm.region(*id).unwrap().deferred).collect()
}

#[test]
fn those_that_earned_it_most_are_mapped() {
    let memory = Memory::new(6);
    let (vm, ids) = rig(&memory, 6, 2);
    let exits = vm.deferred(0).unwrap();
    for (n, times) in [(1, 3), (4, 2), (0, 1)] {
        (0..times).for_each(|_| assert!(access(&vm, &exits, &ids, n)));
    }
    assert!(access(&vm, &exits, &ids, 1), "the fourth: it is due");
    assert_eq!(has_slot(&vm, &ids), [false, true, false, false, true, false]);
    // Another one takes the slot of what earned it with two exits.
    (0..EXITS).for_each(|_| assert!(access(&vm, &exits, &ids, 3)));
    assert_eq!(has_slot(&vm, &ids), [false, true, false, true, false, false]);
    assert_eq!(vm.exits_served(ids[4]).unwrap(), 0, "it starts anew");
    assert_eq!(vm.deferred_count(), 4);
}

/// However much the others have earned.
#[test]
fn nobody_waits_for_ever() {
    let memory = Memory::new(3);
    let (vm, ids) = rig(&memory, 3, 1);
    let exits = vm.deferred(0).unwrap();
    for n in [0, 1, 2, 0, 1, 2, 2, 1] {
        let accesses = (1..100).find(|_| !access(&vm, &exits, &ids, n)).unwrap();
        assert!(accesses <= 5 * EXITS + 1, "{accesses} accesses to {n}");
    }
}

/// A log goes with the slot that is given back, and the region is logged still.
#[test]
fn what_was_written_by_way_of_a_slot_is_dirty_without_it() {
    let memory = Memory::new(4);
    for policy in [HolePolicy::Named, HolePolicy::NoVcpuRuns] {
        let deferral = Deferral::default().policy(Policy::Fixed { exits: EXITS });
        let (vm, model) = open_with(deferral.costs(Costs::UNMEASURED), Limits::x86().with_slots(1));
        vm.set_hole_policy(policy).unwrap();
        let mut c = Changes::new();
        let page = |n: u64| {
            let hva = memory.hva() + 2 * n * PAGE;
            device(4 * n * PAGE, 2 * PAGE, hva).deferrable().log_dirty()
        };
        let ids = [0, 1].map(|n| c.map(page(n)));
        vm.apply(c).unwrap();
        let exits = vm.deferred(0).unwrap();
        let served = |n: u64| exits.read(4 * n * PAGE, &mut [0; 4], |_, _| panic!("a device"));
        (0..EXITS).for_each(|_| _ = served(0));
        vm.promote_due().unwrap().unwrap();
        assert_eq!(has_slot(&vm, &ids), [true, false]);
        model.guest_write(0, PAGE, 4);
        (0..5 * EXITS).for_each(|_| _ = served(1));
        vm.promote_due().unwrap().unwrap();
        assert_eq!(has_slot(&vm, &ids), [false, true]);
        assert!(vm.dirty_log(ids[0]).unwrap().is_dirty(1));
        assert_eq!(vm.dirty_log(ids[0]).unwrap().count(), 0);
    }
}

#[test]
fn no_slot_at_all_is_an_error_and_ends() {
    let memory = Memory::new(2);
    let (vm, ids) = rig(&memory, 2, 1);
    let mut c = Changes::new();
    c.map(device(0x10_0000, PAGE, memory.hva()));
    vm.apply(c).unwrap();
    let exits = vm.deferred(0).unwrap();
    for _ in 0..2 {
        let error = vm.undecoded(&exits).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TooManySlots { .. }), "{error}");
    }
    let error = vm.promote().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TooManySlots { .. }), "{error}");
    // Served they are all the same, and it is not tried at each exit.
    let due = |_: &u64| exits.read(0, &mut [0; 4], |_, _| panic!("a device")).due;
    assert!((0..EXITS - 1).all(|n| !due(&n)));
    assert!(due(&0));
    assert!(vm.promote_due().unwrap().is_none());
    assert!(!due(&0));
    assert_eq!(has_slot(&vm, &ids), [false, false]);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    /// An instruction that needs page `needed` gets it, whatever came before; one
    /// that needs no deferrable page is found to be none of theirs. Both within as
    /// many steps as it takes all pages to have a slot once.
    #[test]
    fn undecoded_always_ends(
        count in 1..12_u64,
        slots in 1..5_u32,
        before in prop::collection::vec(0..12_usize, 0..60),
        needed in prop::option::of(0..12_usize),
        others in 0..3_u32,
    ) {
        let memory = Memory::new(12);
        let (vm, ids) = rig(&memory, count, slots);
        let exits = vm.deferred(0).unwrap();
        let count = ids.len();
        for n in before {
            access(&vm, &exits, &ids, n % count);
        }
        let needed = needed.map(|n| n % count);
        for _ in 0..=others {
            let is_there = || needed.is_some_and(|n| !vm.region(ids[n]).unwrap().deferred);
            let mut steps = 0;
            let mut last = Retry::Reenter;
            while !is_there() && last == Retry::Reenter {
                last = vm.undecoded(&exits).unwrap();
                steps += 1;
                prop_assert!(steps <= count + 2, "{} steps", steps);
            }
            prop_assert_eq!(is_there(), needed.is_some());
            let mapped = has_slot(&vm, &ids).into_iter().filter(|has| *has).count();
            prop_assert!(mapped <= slots as usize);
            // The vCPU gets on, and exits for something.
            let waiting = ids.iter().position(|id| vm.region(*id).unwrap().deferred);
            if let Some(n) = waiting {
                access(&vm, &exits, &ids, n);
            }
        }
    }
}
