//! A call panics, whichever it is, when it has been carried out or before: what
//! is known is said, and nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Once;

use kvm_memslots_shim::memory::model::Fault;
use kvm_memslots_shim::memory::{Failed, How, Op, Why, check};
use kvm_memslots_shim::{Errno, Slot};
use proptest::prelude::*;

use crate::dirty::{Way, assert_all_reported, vm, ways};
use crate::faults::named;
use crate::script::{Script, split};
use crate::worlds::{World, any_changes, planned};

/// Injected panics are not worth a line each.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let payload = info.payload().downcast_ref::<String>();
            if payload.is_none_or(|payload| payload != "an injected panic") {
                hook(info);
            }
        }));
    });
}

/// Whether `ops` name slot `id` as it is in `now`.
fn possible(ops: &[Op], id: u16, now: Option<&Slot>) -> bool {
    let of = ops.iter().filter(|op| op.slot_id() == id);
    of.flat_map(|op| [op.before(), op.after()]).any(|slot| slot.as_ref() == now)
}

/// What `failed` says against what is there.
fn assert_known(start: &Script, vm: &Script, ops: &[Op], failed: &Failed, when: &str) {
    let now = named(ops, vm.slots());
    match &failed.why {
        Why::Refused { .. } | Why::DirtyLog { .. } => {
            assert_eq!(vm.slots(), start.slots(), "{when}");
        }
        Why::Stuck { live, unsure, .. } => {
            assert!(unsure.is_sorted(), "{when}");
            for id in unsure {
                let slot = now.iter().find(|slot| slot.id == *id);
                assert!(possible(ops, *id, slot), "{when}: slot {id} is {slot:?}");
            }
            let sure = now.iter().filter(|slot| !unsure.contains(&slot.id));
            assert!(sure.eq(live), "{when}: {:?}, not {now:?}", failed.why);
        }
        why => panic!("{when}: {why:?}"),
    }
}

/// The plan in each way, with each call panicking once, before and after it is
/// carried out, and undos that work, fail, or panic, too.
fn assert_panics_are_known(world: &World) {
    quiet();
    for way in ways(world) {
        let start = vm(world, way.guest_runs);
        for nth in 1..200 {
            let mut struck = false;
            for (first, faults) in faults(nth) {
                let when = format!("{way:?}, {faults:?}");
                let vm = start.fork().failing(faults);
                let mut saved = vec![];
                let Way { how, read_logs, .. } = way;
                let Err(failed) = vm.execute(&world.plan, how, read_logs, &mut saved) else {
                    continue;
                };
                struck = true;
                let ops = &world.plan.ops;
                assert_known(&start, &vm, ops, &failed, &when);
                let unsure = match &failed.why {
                    Why::Stuck { unsure, .. } => &unsure[..],
                    _ => &[],
                };
                assert_all_reported(world, &vm, unsure, &saved, &when);
                if first || !unsure.is_empty() {
                    let payload = failed.panic.as_ref().and_then(|panic| panic.downcast_ref());
                    assert_eq!(payload, Some(&"an injected panic".to_owned()), "{when}");
                }
            }
            if !struck {
                break;
            }
        }
    }
}

/// What strikes call `nth` and its undo; and whether the first is a panic.
fn faults(nth: u64) -> Vec<(bool, Vec<Fault>)> {
    let panics = |fault: Fault| [fault.clone().panicking(), fault.panicking_after()];
    let mut all = Vec::new();
    for first in panics(Fault::nth(nth, Errno::ENOMEM)) {
        all.push((true, vec![first.clone()]));
        all.push((true, vec![first.clone(), Fault::nth(nth + 1, Errno::EIO)]));
        for second in panics(Fault::nth(nth + 1, Errno::EIO)) {
            all.push((true, vec![first.clone(), second]));
        }
    }
    for undo in panics(Fault::nth(nth + 1, Errno::EIO)) {
        all.push((false, vec![Fault::nth(nth, Errno::ENOMEM), undo]));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn any_changes_that_open_a_hole(world in any_changes(true)) {
        assert_panics_are_known(&world);
    }

    #[test]
    fn any_changes_beside_a_running_guest(world in any_changes(false)) {
        assert_panics_are_known(&world);
    }

    #[test]
    fn plans_of_the_planner(world in planned()) {
        assert_panics_are_known(&world);
    }
}

/// What is live and unsure when call `nth` of the split panics.
fn split_that_panics(how: How, fault: Fault) -> (Vec<u16>, Vec<u16>, Errno, Errno) {
    quiet();
    let (old, plan) = split();
    let vm = Script::new(&[old]).failing([fault]);
    let failed = vm.execute(&plan, how, false, &mut vec![]).unwrap_err();
    assert!(failed.panic.is_some());
    let Why::Stuck { errno, undo_errno, live, unsure, .. } = failed.why else {
        panic!("{failed:?}");
    };
    (live.iter().map(|slot| slot.id).collect(), unsure, errno, undo_errno)
}

#[test]
fn a_slot_is_unsure_until_kvm_agrees_to_a_change_of_it() {
    let nth = |nth| Fault::nth(nth, Errno::ENOMEM);
    let (eio, einval) = (Errno::EIO, Errno::EINVAL);
    // The delete itself.
    let said = split_that_panics(How::PerRegion, nth(1).panicking());
    assert_eq!(said, (vec![], vec![0], eio, eio));
    // The last create: the rest is undone.
    let said = split_that_panics(How::PerRegion, nth(3).panicking_after());
    // Slot 1 was made: it is in the way of the slot that was deleted.
    assert_eq!(said, (vec![], vec![1], eio, Errno::EEXIST));
    let said = split_that_panics(How::PerRegion, nth(3).panicking());
    assert_eq!(said, (vec![0], vec![1], eio, eio));
    // The first create was made, under the id that is needed to undo the delete.
    let said = split_that_panics(How::PerRegion, nth(2).panicking_after());
    assert_eq!(said, (vec![], vec![0], eio, einval));
    // A batch, as a whole.
    let said = split_that_panics(How::Batch { max_entries: 8 }, nth(1).panicking());
    assert_eq!(said, (vec![], vec![0, 1], eio, eio));
}

#[test]
fn what_was_undone_all_the_same_is_a_refusal() {
    quiet();
    let (old, plan) = split();
    // Not made; and the undo of the delete, of the same id, shows that.
    let fault = Fault::nth(2, Errno::ENOMEM).panicking();
    let vm = Script::new(&[old]).failing([fault]);
    let failed = vm.execute(&plan, How::PerRegion, false, &mut vec![]).unwrap_err();
    assert!(failed.panic.is_some());
    assert_eq!(
        failed.why,
        Why::Refused { index: Some(1), op: Some(plan.ops[1]), errno: Errno::EIO }
    );
    assert_eq!(vm.slots(), [old]);
}

#[test]
fn a_check_and_a_log_that_panic_change_nothing() {
    quiet();
    let (old, plan) = split();
    let vm = || Script::new(&[old]).failing([Fault::nth(1, Errno::ENOMEM).panicking_after()]);
    let checked = vm();
    let failed = check(&checked, 0, &plan, How::Batch { max_entries: 8 }).unwrap_err();
    assert!(matches!(failed.why, Why::Refused { index: None, errno: Errno::EIO, .. }));
    assert!(failed.panic.is_some());
    let read = vm();
    let mut saved = vec![];
    let failed = read.execute(&plan, How::PerRegion, true, &mut saved).unwrap_err();
    assert!(matches!(failed.why, Why::DirtyLog { slot, errno: Errno::EIO } if slot == old));
    assert!(failed.panic.is_some() && saved[0].pages.is_none());
    assert_eq!((checked.slots(), read.slots()), (vec![old], vec![old]));
}

#[test]
fn the_caller_can_go_on_with_the_panic() {
    quiet();
    let (old, plan) = split();
    let vm = Script::new(&[old]).failing([Fault::nth(1, Errno::ENOMEM).panicking()]);
    let failed = vm.execute(&plan, How::PerRegion, false, &mut vec![]).unwrap_err();
    let panic = failed.panic.unwrap();
    let payload = catch_unwind(AssertUnwindSafe(|| -> () { resume_unwind(panic) })).unwrap_err();
    assert!(payload.is::<String>());
}
