//! Any sequence of transactions ends in exactly the wanted layout, costs no
//! more than a call for each region, and can fail anywhere without a trace.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    PAGE, Reference, Step, assert_same_slots, assert_slots_have_regions, guest_pages, limits,
    on_model, step, transactions,
};
use kvm_memslots::backend::model::{Call, Fault};
use kvm_memslots::backend::{Errno, Model};
use kvm_memslots::{
    AddressSpace, Builder, Error, Executor, HolePolicy, Limits, MemFlags, RegionSpec,
};
use proptest::prelude::*;

fn builder(executor: Executor) -> Builder {
    AddressSpace::builder().executor(executor).holes(HolePolicy::NoVcpuRuns)
}

/// The executors, as options and what the kernel must have for them. The last
/// one needs several batches for most transactions.
fn executors() -> [(Builder, Limits); 3] {
    [
        (builder(Executor::PerRegion), limits()),
        (builder(Executor::Batch), limits().with_batch(4096)),
        (builder(Executor::Batch), limits().with_batch(2)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn ends_in_exactly_the_wanted_layout(all in transactions()) {
        for (builder, limits) in executors() {
            let (mut space, model) = on_model(builder, Model::new(limits));
            let mut reference = Reference::default();
            for (number, steps) in all.iter().enumerate() {
                let before = reference.clone();
                let mut tx = space.begin();
                for step in steps {
                    reference.apply(&mut tx, step);
                }
                if number % 4 == 3 {
                    drop(tx);
                    reference = before;
                } else {
                    let preview = tx.dry_run().unwrap();
                    let counted = model.lock().counts();
                    let report = tx.commit().unwrap();
                    let now = model.lock().counts();
                    prop_assert_eq!(report.ioctls, now.ioctls - counted.ioctls);
                    prop_assert_eq!(
                        report.grace_periods,
                        now.grace_periods - counted.grace_periods
                    );
                    prop_assert_eq!(
                        (preview.ioctls, preview.grace_periods, preview.slots),
                        (report.ioctls, report.grace_periods, report.slots)
                    );
                }
                prop_assert_eq!(guest_pages(&model), reference.pages());
                assert_same_slots(&space, &model);
                assert_slots_have_regions(&space);
                for expected in &reference.regions {
                    let region = space.region(expected.id).unwrap();
                    prop_assert_eq!(region.range.gpa, expected.page * PAGE);
                    prop_assert_eq!(region.range.size, expected.pages * PAGE);
                    prop_assert_eq!(region.hva, expected.hva);
                    prop_assert_eq!(region.flags, expected.flags);
                }
                prop_assert_eq!(space.regions().count(), reference.regions.len());
            }
        }
    }

    /// A merged slot saves calls when it is made and may cost some of them
    /// when it is taken apart: never more than it saved.
    ///
    /// Two things are left out, as they trade calls that come later for grace
    /// periods now. Flags: a part of a slot whose logging is switched, again
    /// and again, is what `alone` is for. And memory that grows: what is new
    /// becomes a slot of its own, without a hole, so that the region is in
    /// several slots when it goes.
    #[test]
    fn never_takes_more_calls_than_one_for_each_region(all in transactions()) {
        let (mut space, model) = on_model(builder(Executor::PerRegion), Model::new(limits()));
        let mut reference = Reference::default();
        let mut one_by_one = 0;
        for (arena, steps) in all.iter().enumerate() {
            let arena = 2 + arena as u64;
            let before = reference.clone();
            let mut tx = space.begin();
            for step in steps {
                match *step {
                    Step::SetFlags(..) => {}
                    Step::Resize(n, pages) => {
                        let len = reference.regions.len();
                        if len > 0 && pages <= reference.regions[n % len].pages {
                            reference.apply(&mut tx, step);
                        }
                    }
                    Step::Map { page, pages, .. } => {
                        let (flags, alone) = (MemFlags::empty(), false);
                        reference.apply(&mut tx, &Step::Map { page, pages, arena, flags, alone });
                    }
                    _ => reference.apply(&mut tx, step),
                }
            }
            tx.commit().unwrap();
            one_by_one += reference.calls_from(&before);
            prop_assert!(model.lock().counts().ioctls <= one_by_one);
        }
    }

    #[test]
    fn a_failure_anywhere_leaves_everything_as_it_was(
        first in prop::collection::vec(step(), 4..16),
        second in prop::collection::vec(step(), 1..10),
    ) {
        for (builder, limits) in executors() {
            let (mut space, model) = on_model(builder, Model::new(limits));
            let mut reference = Reference::default();
            let mut tx = space.begin();
            for step in &first {
                reference.apply(&mut tx, step);
            }
            tx.commit().unwrap();
            let (pages, regions) = (guest_pages(&model), format!("{:?}", Vec::from_iter(space.regions())));

            for k in 1.. {
                let mut tx = space.begin();
                let mut after = reference.clone();
                for step in &second {
                    after.apply(&mut tx, step);
                }
                model.lock().inject(Fault::nth(k, Errno::ENOMEM));
                let outcome = tx.commit();
                model.lock().clear_faults();
                match outcome {
                    Ok(_) => {
                        prop_assert_eq!(guest_pages(&model), after.pages());
                        break;
                    }
                    Err(Error::Refused { errno, .. } | Error::RefusedWhole { errno }) => {
                        prop_assert_eq!(errno, Errno::ENOMEM);
                    }
                    Err(error) => prop_assert!(false, "{}", error),
                }
                prop_assert_eq!(guest_pages(&model), pages.clone());
                prop_assert_eq!(format!("{:?}", Vec::from_iter(space.regions())), regions.clone());
                assert_same_slots(&space, &model);
            }
        }
    }

    #[test]
    fn when_undoing_fails_too_the_error_has_the_truth_and_a_commit_repairs(
        first in prop::collection::vec(step(), 4..16),
        second in prop::collection::vec(step(), 1..10),
        k in 1..6_u64,
    ) {
        let (mut space, model) = on_model(builder(Executor::PerRegion), Model::new(limits()));
        let mut reference = Reference::default();
        let mut tx = space.begin();
        for step in &first {
            reference.apply(&mut tx, step);
        }
        tx.commit().unwrap();

        let mut after = reference.clone();
        let mut tx = space.begin();
        for step in &second {
            after.apply(&mut tx, step);
        }
        model.lock().inject(Fault::from_nth(k, Errno::ENOMEM).only(Call::SetRegion));
        match tx.commit() {
            Ok(_) => return Ok(()),
            Err(Error::Stuck { live, .. }) => {
                let model = model.lock();
                let real = Vec::from_iter(model.slots(0));
                prop_assert!(live.iter().all(|slot| real.contains(slot)), "{:?} {:?}", live, real);
            }
            Err(Error::Refused { .. }) => prop_assert_eq!(guest_pages(&model), reference.pages()),
            Err(error) => prop_assert!(false, "{}", error),
        }
        assert_same_slots(&space, &model);
        model.lock().clear_faults();
        space.begin().commit().unwrap();
        prop_assert_eq!(guest_pages(&model), reference.pages());
        assert_same_slots(&space, &model);
    }
}

#[test]
fn a_pair_that_cancels_costs_nothing() {
    let (mut space, model) = on_model(builder(Executor::PerRegion), Model::new(limits()));
    let spec = || RegionSpec::ram(0, 8 * PAGE, common::HVA);
    let mut tx = space.begin();
    // SAFETY: the model maps nothing.
    let id = unsafe { tx.map(spec()) }.unwrap();
    tx.commit().unwrap();
    let before = model.lock().counts();

    let mut tx = space.begin();
    tx.unmap(id).unwrap();
    // SAFETY: the model maps nothing.
    let again = unsafe { tx.map(spec()) }.unwrap();
    let report = tx.commit().unwrap();
    assert_eq!((report.ioctls, report.grace_periods, report.regions_cancelled), (0, 0, 1));
    assert_eq!(model.lock().counts(), before);
    assert!(matches!(space.region(id), Err(Error::StaleRegion { .. })));
    assert_eq!(space.region(again).unwrap().range.size, 8 * PAGE);
}

#[test]
fn a_leaked_transaction_is_taken_back() {
    let (mut space, model) = on_model(builder(Executor::PerRegion), Model::new(limits()));
    let mut tx = space.begin();
    // SAFETY: the model maps nothing.
    let id = unsafe { tx.map(RegionSpec::ram(0, PAGE, common::HVA)) }.unwrap();
    std::mem::forget(tx);
    let report = space.begin().commit().unwrap();
    assert_eq!(report.ioctls, 0);
    assert_eq!(model.lock().slot_count(0), 0);
    assert!(matches!(space.region(id), Err(Error::StaleRegion { .. })));
}

#[test]
fn close_unmaps_everything() {
    let (mut space, model) = on_model(builder(Executor::PerRegion), Model::new(limits()));
    let mut tx = space.begin();
    for n in 0..10 {
        // SAFETY: the model maps nothing.
        unsafe { tx.map(RegionSpec::ram(n * 2 * PAGE, PAGE, common::HVA)) }.unwrap();
    }
    tx.commit().unwrap();
    assert_eq!(space.close().unwrap().ioctls, 10);
    assert_eq!(model.lock().slot_count(0), 0);
}

#[test]
fn slots_run_out_last_when_nothing_more_can_be_merged() {
    let limits = limits().with_slots(4);
    let (mut space, model) = on_model(builder(Executor::PerRegion), Model::new(limits));
    // Four contiguous regions, one commit each: a slot each, as that is a call
    // each without a hole.
    for n in 0..4 {
        let mut tx = space.begin();
        // SAFETY: the model maps nothing.
        unsafe { tx.map(RegionSpec::ram(n * PAGE, PAGE, common::HVA + n * PAGE)) }.unwrap();
        tx.commit().unwrap();
    }
    assert_eq!(space.slot_count(), 4);
    // A fifth one elsewhere fits once two of them share a slot.
    let mut tx = space.begin();
    // SAFETY: the model maps nothing.
    unsafe { tx.map(RegionSpec::ram(100 * PAGE, PAGE, common::HVA + 0x10_0000_0000)) }.unwrap();
    let report = tx.commit().unwrap();
    assert_eq!((report.ioctls, report.slots), (4, 4), "two deletes, two creates");
    assert_same_slots(&space, &model);

    let mut tx = space.begin();
    for n in 0..4 {
        // SAFETY: the model maps nothing.
        unsafe { tx.map(RegionSpec::ram((200 + 2 * n) * PAGE, PAGE, common::HVA)) }.unwrap();
    }
    let error = tx.commit().unwrap_err();
    assert!(matches!(error, Error::TooManySlots { needed: 6, available: 4 }), "{error}");
}
