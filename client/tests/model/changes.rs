//! Any sequence of sets of changes ends in exactly the wanted layout, costs no
//! more than a loop of ioctls, and can fail anywhere without a trace.

use crate::common;
use crate::common::naive::Loop;
use crate::common::{
    HVA, PAGE, Reference, Step, assert_same_slots, batched, changes, cost, guest_pages, limits,
    map_all, on_model, policies, ram, sets, step,
};
use kvm_memslots::backend::MemoryModel;
use kvm_memslots::backend::model::memory::{Call, Fault};
use kvm_memslots::{
    Builder, Changes, Errno, ErrorKind, Executor, HolePolicy, Limits, MemFlags, Vm,
};
use proptest::prelude::*;

fn builder(executor: Executor) -> Builder {
    Vm::builder().executor(executor).holes(HolePolicy::NoVcpuRuns)
}

/// The executors, as options and what the kernel must have for them. The last
/// one needs several batches for most sets.
fn executors() -> [(Builder, Limits); 3] {
    [
        (builder(Executor::PerRegion), limits()),
        (builder(Executor::Batch), limits().with_batch(4096)),
        (builder(Executor::Batch), limits().with_batch(2)),
    ]
}

fn single() -> (Vm, MemoryModel) {
    on_model(builder(Executor::PerRegion), MemoryModel::new(limits()))
}

/// A set of these steps.
fn set(vm: &Vm, reference: &mut Reference, steps: &[Step]) -> Changes {
    changes(|c| steps.iter().for_each(|step| reference.take(vm, c, step)))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn ends_in_exactly_the_wanted_layout(all in sets()) {
        for (builder, limits) in executors() {
            let (vm, model) = on_model(builder, MemoryModel::new(limits));
            let mut reference = Reference::default();
            for (number, steps) in all.iter().enumerate() {
                let before = reference.clone();
                let c = set(&vm, &mut reference, steps);
                if number % 4 == 3 {
                    drop(c);
                    reference = before;
                } else {
                    model.reset_counts();
                    let preview = vm.preview(&c).unwrap();
                    prop_assert_eq!(cost(&model), (0, 0));
                    let report = vm.apply(c).unwrap();
                    prop_assert_eq!((report.ioctls, report.grace_periods), cost(&model));
                    prop_assert_eq!(
                        (preview.ioctls, preview.grace_periods, preview.slots),
                        (report.ioctls, report.grace_periods, report.slots)
                    );
                }
                prop_assert_eq!(guest_pages(&model), reference.pages());
                assert_same_slots(&vm, &model);
                reference.assert_regions(&vm);
            }
        }
    }

    /// The same under each policy. Some refuse: only holes, and then nothing has
    /// changed; `Named` only for a region that the set does not change.
    #[test]
    fn each_policy_ends_there_or_refuses(all in sets(), batch in prop::option::of(Just(4096))) {
        for policy in policies() {
            let builder = Vm::builder().holes(policy.clone());
            let model = MemoryModel::new(batched(limits(), batch));
            let (vm, model) = on_model(builder, model);
            let mut reference = Reference::default();
            for steps in &all {
                let before = reference.clone();
                let c = changes(|c| {
                    for step in steps {
                        // One that is refused for its hole can't be tried beside
                        // one that is refused for what it is.
                        let valid = reference.clone();
                        let mut with = c.clone();
                        if reference.try_take(&mut with, step) {
                            *c = with;
                        } else {
                            reference = valid;
                        }
                    }
                });
                match vm.apply(c) {
                    Ok(_) => {}
                    Err(error) => {
                        let ErrorKind::Hole { named, .. } = error.kind() else {
                            panic!("{policy:?}: {error}");
                        };
                        prop_assert!(batch.is_none(), "{}", error);
                        match policy {
                            HolePolicy::Refuse => {}
                            HolePolicy::Named => {
                                prop_assert!(!named, "{}", error);
                                let id = error.region().unwrap().id;
                                let find = |all: &Reference| {
                                    all.regions.iter().find(|r| r.id == id).copied()
                                };
                                prop_assert_eq!(find(&before), find(&reference));
                            }
                            _ => prop_assert!(false, "{:?}: {}", policy, error),
                        }
                        reference = before;
                    }
                }
                prop_assert_eq!(guest_pages(&model), reference.pages());
                assert_same_slots(&vm, &model);
                reference.assert_regions(&vm);
            }
        }
    }

    /// What is not permanent costs what it costs in a loop of ioctls, or less:
    /// calls and grace periods, after each set, under each policy that allows
    /// what a loop does, with and without the batch ioctl.
    ///
    /// Logged memory does not move: that is a delete and a create, a grace period
    /// more than KVM's move.
    #[test]
    fn never_costs_more_than_a_loop(all in sets(), batch in prop::option::of(Just(4096))) {
        for policy in &policies()[1..] {
            let builder = Vm::builder().holes(policy.clone());
            let (vm, model) = on_model(builder, MemoryModel::new(batched(limits(), batch)));
            let mut naive = Loop::new(MemoryModel::new(limits()));
            let mut reference = Reference::default();
            for steps in &all {
                let c = changes(|c| {
                    for step in steps {
                        let step = match *step {
                            Step::Join(_) => continue,
                            // KVM would take what is dirty along to where it goes.
                            Step::Move(n, _)
                                if reference.pick(n).is_some_and(|n| reference.regions[n].is_logged()) =>
                            {
                                continue;
                            }
                            Step::Map { page, pages, arena, flags, alone, .. } => {
                                Step::Map { page, pages, arena, flags, alone, permanent: false }
                            }
                            _ => step.clone(),
                        };
                        let before = reference.clone();
                        let mut with = c.clone();
                        if reference.try_take(&mut with, &step) {
                            *c = with;
                            naive.step(&before, &reference, &step);
                        } else {
                            reference = before;
                        }
                    }
                });
                vm.apply(c).unwrap();
                prop_assert_eq!(guest_pages(&model), reference.pages());
                let (ours, theirs) = (model.counts(), naive.model.counts());
                prop_assert!(
                    ours.ioctls <= theirs.ioctls && ours.grace_periods <= theirs.grace_periods,
                    "{:?}: {:?} against {:?}", policy, ours, theirs
                );
            }
        }
    }

    #[test]
    fn a_failure_anywhere_leaves_everything_as_it_was(
        first in prop::collection::vec(step(), 4..16),
        second in prop::collection::vec(step(), 1..10),
    ) {
        let calls = [Call::SetRegion, Call::SetRegions, Call::GetDirtyLog];
        for ((builder, limits), call) in executors().into_iter().flat_map(|e| calls.map(|c| (e.clone(), c))) {
            let (vm, model) = on_model(builder, MemoryModel::new(limits));
            let mut reference = Reference::default();
            let c = set(&vm, &mut reference, &first);
            vm.apply(c).unwrap();
            let (pages, regions) = (guest_pages(&model), vm.regions());

            for k in 1.. {
                let mut after = reference.clone();
                let c = set(&vm, &mut after, &second);
                model.inject(Fault::nth(k, Errno::ENOMEM).only(call));
                let outcome = vm.apply(c);
                model.clear_faults();
                match outcome {
                    Ok(_) => {
                        prop_assert_eq!(guest_pages(&model), after.pages());
                        break;
                    }
                    Err(error) => {
                        let expected = match error.kind() {
                            ErrorKind::Refused { .. } | ErrorKind::RefusedWhole { .. } => {
                                call != Call::GetDirtyLog
                            }
                            ErrorKind::DirtyLog { .. } => call == Call::GetDirtyLog,
                            _ => false,
                        };
                        prop_assert!(expected && error.errno() == Errno::ENOMEM, "{}", error);
                    }
                }
                prop_assert_eq!(guest_pages(&model), pages.clone());
                prop_assert_eq!(vm.regions(), regions.clone());
                assert_same_slots(&vm, &model);
            }
        }
    }

    #[test]
    fn when_undoing_fails_too_the_error_has_the_truth_and_any_set_repairs(
        first in prop::collection::vec(step(), 4..16),
        second in prop::collection::vec(step(), 1..10),
        k in 1..6_u64,
    ) {
        let (vm, model) = single();
        let mut reference = Reference::default();
        let c = set(&vm, &mut reference, &first);
        vm.apply(c).unwrap();

        let c = set(&vm, &mut reference.clone(), &second);
        model.inject(Fault::from_nth(k, Errno::ENOMEM).only(Call::SetRegion));
        match vm.apply(c) {
            Ok(_) => return Ok(()),
            Err(error) => match error.kind() {
                ErrorKind::Stuck { live, .. } => {
                    let real = model.slots(0);
                    let there = live.iter().all(|(as_id, slot)| *as_id == 0 && real.contains(slot));
                    prop_assert!(there, "{:?} {:?}", live, real);
                }
                ErrorKind::Refused { .. } => prop_assert_eq!(guest_pages(&model), reference.pages()),
                _ => prop_assert!(false, "{}", error),
            },
        }
        prop_assert_eq!(vm.slots(0), model.slots(0));
        model.clear_faults();
        vm.apply(Changes::new()).unwrap();
        prop_assert_eq!(guest_pages(&model), reference.pages());
        assert_same_slots(&vm, &model);
    }
}

#[test]
fn a_pair_that_cancels_costs_nothing() {
    let (vm, model) = single();
    let [id] = map_all(&vm, [ram(0, 8)]);
    let before = model.counts();
    let mut c = Changes::new();
    c.unmap(id);
    let again = c.map(ram(0, 8));
    let report = vm.apply(c).unwrap();
    assert_eq!((report.ioctls, report.grace_periods, report.regions_cancelled), (0, 0, 1));
    assert_eq!(model.counts(), before);
    assert!(matches!(vm.region(id).unwrap_err().kind(), ErrorKind::UnknownRegion { .. }));
    assert_eq!(vm.region(again).unwrap().range.size(), 8 * PAGE);
}

#[test]
fn changes_that_are_forgotten_or_dropped_do_nothing() {
    let (vm, model) = single();
    let mut c = Changes::new();
    let id = c.map(ram(0, 1));
    std::mem::forget(c.clone());
    drop(c);
    assert_eq!(vm.apply(Changes::new()).unwrap().ioctls, 0);
    assert_eq!((model.slot_count(0), cost(&model)), (0, (0, 0)));
    assert!(matches!(vm.region(id).unwrap_err().kind(), ErrorKind::UnknownRegion { .. }));
}

#[test]
fn close_unmaps_everything() {
    let (vm, model) = single();
    vm.apply(changes(|c| (0..10).for_each(|n| _ = c.map(ram(n * 2, 1))))).unwrap();
    assert_eq!(vm.close().unwrap().ioctls, 10);
    assert_eq!(model.slot_count(0), 0);
    assert!(vm.regions().is_empty());
}

/// Only what a set comes to counts: two regions swap their places, and one that
/// is in the way for a moment is not in the way.
#[test]
fn regions_can_swap_their_places() {
    for limits in [limits(), limits().with_batch(64)] {
        let (vm, model) = common::vm(limits);
        let [a, b] = map_all(&vm, [ram(0, 4), ram(8, 4)]);
        let c = changes(|c| {
            c.move_to(a, 8 * PAGE);
            c.move_to(b, 0);
            c.set_log_dirty(a, true);
        });
        vm.apply(c).unwrap();
        let expected = [(0..4, 8, MemFlags::empty()), (8..12, 0, MemFlags::LOG_DIRTY_PAGES)];
        let pages = expected.into_iter().flat_map(|(pages, from, flags)| {
            let start = pages.start;
            pages.map(move |page| (page, (HVA + (page - start + from) * PAGE, flags)))
        });
        assert_eq!(guest_pages(&model), pages.collect());
        assert_same_slots(&vm, &model);
    }
}

/// A set can be built piece by piece, without the VM, and on another thread.
#[test]
fn a_set_is_a_value() {
    let (vm, model) = single();
    let built = std::thread::spawn(|| {
        let mut low = changes(|c| _ = c.map(ram(0, 1).permanent().tag(1)));
        low.append(changes(|c| _ = c.map(ram(1, 1).permanent().tag(2))));
        low
    });
    let c = built.join().unwrap();
    assert_eq!((c.len(), c.is_empty()), (2, false));
    let report = vm.apply(c).unwrap();
    assert_eq!((report.ioctls, report.regions_merged, cost(&model)), (1, 1, (1, 1)));
}
