//! No page that the guest wrote to is ever forgotten.

use std::collections::BTreeMap;

use kvm_memslots_shim::memory::model::{Call, DirtyTracking, Fault, ModelConfig};
use kvm_memslots_shim::memory::{Carry, How, Op, Plan, SavedDirty, Why};
use kvm_memslots_shim::{Errno, MemFlags, Slot};
use proptest::prelude::*;

use crate::faults::{WAYS, calls};
use crate::script::{PAGE, Script, limits, mapping, range, split};
use crate::worlds::{World, any_changes, planned};

/// Guest pages that are logged, with their host addresses.
fn logged(slots: &[Slot]) -> BTreeMap<u64, u64> {
    slots
        .iter()
        .filter(|slot| slot.mapping.is_logged())
        .flat_map(|slot| {
            let (gpa, size) = (slot.mapping.range().gpa(), slot.mapping.range().size());
            let hva = slot.mapping.hva();
            (0..size / PAGE).map(move |page| (gpa / PAGE + page, hva + page * PAGE))
        })
        .collect()
}

/// The VM of `world` with its guest; between calls it writes only if no one
/// has said that it does not run.
pub(crate) fn vm(world: &World, runs: bool) -> Script {
    let mut vm = Script::new(&world.start);
    for page in &world.written {
        vm.write(*page);
    }
    if runs {
        vm.writes.clone_from(&world.writes);
    }
    vm
}

/// Each page that was logged at the start and is logged at the end, in the
/// same place or because its slot has moved, is reported if it was written to.
pub(crate) fn assert_all_reported(
    world: &World,
    vm: &Script,
    unsure: &[u16],
    saved: &[SavedDirty],
    when: &str,
) {
    let start = logged(&world.start);
    let mut kept = logged(&vm.slots());
    kept.retain(|page, hva| start.get(page) == Some(hva));
    for slot in vm.slots() {
        let same = |old: &&Slot| {
            let range = slot.mapping.range();
            let mapping = old.mapping.moved_to(range.gpa()).unwrap();
            let moved = Slot { mapping, ..**old };
            moved == slot
        };
        kept.extend(logged(world.start.iter().find(same).map(|_| slot).as_slice()));
    }
    let reported = vm.reported_without(unsure, saved);
    for (page, hva) in kept {
        if vm.written().contains(&hva) {
            assert!(reported.contains(&page), "{when}: page {page:#x} is lost, {saved:?}");
        }
    }
}

/// How a plan is carried out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    pub(crate) how: How,
    pub(crate) read_logs: bool,
    /// Nobody has said that it does not.
    pub(crate) guest_runs: bool,
}

/// Each way to carry the plan out that is allowed for it.
pub(crate) fn ways(world: &World) -> Vec<Way> {
    let mut ways = Vec::new();
    for how in WAYS {
        let atomic = matches!(how, How::Batch { .. }) && calls(world, how) == 1;
        if atomic || world.plan.holes.is_empty() {
            ways.push(Way { how, read_logs: false, guest_runs: true });
        } else {
            ways.extend([false, true].map(|read_logs| Way { how, read_logs, guest_runs: false }));
        }
    }
    ways
}

/// Carries the plan out in each way, each call failing once, and then no undo,
/// the first one, or those from the second on. `done` is whether a plan that
/// is done is looked at, too.
fn assert_nothing_is_lost(world: &World, done: bool) {
    for way in ways(world) {
        let start = vm(world, way.guest_runs);
        let mut nth = 1;
        loop {
            let faults = [
                vec![],
                vec![Fault::nth(nth + 1, Errno::EIO)],
                vec![Fault::from_nth(nth + 2, Errno::EIO)],
            ];
            let mut failed = false;
            for mut faults in faults {
                faults.insert(0, Fault::nth(nth, Errno::ENOMEM));
                let when = format!("{way:?}, {faults:?}");
                let vm = start.fork().failing(faults);
                let mut saved = vec![];
                let result = vm.execute(&world.plan, way.how, way.read_logs, &mut saved);
                if result.is_err() || done {
                    assert_all_reported(world, &vm, &[], &saved, &when);
                }
                failed = result.is_err();
            }
            if !failed {
                break;
            }
            nth += 1;
            assert!(nth < 200, "{way:?} is refused whatever fails");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    // That a plan which is done names all that has to be carried is the
    // planner's business: it has not made these.
    #[test]
    fn any_changes_that_open_a_hole(world in any_changes(true)) {
        assert_nothing_is_lost(&world, false);
    }

    #[test]
    fn any_changes_beside_a_running_guest(world in any_changes(false)) {
        assert_nothing_is_lost(&world, false);
    }

    #[test]
    fn plans_of_the_planner(world in planned()) {
        assert_nothing_is_lost(&world, true);
    }

    #[test]
    fn with_logs_read_exactly_what_was_written_is_reported(world in planned()) {
        for how in WAYS {
            let vm = vm(&world, false);
            let mut saved = vec![];
            vm.execute(&world.plan, how, true, &mut saved).unwrap();
            prop_assert!(saved.iter().all(|saved| saved.pages.is_some()));
            let (start, end) = (logged(&world.start), logged(&vm.slots()));
            let reported = vm.reported(&saved);
            for (page, hva) in &end {
                if start.get(page) == Some(hva) {
                    prop_assert_eq!(reported.contains(page), vm.written().contains(hva));
                }
            }
        }
    }
}

#[test]
fn the_carried_pages_of_a_log_are_cut_out_of_it() {
    let (old, plan) = split();
    let vm = Script::new(&[old]);
    for page in [0, 29, 30, 63, 64, 99] {
        vm.write(0x100 + page);
    }
    let earlier = SavedDirty { range: range(0, PAGE), pages: None };
    let mut saved = vec![earlier.clone()];
    vm.execute(&plan, How::PerRegion, true, &mut saved).unwrap();
    let bits = |pages: &[u64]| -> Vec<u64> {
        pages.iter().fold(vec![0; 2], |mut bits, page| {
            bits[(page / 64) as usize] |= 1 << (page % 64);
            bits
        })
    };
    let low =
        SavedDirty { range: plan.carries[0].range, pages: Some(bits(&[0, 29])[..1].to_vec()) };
    let high = SavedDirty { range: plan.carries[1].range, pages: Some(bits(&[0, 33, 34, 69])) };
    assert_eq!(saved, [earlier, low, high]);
}

#[test]
fn with_no_log_read_all_that_is_carried_counts_as_dirty() {
    let (old, plan) = split();
    let vm = Script::new(&[old]);
    let mut saved = vec![];
    vm.execute(&plan, How::PerRegion, false, &mut saved).unwrap();
    let expected = [0, 1].map(|carry| SavedDirty { range: plan.carries[carry].range, pages: None });
    assert_eq!(saved, expected);
    assert_eq!(vm.calls(), 3, "no log was read");
}

#[test]
fn with_a_dirty_ring_all_that_is_carried_counts_as_dirty() {
    let (old, plan) = split();
    let config = ModelConfig::new(limits()).dirty_tracking(DirtyTracking::Ring);
    let vm = Script::with_config(config, &[old]);
    let mut saved = vec![];
    vm.execute(&plan, How::PerRegion, true, &mut saved).unwrap();
    assert_eq!(
        saved.iter().map(|saved| saved.range.size()).sum::<u64>(),
        old.mapping.range().size()
    );
    assert!(saved.iter().all(|saved| saved.pages.is_none()));
}

#[test]
fn a_log_is_read_once_for_all_its_carries() {
    let (old, mut plan) = split();
    // Not grouped by slot.
    plan.carries.push(plan.carries[0]);
    let vm = Script::new(&[old]);
    vm.write(0x100 + 5);
    let mut saved = vec![];
    vm.execute(&plan, How::PerRegion, true, &mut saved).unwrap();
    assert_eq!(vm.calls(), 1 + 3);
    assert_eq!(saved[0], saved[2]);
    assert_eq!(saved[0].pages, Some(vec![1 << 5]));
}

#[test]
fn a_log_that_cannot_be_read_counts_as_all_dirty_and_nothing_changes() {
    let (first, plan) = split();
    let second = {
        let mapping = mapping(0x80_0000, 100 * PAGE, 0x7e00_0000_0000);
        Slot { id: 7, mapping: mapping.with_flags(MemFlags::LOG_DIRTY_PAGES) }
    };
    let mut plan = plan;
    plan.ops.insert(0, Op::Delete(second));
    plan.carries.push(Carry { slot: second, range: range(0x80_0000, PAGE) });
    let fault = Fault::nth(2, Errno::EFAULT).only(Call::GetDirtyLog);
    let vm = Script::new(&[first, second]).failing([fault]);
    vm.write(0x100 + 99);
    let mut saved = vec![];
    let error = vm.execute(&plan, How::PerRegion, true, &mut saved).unwrap_err();
    assert!(matches!(error.why, Why::DirtyLog { slot, errno: Errno::EFAULT } if slot == second));
    assert_eq!(vm.slots(), [first, second]);
    assert_eq!(vm.calls(), 2);
    let read = SavedDirty { range: first.mapping.range(), pages: Some(vec![0, 1 << 35]) };
    let unread = SavedDirty { range: second.mapping.range(), pages: None };
    assert_eq!(saved, [read, unread]);
}

#[test]
fn an_undone_change_of_flags_leaves_no_gap() {
    let (slot, _) = split();
    let off = Op::SetFlags { from: slot, flags: MemFlags::empty() };
    let in_the_way = Op::Create(Slot { id: 1, ..slot });
    let plan = Plan { ops: vec![off, in_the_way], ..Plan::default() };
    let mut vm = Script::new(&[slot]);
    // While the log is off.
    vm.writes = vec![vec![], vec![0x100 + 42]];
    let mut saved = vec![];
    vm.execute(&plan, How::PerRegion, false, &mut saved).unwrap_err();
    assert_eq!(saved, [SavedDirty { range: slot.mapping.range(), pages: None }]);
}

#[test]
fn a_refusal_of_the_first_call_makes_nothing_dirty() {
    let (old, plan) = split();
    let vm = Script::new(&[old]).failing([Fault::nth(1, Errno::ENOMEM)]);
    vm.write(0x100 + 5);
    let mut saved = vec![];
    vm.execute(&plan, How::PerRegion, false, &mut saved).unwrap_err();
    assert!(saved.is_empty());
    assert_eq!(vm.reported(&saved), [0x100 + 5].into());
}

/// The slot of `split`, which goes to GPA 0 first.
fn moved_and_split() -> (Slot, Vec<Op>) {
    let (old, plan) = split();
    let away = Op::Move { from: old, gpa: 0 };
    let moved = away.after().unwrap();
    let mut ops = vec![away, Op::Delete(moved)];
    ops.extend(plan.ops[1..].iter().map(|op| {
        let slot = op.after().unwrap();
        let gpa = slot.mapping.range().gpa() - old.mapping.range().gpa();
        Op::Create(Slot { mapping: slot.mapping.moved_to(gpa).unwrap(), ..slot })
    }));
    ops.push(Op::Delete(Slot { id: 99, ..old }));
    (old, ops)
}

#[test]
fn a_log_that_is_lost_counts_as_dirty_where_its_memory_is_stuck() {
    let (old, ops) = moved_and_split();
    // The last change is refused, and the undo of the one before it.
    let vm = Script::new(&[old]).failing([Fault::nth(6, Errno::EIO)]);
    vm.write(0x100 + 99);
    let mut saved = vec![];
    let plan = Plan { ops, ..Plan::default() };
    let error = vm.execute(&plan, How::PerRegion, false, &mut saved).unwrap_err();
    let Why::Stuck { live, .. } = error.why else { panic!("{error:?}") };
    assert!(live.iter().any(|slot| slot.id == 1 && slot.mapping.range().gpa() == 30 * PAGE));
    assert!(vm.reported(&saved).contains(&99), "{saved:?}");
}

#[test]
fn a_log_that_was_read_counts_as_dirty_where_its_slot_is_stuck() {
    let (old, _) = split();
    let away = Op::Move { from: old, gpa: 0 };
    let ops = vec![away, away.inverse(), Op::Delete(old)];
    let range = old.mapping.range();
    let plan = Plan {
        ops,
        holes: vec![range],
        carries: vec![Carry { slot: old, range }],
        ..Plan::default()
    };
    // The delete is refused, then the undo of the first move.
    let faults = [Fault::nth(4, Errno::ENOMEM), Fault::nth(6, Errno::EIO)];
    let vm = Script::new(&[old]).failing(faults);
    vm.write(0x100 + 99);
    let mut saved = vec![];
    let error = vm.execute(&plan, How::PerRegion, true, &mut saved).unwrap_err();
    let Why::Stuck { live, .. } = error.why else { panic!("{error:?}") };
    assert_eq!(live, [away.after().unwrap()]);
    assert!(vm.reported(&saved).contains(&99), "{saved:?}");
}
