//! What the documentation says of hole policies, sentence by sentence, against a
//! loop of ioctls.

use std::sync::Arc;

use crate::common;
use crate::common::naive::Loop;
use crate::common::{
    Gate, HVA, PAGE, Reference, Step, assert_same_slots, batched, changes, cost, guest_pages,
    limits, map_all, memory, on_model, policies, ram,
};
use kvm_memslots::backend::MemoryModel;
use kvm_memslots::{Changes, ErrorKind, HolePolicy, Limits, MemFlags, RegionId, RegionSpec, Vm};

const NONE: MemFlags = MemFlags::empty();

const fn map(page: u64, pages: u64, flags: MemFlags) -> Step {
    Step::Map { page, pages, arena: 0, flags, alone: false, permanent: false }
}

/// A single change of the region at page 14, and whether something that is mapped
/// before and after it is not for a moment, call by call. What is mapped first is
/// its own, then what it carries on from in guest and host.
fn single_changes() -> Vec<(&'static str, Vec<Step>, Step, bool)> {
    let plain = || vec![map(14, 4, NONE)];
    let with = |steps: &[Step]| [&plain(), steps].concat();
    vec![
        ("map", plain(), map(18, 2, NONE), false),
        ("unmap", plain(), Step::Unmap(0), false),
        ("unmap a logged one", vec![map(14, 4, MemFlags::LOG_DIRTY_PAGES)], Step::Unmap(0), false),
        ("grow", plain(), Step::Resize(0, 8), false),
        ("shrink to the end of a slot", with(&[Step::Resize(0, 8)]), Step::Resize(0, 4), false),
        ("move to where nothing was", plain(), Step::Move(0, 40), false),
        ("log", plain(), Step::Log(0, true), false),
        ("log no more", with(&[Step::Log(0, true)]), Step::Log(0, false), false),
        ("shrink inside of a slot", plain(), Step::Resize(0, 3), true),
        ("become read-only", plain(), Step::ReadOnly(0, true), true),
        ("become writable", vec![map(14, 4, MemFlags::READONLY)], Step::ReadOnly(0, false), true),
        ("get other memory", plain(), Step::Replace(0, 2), true),
        ("move to where it was in part", plain(), Step::Move(0, 16), true),
    ]
}

/// Each of them under each policy: no call and no grace period more than the
/// loop's, and nothing done to the neighbours.
#[test]
fn a_single_change_is_a_loops_or_less_under_each_policy() {
    for (what, before, step, opens) in single_changes() {
        for batch in [None, Some(16)] {
            let gate = Arc::new(Gate::default());
            let mut all = policies();
            all[3] = HolePolicy::Gate(gate.clone());
            for policy in all {
                let what = format!("{what}, {policy:?}, {batch:?}");
                let builder = Vm::builder().holes(HolePolicy::NoVcpuRuns);
                let (vm, model) = on_model(builder, MemoryModel::new(batched(limits(), batch)));
                let mut naive = Loop::new(MemoryModel::new(limits()));
                let mut reference = Reference::default();
                // On both sides, as the region carries on in guest and host. With
                // the batch ioctl they would share its slot.
                let mut take = |reference: &mut Reference, step: &Step| {
                    let old = reference.clone();
                    let c = changes(|c| reference.take(&vm, c, step));
                    naive.step(&old, reference, step);
                    vm.apply(c)
                };
                for step in before.iter().chain(&[map(10, 4, NONE), map(22, 4, NONE)]) {
                    take(&mut reference, step).unwrap();
                }
                vm.set_hole_policy(policy.clone()).unwrap();
                model.reset_counts();
                naive.model.reset_counts();
                let neighbours = |model: &MemoryModel| {
                    let mut slots = model.slots(0);
                    slots.retain(|slot| [10, 22].contains(&(slot.mapping.range().gpa() / PAGE)));
                    slots
                };
                let beside = neighbours(&model);
                assert_eq!(beside.len(), 2, "{what}");
                let old = (reference.clone(), guest_pages(&model));
                let c = changes(|c| reference.take(&vm, c, &step));
                naive.step(&old.0, &reference, &step);
                let pauses = gate.pauses();
                let refuses = opens && batch.is_none() && matches!(policy, HolePolicy::Refuse);
                if refuses {
                    let error = vm.preview(&c).unwrap_err();
                    assert!(matches!(error.kind(), ErrorKind::Hole { named: true, .. }), "{what}");
                    let error = vm.apply(c).unwrap_err();
                    assert!(matches!(error.kind(), ErrorKind::Hole { named: true, .. }), "{what}");
                    assert_eq!((guest_pages(&model), cost(&model)), (old.1, (0, 0)), "{what}");
                    continue;
                }
                let holes = vm.preview(&c).unwrap().holes;
                assert_eq!(!holes.is_empty(), opens && batch.is_none(), "{what}");
                let report = vm.apply(c).unwrap();
                assert_eq!(guest_pages(&model), reference.pages(), "{what}");
                assert_eq!(neighbours(&model), beside, "{what}");
                let (ours, theirs) = (cost(&model), cost(&naive.model));
                assert!(ours.0 <= theirs.0 && ours.1 <= theirs.1, "{what}: {ours:?} {theirs:?}");
                // vCPUs are paused for a hole, and for nothing else.
                let gated = matches!(policy, HolePolicy::Gate(_)) && opens && batch.is_none();
                assert_eq!(report.vcpus_paused, gated, "{what}");
                assert_eq!(gate.pauses() - pauses, u32::from(gated), "{what}");
            }
        }
    }
}

/// Three regions that share a slot, the one in the middle logged or not.
fn permanent(policy: HolePolicy, batch: Option<u32>) -> (Vm, MemoryModel, [RegionId; 3]) {
    let builder = Vm::builder().holes(policy);
    let (vm, model) = on_model(builder, MemoryModel::new(batched(limits(), batch)));
    let ids = map_all(&vm, [0, 4, 8].map(|page| ram(page, 4).permanent()));
    assert_eq!(model.slot_count(0), 1);
    model.reset_counts();
    (vm, model, ids)
}

type Change = fn(&mut Changes, RegionId);

fn changes_of_one() -> [(&'static str, Change); 6] {
    [
        ("unmap", |c, id| c.unmap(id)),
        ("shrink", |c, id| c.resize(id, PAGE)),
        ("log", |c, id| c.set_log_dirty(id, true)),
        ("read-only", |c, id| c.set_read_only(id, true)),
        ("move", |c, id| c.move_to(id, 100 * PAGE)),
        ("replace", |c, id| c.replace(id, memory(HVA + 0x1000_0000, 4 * PAGE))),
    ]
}

/// A region that shares a slot: its neighbours are not named, so that only a VMM
/// that pauses its vCPUs, or has none running, may replace their slot.
#[test]
fn what_shares_a_slot_is_not_touched_for_another_while_vcpus_run() {
    for (what, change) in changes_of_one() {
        for policy in [HolePolicy::Refuse, HolePolicy::Named] {
            let (vm, model, ids) = permanent(policy, None);
            let slots = model.slots(0);
            let error = vm.apply(changes(|c| change(c, ids[1]))).unwrap_err();
            let ErrorKind::Hole { named, .. } = error.kind() else { panic!("{error}") };
            assert!(!named && error.region().unwrap().id != ids[1], "{what}: {error}");
            assert!(error.to_string().contains("permanent"), "{error}");
            assert_eq!((model.slots(0), cost(&model)), (slots, (0, 0)), "{what}");
        }
        for policy in &policies()[2..] {
            let (vm, _, ids) = permanent(policy.clone(), None);
            let report = vm.apply(changes(|c| change(c, ids[1]))).unwrap();
            assert_eq!(report.vcpus_paused, matches!(policy, HolePolicy::Gate(_)), "{what}");
        }
        // With the batch ioctl there is no such moment.
        let (vm, _, ids) = permanent(HolePolicy::Refuse, Some(64));
        let c = changes(|c| change(c, ids[1]));
        assert!(vm.preview(&c).unwrap().holes.is_empty());
        assert_eq!(vm.apply(c).unwrap().ioctls, 1, "{what}");
    }
    // All of them together are named, all of them.
    let (vm, model, ids) = permanent(HolePolicy::Refuse, None);
    vm.apply(changes(|c| ids.into_iter().for_each(|id| c.set_log_dirty(id, true)))).unwrap();
    assert_eq!(cost(&model), (1, 1));
    let all = changes(|c| ids.into_iter().for_each(|id| c.set_read_only(id, true)));
    let error = vm.apply(all.clone()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hole { named: true, .. }), "{error}");
    vm.set_hole_policy(HolePolicy::Named).unwrap();
    vm.apply(all).unwrap();
    assert_eq!(cost(&model), (2, 3));
    vm.set_hole_policy(HolePolicy::Refuse).unwrap();
    vm.apply(changes(|c| ids.into_iter().for_each(|id| c.unmap(id)))).unwrap();
    assert_eq!(cost(&model), (1, 2));
}

/// What is not marked permanent shares nothing without the batch ioctl, in
/// whatever set it was mapped: unplugging one of many is one delete.
#[test]
fn one_of_many_goes_for_the_price_of_one() {
    for policy in policies() {
        let (vm, model) = on_model(Vm::builder().holes(policy), MemoryModel::new(limits()));
        let mut c = Changes::new();
        let ids: Vec<_> = (0..64).map(|n| c.map(ram(n, 1))).collect();
        vm.apply(c).unwrap();
        assert_eq!(cost(&model), (64, 64));
        for (at, id) in ids.iter().enumerate() {
            let change = changes(|c| match at % 2 {
                0 => c.unmap(*id),
                _ => c.set_log_dirty(*id, true),
            });
            vm.apply(change).unwrap();
            assert_eq!(cost(&model), [(1, 2), (1, 1)][at % 2]);
        }
    }
}

/// The parts of a region that was split are one to whoever split it: a change of
/// one names the other.
#[test]
fn the_parts_of_a_region_that_was_split() {
    for (what, change) in changes_of_one() {
        for upper in [false, true] {
            let (vm, model) = common::vm(limits());
            let [low, other] = map_all(&vm, [ram(0, 8), ram(8, 4)]);
            let mut c = Changes::new();
            let high = c.split(low, 4 * PAGE);
            vm.apply(c).unwrap();
            assert_eq!(model.slot_count(0), 2, "splitting costs nothing");
            let beside = vm.region(other).unwrap();
            let slot = *model.slots(0).last().unwrap();
            let change = changes(|c| change(c, if upper { high } else { low }));
            vm.set_hole_policy(HolePolicy::Refuse).unwrap();
            let error = vm.apply(change.clone()).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Hole { .. }), "{what}: {error}");
            vm.set_hole_policy(HolePolicy::Named).unwrap();
            vm.apply(change).unwrap();
            assert_eq!(vm.region(other).unwrap(), beside);
            assert!(model.slots(0).contains(&slot), "{what}: {slot}");
        }
    }
}

/// What was joined as slots had run out is not named either.
#[test]
fn what_was_joined_for_want_of_slots() {
    let limits = Limits::x86().with_slots(4);
    let builder = Vm::builder().holes(HolePolicy::NoVcpuRuns);
    let (vm, model) = on_model(builder, MemoryModel::new(limits));
    let ids = [0, 1, 2, 3].map(|page| map_all(&vm, [ram(page, 1)])[0]);
    map_all(&vm, [RegionSpec::ram(100 * PAGE..101 * PAGE, memory(HVA, PAGE))]);
    let shared = model.slots(0)[0].mapping.range();
    assert!(shared.size() > PAGE);
    vm.set_hole_policy(HolePolicy::Named).unwrap();
    let error = vm.apply(changes(|c| c.unmap(ids[0]))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hole { named: false, .. }), "{error}");
}

/// A part of a region is mapped anew and split, all in one set: it has nothing to do
/// with the rest any more, and does not keep a slot with that.
#[test]
fn what_is_mapped_and_split_in_one_set_shares_no_slot_with_others() {
    let (vm, model) = on_model(Vm::builder(), MemoryModel::new(limits()));
    let [old] = map_all(&vm, [ram(0, 4)]);
    let mut c = Changes::new();
    let rest = c.split(old, 2 * PAGE);
    c.unmap(old);
    let new = c.map(ram(0, 2));
    c.split(new, PAGE);
    vm.apply(c).unwrap();
    assert_eq!(model.slot_count(0), 2);
    model.reset_counts();
    vm.apply(changes(|c| c.unmap(rest))).unwrap();
    assert_eq!(cost(&model), (1, 2));
    assert_same_slots(&vm, &model);
}

/// Memory that is unmapped and mapped again in one set, cut another way, gets the
/// slots that a loop makes for it: what becomes of a part later is no hole in
/// another, and costs what it costs there.
#[test]
fn memory_cut_another_way() {
    let part = |page: u64, pages: u64| {
        let backing = memory(HVA + page * PAGE, pages * PAGE);
        RegionSpec::ram(page * PAGE..(page + pages) * PAGE, backing)
    };
    let cost = |vm: &Vm, c| {
        let report = vm.apply(c).unwrap();
        (report.ioctls, report.grace_periods)
    };
    // One that becomes ten.
    let (vm, model) = on_model(Vm::builder(), MemoryModel::new(limits()));
    let [old] = map_all(&vm, [part(0, 10)]);
    let mut c = Changes::new();
    c.unmap(old);
    let new: Vec<_> = (0..10).map(|page| c.map(part(page, 1))).collect();
    assert_eq!(cost(&vm, c), (11, 12));
    vm.set_hole_policy(HolePolicy::Refuse).unwrap();
    for id in &new {
        assert_eq!(cost(&vm, changes(|c| c.set_log_dirty(*id, true))), (1, 1));
    }
    for id in new {
        assert_eq!(cost(&vm, changes(|c| c.unmap(id))), (1, 2));
    }
    assert_eq!(model.slots(0).len(), 0);
    // Two that become three, over the border between them, and then one.
    let (vm, model) = on_model(Vm::builder(), MemoryModel::new(limits()));
    let old = map_all(&vm, [part(0, 4), part(4, 4)]);
    let mut c = Changes::new();
    for id in old {
        c.unmap(id);
    }
    let new = [part(0, 2), part(2, 4), part(6, 2)].map(|spec| c.map(spec));
    assert_eq!(cost(&vm, c), (5, 7));
    let mut c = Changes::new();
    for id in new {
        c.unmap(id);
    }
    let whole = c.map(part(0, 8));
    assert_eq!(cost(&vm, c), (4, 7));
    assert_eq!(cost(&vm, changes(|c| c.set_log_dirty(whole, true))), (1, 1));
    assert_eq!(cost(&vm, changes(|c| c.unmap(whole))), (1, 2));
    assert_eq!(model.slots(0).len(), 0);
    // The part of one that was split is one to whoever split it.
    let (vm, model) = on_model(Vm::builder(), MemoryModel::new(limits()));
    let [low] = map_all(&vm, [part(0, 5)]);
    let mut c = Changes::new();
    let high = c.split(low, 2 * PAGE);
    vm.apply(c).unwrap();
    let mut c = Changes::new();
    c.unmap(high);
    let new = c.map(part(2, 3));
    assert_eq!(cost(&vm, c), (3, 4));
    assert_eq!(cost(&vm, changes(|c| c.unmap(new))), (1, 2));
    assert_eq!((vm.region(low).unwrap().range.size(), model.slots(0).len()), (2 * PAGE, 1));
}
