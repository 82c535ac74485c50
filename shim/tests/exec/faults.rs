//! A call fails, whichever it is: the layout is what it was, or the error
//! says what it is.

use kvm_memslots_shim::memory::model::Fault;
use kvm_memslots_shim::memory::{How, MemoryCalls, Op, Why};
use kvm_memslots_shim::{Errno, Slot};
use proptest::prelude::*;

use crate::script::Script;
use crate::worlds::{World, any_changes};

pub(crate) const WAYS: [How; 4] = [
    How::PerRegion,
    How::Batch { max_entries: 1 },
    How::Batch { max_entries: 3 },
    How::Batch { max_entries: 1 << 16 },
];

/// How many calls change something.
pub(crate) fn calls(world: &World, how: How) -> u64 {
    world.plan.cost(how, &mut false).ioctls
}

/// The slots of `all` that `ops` name, by id.
pub(crate) fn named(ops: &[Op], all: Vec<Slot>) -> Vec<Slot> {
    let mut named: Vec<Slot> =
        all.into_iter().filter(|slot| ops.iter().any(|op| op.slot_id() == slot.id)).collect();
    named.sort_by_key(|slot| slot.id);
    named
}

proptest! {
    #[test]
    fn a_plan_that_nothing_stops_is_carried_out(world in any_changes(false)) {
        for how in WAYS {
            let vm = Script::new(&world.start);
            let done = vm.execute(&world.plan, how, false, &mut vec![]).unwrap();
            prop_assert_eq!(done.ioctls, vm.model.counts().ioctls);
            prop_assert_eq!(done.ioctls, calls(&world, how));
            let waited = vm.model.counts().grace_periods;
            match how {
                How::PerRegion => prop_assert_eq!(done.grace_periods, waited),
                // Changes of one slot that amount to nothing cost a batch
                // nothing; no planner makes such a plan.
                How::Batch { .. } => prop_assert!(waited <= done.grace_periods),
            }
            let one_by_one = Script::new(&world.start);
            for op in &world.plan.ops {
                // SAFETY: the model maps nothing.
                unsafe { one_by_one.model.change(0, op) }.unwrap();
            }
            prop_assert_eq!(vm.slots(), one_by_one.slots());
        }
    }

    #[test]
    fn a_call_that_fails_leaves_the_layout_as_it_was(world in any_changes(true)) {
        for how in WAYS {
            let start = Script::new(&world.start);
            for nth in 1..=calls(&world, how) {
                let vm = start.fork().failing([Fault::nth(nth, Errno::ENOMEM)]);
                let error = vm
                    .execute(&world.plan, how, false, &mut vec![])
                    .unwrap_err();
                prop_assert_eq!(vm.slots(), start.slots(), "{:?}, call {}", how, nth);
                let Why::Refused { index, op, errno: Errno::ENOMEM } = error.why else {
                    panic!("{error:?}");
                };
                match how {
                    How::PerRegion => {
                        let index = index.unwrap();
                        prop_assert_eq!(index as u64, nth - 1);
                        prop_assert_eq!(op, Some(world.plan.ops[index]));
                    }
                    How::Batch { .. } => prop_assert_eq!((index, op), (None, None)),
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_undone_is_reported_as_it_is(
        world in any_changes(true),
        picks in any::<(prop::sample::Index, prop::sample::Index)>(),
    ) {
        for how in WAYS {
            let calls = calls(&world, how);
            if calls < 2 {
                continue;
            }
            // The call that fails, and the undo that does: one, or all from
            // there on.
            let nth = 2 + picks.0.index(calls as usize - 1) as u64;
            let undo = nth + 1 + picks.1.index(nth as usize - 1) as u64;
            let undos = [Fault::nth(undo, Errno::EIO), Fault::from_nth(undo, Errno::EIO)];
            for undo in undos {
                let faults = [Fault::nth(nth, Errno::ENOMEM), undo];
                let vm = Script::new(&world.start).failing(faults);
                let error = vm
                    .execute(&world.plan, how, false, &mut vec![])
                    .unwrap_err();
                let Why::Stuck { index, op, errno, undo_errno, live, unsure } = error.why else {
                    panic!("{error:?}");
                };
                prop_assert_eq!((errno, undo_errno), (Errno::ENOMEM, Errno::EIO));
                prop_assert_eq!(index.is_some(), how == How::PerRegion);
                prop_assert_eq!(op, index.map(|index| world.plan.ops[index]));
                prop_assert!(unsure.is_empty() && error.panic.is_none());
                prop_assert_eq!(live, named(&world.plan.ops, vm.slots()));
            }
        }
    }

    #[test]
    fn interruptions_that_do_not_end_are_a_refusal_like_any_other(world in any_changes(true)) {
        let vm = Script::new(&world.start).failing([Fault::every(Errno::EINTR)]);
        let error = vm
            .execute(&world.plan, How::PerRegion, true, &mut vec![])
            .unwrap_err();
        let interrupted = matches!(
            error.why,
            Why::Refused { errno: Errno::EINTR, index: Some(0), .. }
                | Why::DirtyLog { errno: Errno::EINTR, .. }
        );
        prop_assert!(interrupted, "{:?}", error);
        prop_assert_eq!(vm.slots(), Script::new(&world.start).slots());
        prop_assert_eq!(vm.calls(), 1, "a backend has retried already");
    }
}
