//! The decisions, each by itself. Sequences of them, with an in-memory KVM:
//! `vm/tests.rs`.

#![allow(clippy::unwrap_used)]

use kvm_memslots::deferred::policy::Policy;

use super::access::{Access, Mmio, Piece};
use super::map::{Entries, PLACES};
use super::policy::Bill;
use super::region::{READONLY, Region, TRAP};
use super::rules::{Rules, Way};
use super::slot::Repair;
use super::slots::{Action, Slots};

const FLASH: Region =
    Region { slot: 1, flags: READONLY, gpa: 0x400_0000, size: 0x10_0000, hva: 0x7000_0000 };

/// Places for slots, left behind when the test ends.
pub(crate) fn entries() -> Entries {
    let places = Vec::from_iter((0..PLACES).map(|_| std::mem::MaybeUninit::uninit()));
    let places: Box<[_; PLACES]> = places.into_boxed_slice().try_into().unwrap();
    Box::leak(places)
}

fn slots(way: Way) -> Slots {
    Slots::new(Rules { way, flips: 4, writable: false }, entries())
}

/// Asks for `region` and has it done: the repairs before it, and what became of
/// it.
fn ask(slots: &mut Slots, region: Region) -> (Vec<Repair>, Action) {
    let plan = slots.plan(&region);
    let mut repairs = Vec::new();
    while let Some(repair) = slots.in_the_way(&region).filter(|_| plan.repairs) {
        slots.repaired(&repair);
        repairs.push(repair);
    }
    slots.done(&region, plan.action);
    (repairs, plan.action)
}

fn action(slots: &mut Slots, region: Region) -> Action {
    let (repairs, action) = ask(slots, region);
    assert_eq!(repairs, []);
    action
}

/// All that would have to be repaired, in order.
fn repairs(slots: &Slots) -> Vec<Repair> {
    let (mut from, mut all) = (0, Vec::new());
    while let Some((at, repair)) = slots.repair(from) {
        from = at + 1;
        all.push(repair);
    }
    all
}

/// `region` is added, and then flipped four times.
fn churned(way: Way, region: Region) -> Slots {
    let mut slots = slots(way);
    for _ in 0..2 {
        assert_eq!(action(&mut slots, region), Action::Pass);
        assert_eq!(action(&mut slots, region.gone()), Action::Pass);
    }
    assert_eq!(action(&mut slots, region), Action::Pass);
    slots
}

#[test]
fn the_trap_bit_is_flipped_once_a_slot_churns() {
    let mut slots = churned(Way::Trap, FLASH);
    for _ in 0..3 {
        assert_eq!(action(&mut slots, FLASH.gone()), Action::Trap(FLASH));
        assert_eq!(action(&mut slots, FLASH), Action::Untrap(FLASH));
    }
    assert_eq!(FLASH.trapping().flags, READONLY | TRAP);
}

#[test]
fn a_slot_that_churns_is_deferred() {
    let mut slots = churned(Way::Defer, FLASH);
    assert_eq!(action(&mut slots, FLASH.gone()), Action::Pass);
    assert_eq!(action(&mut slots, FLASH), Action::Defer);
    assert_eq!(slots.deferred(), 1);
    assert_eq!(action(&mut slots, FLASH.gone()), Action::Forget);
    assert_eq!(action(&mut slots, FLASH), Action::Defer);
    assert_eq!(repairs(&slots), [Repair::Map(FLASH)]);
    slots.repaired(&Repair::Map(FLASH));
    assert_eq!(slots.deferred(), 0);
    assert_eq!(action(&mut slots, FLASH.gone()), Action::Pass);
}

#[test]
fn what_does_not_churn_is_left_alone() {
    let ram = Region { flags: 0, ..FLASH };
    for way in [Way::Trap, Way::Defer] {
        let mut slots = churned(way, ram);
        assert!(!slots.is_managed(ram.slot));
        assert_eq!(action(&mut slots, ram.gone()), Action::Pass);
        assert_eq!(action(&mut slots, ram), Action::Pass);
        let logged = Region { flags: READONLY | 1, ..FLASH };
        assert!(!churned(way, logged).is_managed(logged.slot));
    }
    let mut slots = Slots::new(Rules { way: Way::Trap, flips: 4, writable: true }, entries());
    for _ in 0..3 {
        ask(&mut slots, ram);
        ask(&mut slots, ram.gone());
    }
    assert_eq!(action(&mut slots, ram), Action::Untrap(ram));
}

#[test]
fn a_slot_that_comes_back_elsewhere_begins_anew() {
    let elsewhere = Region { gpa: 0x800_0000, ..FLASH };
    let mut slots = churned(Way::Trap, FLASH);
    ask(&mut slots, FLASH.gone());
    let plan = ask(&mut slots, elsewhere);
    assert_eq!(plan, (vec![Repair::Delete(FLASH)], Action::Pass));
    assert!(!slots.is_managed(FLASH.slot));

    let mut slots = churned(Way::Defer, FLASH);
    ask(&mut slots, FLASH.gone());
    ask(&mut slots, FLASH);
    // A move of what KVM does not have.
    let plan = ask(&mut slots, elsewhere);
    assert_eq!(plan, (vec![Repair::Map(FLASH)], Action::Pass));
}

#[test]
fn what_comes_over_a_slot_finds_what_the_vmm_believes() {
    let over = Region { slot: 2, flags: 0, gpa: FLASH.gpa + 0x1000, size: 0x1000, hva: 0 };
    let beside = Region { gpa: FLASH.gpa + FLASH.size, ..over };
    let other_space = Region { slot: 1 << 16 | 2, ..over };
    for (way, repair) in [(Way::Trap, Repair::Delete(FLASH)), (Way::Defer, Repair::Map(FLASH))] {
        let mut slots = churned(way, FLASH);
        ask(&mut slots, FLASH.gone());
        if way == Way::Defer {
            ask(&mut slots, FLASH);
        }
        assert_eq!(slots.in_the_way(&beside), None);
        assert_eq!(slots.in_the_way(&other_space), None);
        assert_eq!(ask(&mut slots, over), (vec![repair], Action::Pass));
    }
}

/// KVM would say `EEXIST`, and does.
#[test]
fn what_comes_back_over_another_is_not_deferred() {
    let over = Region { slot: 2, gpa: FLASH.gpa + 0x1000, size: 0x1000, ..FLASH };
    let mut slots = churned(Way::Defer, FLASH);
    ask(&mut slots, FLASH.gone());
    ask(&mut slots, over);
    assert_eq!(slots.plan(&FLASH).action, Action::Pass);
}

#[test]
fn a_slot_that_is_not_there_is_deleted_by_kvm() {
    let mut slots = churned(Way::Trap, FLASH);
    ask(&mut slots, FLASH.gone());
    assert_eq!(ask(&mut slots, FLASH.gone()), (vec![Repair::Delete(FLASH)], Action::Pass));
    assert_eq!(slots.plan(&Region { slot: 9, ..FLASH }.gone()).action, Action::Pass);
}

#[test]
fn once_stopped_everything_passes() {
    let mut slots = churned(Way::Trap, FLASH);
    slots.stop();
    assert!(!slots.manages_any());
    assert_eq!(action(&mut slots, FLASH.gone()), Action::Pass);
    assert_eq!(action(&mut slots, FLASH), Action::Pass);
}

const fn mmio(space: u32, gpa: u64, bytes: usize, write: bool) -> Mmio {
    Mmio { space, gpa, bytes, write }
}

/// No second piece.
const NONE: Piece = Piece { hva: 0, bytes: 0 };

fn deferred() -> Slots {
    let mut slots = churned(Way::Defer, FLASH);
    ask(&mut slots, FLASH.gone());
    ask(&mut slots, FLASH);
    slots
}

#[test]
fn reads_of_a_deferred_slot_are_served() {
    let slots = deferred();
    let serve = |offset, bytes| Access::Serve {
        pieces: [Piece { hva: FLASH.hva + offset, bytes }, NONE],
        slot: FLASH.slot,
        deferred: true,
    };
    assert_eq!(slots.access(mmio(0, FLASH.gpa + 5, 2, false)), serve(5, 2));
    let last = FLASH.size - 8;
    assert_eq!(slots.access(mmio(0, FLASH.gpa + last, 8, false)), serve(last, 8));
    // Beyond the end, before the start, in another address space, a write.
    assert_eq!(slots.access(mmio(0, FLASH.gpa + last + 4, 8, false)), Access::Pass);
    assert_eq!(slots.access(mmio(0, FLASH.gpa - 4, 8, false)), Access::Pass);
    assert_eq!(slots.access(mmio(1, FLASH.gpa, 8, false)), Access::Pass);
    assert_eq!(slots.access(mmio(0, FLASH.gpa, 8, true)), Access::Pass);
    assert_eq!(slots.access(mmio(0, u64::MAX, 8, false)), Access::Pass);
}

#[test]
fn an_access_across_two_slots_is_served_from_both() {
    let mut slots = deferred();
    let next = Region { slot: 2, gpa: FLASH.gpa + FLASH.size, hva: 0x9000_0000, ..FLASH };
    ask(&mut slots, next);
    let pieces =
        [Piece { hva: FLASH.hva + FLASH.size - 3, bytes: 3 }, Piece { hva: next.hva, bytes: 5 }];
    let expected = Access::Serve { pieces, slot: FLASH.slot, deferred: true };
    assert_eq!(slots.access(mmio(0, next.gpa - 3, 8, false)), expected);
}

/// It came out before the slot was mapped.
#[test]
fn an_exit_that_races_a_map_is_served() {
    let mut slots = deferred();
    slots.repaired(&Repair::Map(FLASH));
    let pieces = [Piece { hva: FLASH.hva, bytes: 4 }, NONE];
    let expected = Access::Serve { pieces, slot: FLASH.slot, deferred: false };
    assert_eq!(slots.access(mmio(0, FLASH.gpa, 4, false)), expected);
    ask(&mut slots, FLASH.gone());
    assert_eq!(slots.access(mmio(0, FLASH.gpa, 4, false)), Access::Pass);
}

/// What begins beside a slot that churns and goes on in it.
#[test]
fn an_access_into_a_slot_is_served_from_both() {
    let before =
        Region { slot: 2, gpa: FLASH.gpa - 0x1000, size: 0x1000, hva: 0x9000_0000, ..FLASH };
    let mut slots = deferred();
    let access = |slots: &Slots, gpa| slots.access(mmio(0, gpa, 8, false));
    assert_eq!(access(&slots, FLASH.gpa - 3), Access::Pass);
    ask(&mut slots, before);
    let pieces = [Piece { hva: before.hva + 0xffd, bytes: 3 }, Piece { hva: FLASH.hva, bytes: 5 }];
    let expected = Access::Serve { pieces, slot: FLASH.slot, deferred: true };
    assert_eq!(access(&slots, FLASH.gpa - 3), expected);
    assert_eq!(access(&slots, before.gpa), Access::Pass);
}

/// However many there are; beyond what there is room for, they are left alone.
#[test]
fn slots_are_found_by_id() {
    let nth = |n: u32| Region {
        slot: ((n % 2) << 16) | n,
        gpa: 0x1_0000_0000 + u64::from(n) * 0x1000,
        size: 0x1000,
        ..FLASH
    };
    let mut slots = slots(Way::Defer);
    (0..2_000).for_each(|n| assert_eq!(action(&mut slots, nth(n)), Action::Pass));
    let known = slots.iter().count();
    assert!((500..2_000).contains(&known));
    for _ in 0..4 {
        (0..40).for_each(|n| drop((ask(&mut slots, nth(n).gone()), ask(&mut slots, nth(n)))));
    }
    let managed = (0..2_000).filter(|n| slots.is_managed(nth(*n).slot)).count();
    assert!((1..=16).contains(&managed), "{managed}");
    assert!(repairs(&slots).len() == slots.deferred() && slots.deferred() == managed);
    assert_eq!(action(&mut slots, nth(1_999).gone()), Action::Pass);
}

#[test]
fn the_bill_is_due_when_exits_have_cost_as_much_as_the_slots() {
    let mut bill = Bill::new(Policy::RentOrBuy);
    bill.mapped(3_000);
    bill.unmapped(7_000);
    bill.exit(None);
    bill.exit(Some(9_000));
    bill.exit(Some(1_000));
    // The fastest round trip counts.
    assert_eq!(bill.costs().exit_ns, 1_000);
    for _ in 3..10 {
        assert!(!bill.is_due(1));
        bill.exit(None);
    }
    assert!(bill.is_due(1) && !bill.is_due(2) && !bill.is_due(0));
    bill.settled();
    assert!(!bill.is_due(1));
    assert!(Bill::new(Policy::Fixed { exits: 0 }).is_due(1));
}

/// KVM refuses a delete of a page's part, or with flags that it does not know: it is
/// asked, with its slot in place.
#[test]
fn a_delete_that_kvm_may_refuse_is_kvms() {
    let gone = FLASH.gone();
    for odd in [
        Region { hva: gone.hva + 1, ..gone },
        Region { gpa: gone.gpa + 1, ..gone },
        Region { flags: 1 << 9, ..gone },
    ] {
        for way in [Way::Defer, Way::Trap] {
            let mut slots = churned(way, FLASH);
            action(&mut slots, gone);
            action(&mut slots, FLASH);
            let plan = slots.plan(&odd);
            assert_eq!((plan.repairs, plan.action), (true, Action::Pass), "{odd:?}");
        }
        let mut slots = churned(Way::Defer, FLASH);
        action(&mut slots, gone);
        action(&mut slots, FLASH);
        assert_eq!(ask(&mut slots, odd), (vec![Repair::Map(FLASH)], Action::Pass));
    }
}

/// Nor are slots without end looked at for one that there is no room to know.
#[test]
fn a_call_looks_at_as_many_slots_however_many_there_are() {
    let looks = |others: u32| {
        let mut slots = churned(Way::Defer, FLASH);
        // Of two address spaces; the last ones are not known.
        for id in (0..others).flat_map(|id| [id + 2, (id + 2) | (1 << 16)]) {
            let gpa = u64::from(id) << 32;
            ask(&mut slots, Region { slot: id, flags: 0, gpa, ..FLASH });
        }
        let mut most = 0;
        // Its place would be where the first of the others is.
        let unknown = Region { slot: 20 * 1024 + 2, flags: 0, gpa: 1 << 30, ..FLASH };
        for region in [FLASH.gone(), FLASH, unknown, unknown.gone(), FLASH.gone()] {
            let before = slots.looks();
            ask(&mut slots, region);
            slots.access(mmio(0, FLASH.gpa, 8, false));
            most = most.max(slots.looks() - before);
        }
        most
    };
    let few = looks(1);
    assert!((1..200).contains(&few), "{few}");
    for others in [10, 300, 1000, 15_000] {
        let many = looks(others);
        assert!(many <= few + 5 * 32, "{others}: {many}, {few} for one");
    }
}
