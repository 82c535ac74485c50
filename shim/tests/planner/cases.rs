//! Plans of a known shape.

use kvm_memslots_shim::memory::{Extent, How, Op, Plan, PlanError, Request, plan};
use kvm_memslots_shim::{Limits, SlotIds};

use crate::vm::{PAGE, Vm, moved, ram, range};

/// Carries out plans for `layouts` in turn; returns the last one.
fn last_plan(layouts: &[&[Extent]]) -> Plan {
    let mut vm = Vm::default();
    let mut last = Plan::default();
    for wanted in layouts {
        last = vm.plan(wanted, &Limits::x86()).unwrap();
        vm.carry_out(&last);
    }
    last
}

#[test]
fn growth_is_one_create_and_opens_no_hole() {
    let plan = last_plan(&[&[ram(0, 4)], &[ram(0, 8)]]);
    assert_eq!(plan.ops.len(), 1);
    assert_eq!(plan.cost(How::PerRegion, &mut false).grace_periods, 1);
    assert_eq!(plan.holes, []);
}

#[test]
fn a_punched_hole_is_one_delete_and_two_creates() {
    let plan = last_plan(&[&[ram(0, 8)], &[ram(0, 2), ram(4, 4)]]);
    let cost = plan.cost(How::PerRegion, &mut false);
    assert_eq!((cost.ioctls, cost.grace_periods), (3, 4));
    assert_eq!(plan.cost(How::Batch { max_entries: 100 }, &mut false).grace_periods, 2);
    assert_eq!(plan.holes, [range(0, 2 * PAGE), range(4 * PAGE, 4 * PAGE)]);
}

#[test]
fn a_bar_that_moves_is_one_move() {
    let bar = ram(2, 2);
    let target = moved(&bar, 20 * PAGE);
    let plan = last_plan(&[&[bar], &[target]]);
    assert!(matches!(plan.ops[..], [Op::Move { .. }]), "{plan:?}");
    assert_eq!(plan.cost(How::PerRegion, &mut false).grace_periods, 2);
}

#[test]
fn a_bar_that_moves_by_less_than_its_size_is_one_move_too() {
    let bar = ram(2, 4);
    let target = moved(&bar, 3 * PAGE);
    let plan = last_plan(&[&[bar], &[target]]);
    assert!(matches!(plan.ops[..], [Op::Move { .. }]), "{plan:?}");
    assert_eq!(plan.holes, [range(3 * PAGE, 3 * PAGE)]);
}

#[test]
fn bars_that_swap_places_are_a_delete_a_move_and_a_create() {
    let (a, b) = (ram(0, 2), ram(10, 2));
    let swapped = [moved(&b, 0), moved(&a, 10 * PAGE)];
    let plan = last_plan(&[&[a, b], &swapped]);
    assert!(matches!(plan.ops[..], [Op::Delete(_), Op::Move { .. }, Op::Create(_)]), "{plan:?}");
    assert_eq!(plan.holes.len(), 2);
}

#[test]
fn reserved_ids_are_not_given_out() {
    let mut ids = SlotIds::new(8);
    ids.reserve(0..=5);
    let limits = Limits::x86();
    let wanted = [ram(0, 1), ram(2, 1)];
    let request =
        Request { live: &[], wanted: &wanted, ids: &ids, limits: &limits, make_room: None };
    let given: Vec<_> = plan(&request).unwrap().ops.iter().map(Op::slot_id).collect();
    assert_eq!(given, [6, 7]);
    let wanted = [ram(0, 1), ram(2, 1), ram(4, 1)];
    assert_eq!(
        plan(&Request { wanted: &wanted, ..request }).unwrap_err(),
        PlanError::TooManySlots { needed: 3, available: 2 }
    );
}

#[test]
fn extents_that_overlap_are_refused() {
    let error = Vm::default().plan(&[ram(4, 2), ram(0, 5)], &Limits::x86()).unwrap_err();
    assert_eq!(
        error,
        PlanError::Overlap { first: range(0, 5 * PAGE), second: range(4 * PAGE, 2 * PAGE) }
    );
}
