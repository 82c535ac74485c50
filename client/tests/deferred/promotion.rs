//! When regions get their slots, and which.

use kvm_memslots::backend::Errno;
use kvm_memslots::backend::model::Fault;
use kvm_memslots::deferred::{Costs, Deferral, Deferred, Policy, Retry};
use kvm_memslots::{AddressSpace, Error, Limits, RegionSpec};

use crate::memory::{Memory, PAGE, map, map_now, space, space_with};

fn access(exits: &Deferred, gpa: u64) -> bool {
    let served = exits.read(gpa, &mut [0; 4], |gpa, _| panic!("a device at {gpa:#x}"));
    served.due
}

/// How many accesses it takes until a map is due.
fn accesses_until_due(exits: &Deferred, gpa: u64) -> u64 {
    (1..100_000).find(|_| access(exits, gpa)).unwrap()
}

/// `count` deferrable pages, two apart, so that no two share a slot.
fn scattered(space: &mut AddressSpace, memory: &Memory, count: u64) {
    let mut tx = space.begin();
    for n in 0..count {
        let hva = memory.hva() + n * PAGE;
        map(&mut tx, RegionSpec::device(2 * n * PAGE, PAGE, hva).deferrable());
    }
    tx.commit().unwrap();
}

#[test]
fn due_when_the_exits_have_cost_what_a_slot_does() {
    let memory = Memory::new(1);
    let costs = Costs { map_ns: 30_000, unmap_ns: 60_000, exit_ns: 2_000 };
    let (mut space, _) = space_with(Deferral::default().costs(costs), Limits::x86());
    assert_eq!(space.deferral_costs(), (90_000, 2_000));
    for _ in 0..3 {
        let id = map_now(&mut space, RegionSpec::device(0, PAGE, memory.hva()).deferrable());
        let exits = space.deferred();
        assert_eq!(accesses_until_due(&exits, 0), 45, "from zero after each unmap");
        assert!(access(&exits, 0), "until it is done");
        assert_eq!(space.exits_served(id).unwrap(), 46);
        assert_eq!(space.promote_due().unwrap().unwrap().ioctls, 1);
        assert!(!access(&exits, 0));
        assert!(space.promote_due().unwrap().is_none());
        let mut tx = space.begin();
        tx.unmap(id).unwrap();
        assert_eq!(tx.commit().unwrap().ioctls, 1, "an unmap is never deferred");
    }
}

#[test]
fn all_that_wait_are_mapped_in_one_commit() {
    let memory = Memory::new(8);
    for limits in [Limits::x86(), Limits::x86().with_batch(64)] {
        let policy = Deferral::default().policy(Policy::Fixed { exits: 3 });
        let (mut space, model) = space_with(policy, limits);
        scattered(&mut space, &memory, 8);
        let exits = space.deferred();
        assert_eq!(accesses_until_due(&exits, 4 * PAGE), 3);
        let report = space.promote_due().unwrap().unwrap();
        let ioctls = if limits.batch.is_some() { 1 } else { 8 };
        assert_eq!((report.ioctls, report.grace_periods, report.slots), (ioctls, ioctls, 8));
        assert_eq!((model.lock().slot_count(0), space.deferred_count()), (8, 0));
    }
}

#[test]
fn regions_that_follow_each_other_share_a_slot() {
    let memory = Memory::new(8);
    let (mut space, _) = space(1);
    let mut tx = space.begin();
    for n in 0..8 {
        let spec = RegionSpec::device(n * PAGE, PAGE, memory.hva() + n * PAGE);
        map(&mut tx, spec.deferrable());
    }
    tx.commit().unwrap();
    assert!(access(&space.deferred(), 0));
    let report = space.promote_due().unwrap().unwrap();
    assert_eq!((report.ioctls, report.grace_periods, report.regions_merged), (1, 1, 7));
}

#[test]
fn or_each_by_itself() {
    let memory = Memory::new(4);
    let policy = Deferral::default().policy(Policy::Fixed { exits: 3 }).only_due();
    let (mut space, _) = space_with(policy, Limits::x86());
    scattered(&mut space, &memory, 4);
    let exits = space.deferred();
    assert!(!access(&exits, 0) && !access(&exits, 0));
    assert_eq!(accesses_until_due(&exits, 2 * PAGE), 3);
    assert_eq!(space.promote_due().unwrap().unwrap().ioctls, 1);
    assert_eq!(space.deferred_count(), 3);
    assert!(access(&exits, 0), "what it has cost is not forgotten");
}

/// A thread that was told so and comes late.
#[test]
fn what_was_due_for_another_region_is_not_for_this_one() {
    let memory = Memory::new(2);
    let (mut space, _) = space(2);
    let spec = || RegionSpec::device(0, PAGE, memory.hva()).deferrable();
    let id = map_now(&mut space, spec());
    let exits = space.deferred();
    assert_eq!(accesses_until_due(&exits, 0), 2);
    let mut tx = space.begin();
    tx.unmap(id).unwrap();
    tx.commit().unwrap();
    map_now(&mut space, spec());
    assert!(space.promote_due().unwrap().is_none());
    assert_eq!(space.deferred_count(), 1);
    // Unless the VMM says so.
    assert_eq!(space.promote().unwrap().unwrap().ioctls, 1);
}

#[test]
fn policies_at_their_ends() {
    let memory = Memory::new(1);
    let spec = || RegionSpec::device(0, PAGE, memory.hva()).deferrable();
    let (mut at_once, _) = space(0);
    let id = map_now(&mut at_once, spec());
    assert!(!at_once.region(id).unwrap().deferred);
    assert_eq!(at_once.slot_count(), 1);

    let (mut never, _) = space(u64::MAX);
    map_now(&mut never, spec());
    let exits = never.deferred();
    assert!((0..10_000).all(|_| !access(&exits, 0)));
}

#[test]
fn a_slot_that_has_the_memory_already_stays() {
    let memory = Memory::new(2);
    let (mut space, model) = space(5);
    let spec = || RegionSpec::device(0, 2 * PAGE, memory.hva()).deferrable();
    let id = map_now(&mut space, spec());
    space.promote().unwrap().unwrap();
    model.lock().reset_counts();
    let mut tx = space.begin();
    tx.unmap(id).unwrap();
    let id = map(&mut tx, spec());
    let report = tx.commit().unwrap();
    assert_eq!((report.ioctls, report.regions_cancelled, report.regions_deferred), (0, 1, 0));
    assert!(!space.region(id).unwrap().deferred);
}

#[test]
fn a_promotion_that_fails_is_tried_again_later() {
    let memory = Memory::new(2);
    let (mut space, model) = space(3);
    scattered(&mut space, &memory, 2);
    memory.write(0, &[1, 2, 3, 4]);
    let exits = space.deferred();
    assert_eq!(accesses_until_due(&exits, 0), 3);
    model.lock().inject(Fault::nth(2, Errno::ENOMEM));
    assert!(matches!(space.promote_due(), Err(Error::Refused { errno: Errno::ENOMEM, .. })));
    assert_eq!((space.deferred_count(), space.slot_count()), (2, 0));
    assert_eq!(accesses_until_due(&exits, 0), 3, "not at the next exit");
    assert_eq!(space.promote_due().unwrap().unwrap().ioctls, 2);
}

#[test]
fn what_kvm_cannot_decode_maps_all_and_is_tried_again() {
    let memory = Memory::new(4);
    let policy = Deferral::default().policy(Policy::Fixed { exits: 100 }).only_due();
    let (mut space, _) = space_with(policy, Limits::x86());
    let exits = space.deferred();
    assert_eq!(space.undecoded(&exits).unwrap(), Retry::NotDeferred, "nothing waits");
    scattered(&mut space, &memory, 4);
    // Two vCPUs, both at an instruction that KVM can't decode.
    let other = space.deferred();
    assert_eq!(space.undecoded(&exits).unwrap(), Retry::Reenter);
    assert_eq!((space.deferred_count(), space.slot_count()), (0, 4));
    assert_eq!(space.undecoded(&other).unwrap(), Retry::Reenter, "it was the other's doing");
    // And then it is the VMM's.
    for vcpu in [&exits, &other] {
        assert_eq!(space.undecoded(vcpu).unwrap(), Retry::NotDeferred);
    }
}

#[test]
fn costs_are_measured_where_nobody_says_them() {
    let memory = Memory::new(1);
    let (mut space, _) = space_with(Deferral::default(), Limits::x86());
    assert_eq!(space.deferral_costs(), (300_000, 5_000), "the defaults");
    let id = map_now(&mut space, RegionSpec::ram(PAGE, PAGE, 0x7000_0000_0000));
    let (after_map, _) = space.deferral_costs();
    assert_ne!(after_map, 300_000);
    let mut tx = space.begin();
    tx.unmap(id).unwrap();
    tx.commit().unwrap();
    map_now(&mut space, RegionSpec::device(0, PAGE, memory.hva()).deferrable());
    let exits = space.deferred();
    for _ in 0..100 {
        access(&exits, 0);
    }
    // Nothing exits here: it can't have taken as long as the default says.
    let (_, exit_ns) = space.deferral_costs();
    assert!((500..5_000).contains(&exit_ns), "{exit_ns}");
}
