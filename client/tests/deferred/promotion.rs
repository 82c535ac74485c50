//! When regions get their slots, and which.

use kvm_memslots::backend::model::memory::Fault;
use kvm_memslots::deferred::{Costs, Deferral, Deferred, Policy, Retry};
use kvm_memslots::{Changes, Errno, ErrorKind, Limits, Vm};

use crate::memory::{Memory, PAGE, device, map_now, open, open_with, ram, unmap_now};

fn access(exits: &Deferred, gpa: u64) -> bool {
    let served = exits.read(gpa, &mut [0; 4], |gpa, _| panic!("a device at {gpa:#x}"));
    served.due
}

/// How many accesses it takes until a map is due.
fn accesses_until_due(exits: &Deferred, gpa: u64) -> u64 {
    (1..100_000).find(|_| access(exits, gpa)).unwrap()
}

/// `count` deferrable pages, two apart, so that no two share a slot.
fn scattered(vm: &Vm, memory: &Memory, count: u64) {
    let mut c = Changes::new();
    for n in 0..count {
        let hva = memory.hva() + n * PAGE;
        c.map(device(2 * n * PAGE, PAGE, hva).deferrable());
    }
    vm.apply(c).unwrap();
}

#[test]
fn due_when_the_exits_have_cost_what_a_slot_does() {
    let memory = Memory::new(1);
    let costs = Costs { map_ns: 30_000, unmap_ns: 60_000, exit_ns: 2_000 };
    let (vm, _) = open_with(Deferral::default().costs(costs), Limits::x86());
    assert_eq!(vm.deferral_costs(), (90_000, 2_000));
    for _ in 0..3 {
        let id = map_now(&vm, device(0, PAGE, memory.hva()).deferrable());
        let exits = vm.deferred(0).unwrap();
        assert_eq!(accesses_until_due(&exits, 0), 45, "from zero after each unmap");
        assert!(access(&exits, 0), "until it is done");
        assert_eq!(vm.exits_served(id).unwrap(), 46);
        assert_eq!(vm.promote_due().unwrap().unwrap().ioctls, 1);
        assert!(!access(&exits, 0));
        assert!(vm.promote_due().unwrap().is_none());
        assert_eq!(unmap_now(&vm, id).ioctls, 1, "an unmap is never deferred");
    }
}

#[test]
fn all_that_wait_are_mapped_in_one_commit() {
    let memory = Memory::new(8);
    for limits in [Limits::x86(), Limits::x86().with_batch(64)] {
        let policy = Deferral::default().policy(Policy::Fixed { exits: 3 });
        let (vm, model) = open_with(policy, limits);
        scattered(&vm, &memory, 8);
        let exits = vm.deferred(0).unwrap();
        assert_eq!(accesses_until_due(&exits, 4 * PAGE), 3);
        let report = vm.promote_due().unwrap().unwrap();
        let ioctls = if limits.batch.is_some() { 1 } else { 8 };
        assert_eq!((report.ioctls, report.grace_periods, report.slots), (ioctls, ioctls, 8));
        assert_eq!((model.slots(0).len(), vm.deferred_count()), (8, 0));
    }
}

/// Those that stay, that is, or all of them with the batch ioctl.
#[test]
fn regions_that_follow_each_other_share_a_slot() {
    let memory = Memory::new(8);
    for (limits, permanent, slots) in [
        (Limits::x86(), true, 1),
        (Limits::x86(), false, 8),
        (Limits::x86().with_batch(64), false, 1),
    ] {
        let policy = Deferral::default().policy(Policy::Fixed { exits: 1 });
        let (vm, _) = open_with(policy, limits);
        let mut c = Changes::new();
        for n in 0..8 {
            let spec = device(n * PAGE, PAGE, memory.hva() + n * PAGE).deferrable();
            c.map(if permanent { spec.permanent() } else { spec });
        }
        vm.apply(c).unwrap();
        assert!(access(&vm.deferred(0).unwrap(), 0));
        let report = vm.promote_due().unwrap().unwrap();
        let cost = (report.ioctls, report.grace_periods, report.regions_merged);
        assert_eq!(cost, (slots, slots, 8 - slots as usize));
    }
}

#[test]
fn or_each_by_itself() {
    let memory = Memory::new(4);
    let policy = Deferral::default().policy(Policy::Fixed { exits: 3 }).only_due();
    let (vm, _) = open_with(policy, Limits::x86());
    scattered(&vm, &memory, 4);
    let exits = vm.deferred(0).unwrap();
    assert!(!access(&exits, 0) && !access(&exits, 0));
    assert_eq!(accesses_until_due(&exits, 2 * PAGE), 3);
    assert_eq!(vm.promote_due().unwrap().unwrap().ioctls, 1);
    assert_eq!(vm.deferred_count(), 3);
    assert!(access(&exits, 0), "what it has cost is not forgotten");
}

/// A thread that was told so and comes late.
#[test]
fn what_was_due_for_another_region_is_not_for_this_one() {
    let memory = Memory::new(2);
    let (vm, _) = open(2);
    let spec = || device(0, PAGE, memory.hva()).deferrable();
    let id = map_now(&vm, spec());
    let exits = vm.deferred(0).unwrap();
    assert_eq!(accesses_until_due(&exits, 0), 2);
    unmap_now(&vm, id);
    map_now(&vm, spec());
    assert!(vm.promote_due().unwrap().is_none());
    assert_eq!(vm.deferred_count(), 1);
    // Unless the VMM says so.
    assert_eq!(vm.promote().unwrap().unwrap().ioctls, 1);
}

#[test]
fn policies_at_their_ends() {
    let memory = Memory::new(1);
    let spec = || device(0, PAGE, memory.hva()).deferrable();
    let (at_once, _) = open(0);
    let id = map_now(&at_once, spec());
    assert!(!at_once.region(id).unwrap().deferred);
    assert_eq!(at_once.slots(0).len(), 1);

    let (never, _) = open(u64::MAX);
    map_now(&never, spec());
    let exits = never.deferred(0).unwrap();
    assert!((0..10_000).all(|_| !access(&exits, 0)));
}

#[test]
fn a_slot_that_has_the_memory_already_stays() {
    let memory = Memory::new(2);
    let (vm, model) = open(5);
    let spec = || device(0, 2 * PAGE, memory.hva()).deferrable();
    let id = map_now(&vm, spec());
    vm.promote().unwrap().unwrap();
    model.reset_counts();
    let mut c = Changes::new();
    c.unmap(id);
    let id = c.map(spec());
    let report = vm.apply(c).unwrap();
    assert_eq!((report.ioctls, report.regions_cancelled, report.regions_deferred), (0, 1, 0));
    assert!(!vm.region(id).unwrap().deferred);
}

#[test]
fn a_promotion_that_fails_is_tried_again_later() {
    let memory = Memory::new(2);
    let (vm, model) = open(3);
    scattered(&vm, &memory, 2);
    memory.write(0, &[1, 2, 3, 4]);
    let exits = vm.deferred(0).unwrap();
    assert_eq!(accesses_until_due(&exits, 0), 3);
    model.inject(Fault::nth(2, Errno::ENOMEM));
    let error = vm.promote_due().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Refused { errno: Errno::ENOMEM, .. }), "{error}");
    assert_eq!((vm.deferred_count(), vm.slots(0).len()), (2, 0));
    assert_eq!(accesses_until_due(&exits, 0), 3, "not at the next exit");
    assert_eq!(vm.promote_due().unwrap().unwrap().ioctls, 2);
}

#[test]
fn what_kvm_cannot_decode_maps_all_and_is_tried_again() {
    let memory = Memory::new(4);
    let policy = Deferral::default().policy(Policy::Fixed { exits: 100 }).only_due();
    let (vm, _) = open_with(policy, Limits::x86());
    let exits = vm.deferred(0).unwrap();
    assert_eq!(vm.undecoded(&exits).unwrap(), Retry::NotDeferred, "nothing waits");
    scattered(&vm, &memory, 4);
    // Two vCPUs, both at an instruction that KVM can't decode.
    let other = vm.deferred(0).unwrap();
    assert_eq!(vm.undecoded(&exits).unwrap(), Retry::Reenter);
    assert_eq!((vm.deferred_count(), vm.slots(0).len()), (0, 4));
    assert_eq!(vm.undecoded(&other).unwrap(), Retry::Reenter, "it was the other's doing");
    // And then it is the VMM's.
    for vcpu in [&exits, &other] {
        assert_eq!(vm.undecoded(vcpu).unwrap(), Retry::NotDeferred);
    }
}

#[test]
fn costs_are_measured_where_nobody_says_them() {
    let memory = Memory::new(1);
    let (vm, _) = open_with(Deferral::default(), Limits::x86());
    assert_eq!(vm.deferral_costs(), (300_000, 5_000), "the defaults");
    let id = map_now(&vm, ram(PAGE, PAGE, 0x7000_0000_0000));
    let (after_map, _) = vm.deferral_costs();
    assert_ne!(after_map, 300_000);
    unmap_now(&vm, id);
    map_now(&vm, device(0, PAGE, memory.hva()).deferrable());
    let exits = vm.deferred(0).unwrap();
    for _ in 0..100 {
        access(&exits, 0);
    }
    // Nothing exits here: it can't have taken as long as the default says.
    let (_, exit_ns) = vm.deferral_costs();
    assert!((500..5_000).contains(&exit_ns), "{exit_ns}");
}
