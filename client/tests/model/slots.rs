//! How regions are put into slots where those are few, small, or not to be
//! touched.

use crate::common::{
    self, HVA, PAGE, assert_same_slots, batched, changes, cost, map_all, memory, on_model,
    policies, ram,
};
use kvm_memslots::backend::MemoryModel;
use kvm_memslots::backend::model::memory::{Call, Fault, GuestAccess};
use kvm_memslots::{Changes, Errno, ErrorKind, HolePolicy, Limits, RegionId, RegionSpec, Vm, at};

fn small(slots: u32, policy: HolePolicy) -> (Vm, MemoryModel) {
    on_model(Vm::builder().holes(policy), MemoryModel::new(Limits::x86().with_slots(slots)))
}

/// 510 maps where 509 slots fit: an honest error, and no hole that nobody asked
/// for, in one set or one by one.
#[test]
fn one_map_more_than_there_are_slots() {
    for policy in &policies()[..2] {
        let (vm, model) = small(509, policy.clone());
        let all = |n: u64| changes(|c| (0..n).for_each(|n| _ = c.map(ram(2 * n, 1))));
        let honest = |error: &kvm_memslots::Error| {
            let ErrorKind::TooManySlots { as_id: 0, needed, available, may_join } = error.kind()
            else {
                panic!("{error}");
            };
            assert_eq!((*needed, *available, *may_join), (510, 509, false));
            assert!(error.to_string().contains("gate"), "{error}");
        };
        honest(&vm.apply(all(510)).unwrap_err());
        assert_eq!(cost(&model), (0, 0));
        vm.apply(all(509)).unwrap();
        // One that carries on from another, which could only be joined with a hole.
        for page in [1, 5000] {
            honest(&vm.apply(changes(|c| _ = c.map(ram(page, 1)))).unwrap_err());
        }
        assert_eq!(cost(&model), (509, 509));
        let usage = vm.slot_usage(0).unwrap();
        assert_eq!((usage.used, usage.available, usage.capacity), (509, 0, 509));
        // In the place of another, it fits.
        let there = vm.region_at(0, 0).unwrap().id;
        vm.apply(changes(|c| {
            c.unmap(there);
            c.map(ram(5000, 1));
        }))
        .unwrap();
    }
}

#[test]
fn slots_run_out_last_when_nothing_more_can_be_joined() {
    let (vm, model) = small(4, HolePolicy::NoVcpuRuns);
    // Four contiguous regions, a set each: a slot each, as that is a call each
    // without a hole.
    for n in 0..4 {
        map_all(&vm, [ram(n, 1)]);
    }
    assert_eq!((vm.slots(0).len(), cost(&model)), (4, (4, 4)));
    // A fifth one elsewhere fits once some of them share a slot.
    let far = memory(HVA + 0x10_0000_0000, PAGE);
    let elsewhere = |page: u64| RegionSpec::ram(at(page * PAGE, PAGE), far.clone());
    let report = vm.apply(changes(|c| _ = c.map(elsewhere(100)))).unwrap();
    assert_eq!((report.ioctls, report.slots), (6, 2), "four deletes, two creates");
    assert_same_slots(&vm, &model);
    for page in 0..4 {
        let hva = HVA + page * PAGE;
        assert_eq!(model.guest_at(0, page * PAGE), GuestAccess::Ram { hva });
    }
    let c = changes(|c| (0..4).for_each(|n| _ = c.map(elsewhere(200 + 2 * n))));
    let error = vm.apply(c).unwrap_err();
    let kind = error.kind();
    let honest =
        matches!(kind, ErrorKind::TooManySlots { needed: 6, available: 4, may_join: true, .. });
    assert!(honest, "{error}");
}

/// Where slots are short, a region that grows gets what a loop would make of it: its
/// slot is replaced, as the set names it. Nobody else's is.
/// That much was refused, or only asked for, takes nothing from what comes later.
#[test]
fn slots_are_joined_whatever_was_refused_before() {
    for asked in [false, true] {
        let (vm, model) = small(4, HolePolicy::NoVcpuRuns);
        for page in [0, 1, 10, 20] {
            map_all(&vm, [ram(page, 1)]);
        }
        let two = changes(|c| [30, 40].into_iter().for_each(|page| _ = c.map(ram(page, 1))));
        let refused = if asked { vm.preview(&two).map(drop) } else { vm.apply(two).map(drop) };
        let error = refused.unwrap_err();
        let ErrorKind::TooManySlots { needed: 5, .. } = error.kind() else { panic!("{error}") };
        map_all(&vm, [ram(30, 1)]);
        assert_same_slots(&vm, &model);
    }
}

#[test]
fn what_grows_where_slots_are_short() {
    for policy in policies() {
        let (vm, model) = small(3, policy.clone());
        let spec = |page: u64| {
            let backing = memory(HVA + page * PAGE, 16 * PAGE);
            RegionSpec::ram(at(page * PAGE, PAGE), backing)
        };
        let [grows, logged, _] =
            map_all(&vm, [spec(0), spec(100).log_dirty(), spec(200).permanent()]);
        model.guest_write(0, 100 * PAGE, 1);
        model.reset_counts();
        let before = model.slots(0);
        let grown = vm.apply(changes(|c| c.resize(grows, 2 * PAGE)));
        if let HolePolicy::Refuse = policy {
            let kind = grown.unwrap_err();
            assert!(matches!(kind.kind(), ErrorKind::TooManySlots { .. }), "{kind}");
            assert_eq!(model.slots(0), before);
            continue;
        }
        grown.unwrap();
        assert_eq!((cost(&model), model.slot_count(0)), ((2, 3), 3), "{policy:?}");
        vm.apply(changes(|c| c.resize(logged, 3 * PAGE))).unwrap();
        assert_eq!((cost(&model), model.slot_count(0)), ((2, 3), 3), "{policy:?}");
        assert!(vm.dirty_log(logged).unwrap().is_dirty(0));
        assert_same_slots(&vm, &model);
        // Both at once, and one that needs a slot more is still one too many.
        vm.apply(changes(|c| {
            c.resize(logged, 8 * PAGE);
            c.resize(grows, 8 * PAGE);
        }))
        .unwrap();
        let c = changes(|c| {
            c.resize(grows, 9 * PAGE);
            c.map(ram(300, 1));
        });
        let error = vm.apply(c).unwrap_err();
        let honest = matches!(error.kind(), ErrorKind::TooManySlots { needed: 4, .. });
        assert!(honest, "{error}");
        assert_same_slots(&vm, &model);
    }
}

/// What is in a `guest_memfd`'s slot is gone when the slot is: it is replaced
/// neither for another region's unmap nor when ids run out, under no policy.
#[test]
fn slots_with_a_guest_memfd_are_never_replaced_for_anothers_sake() {
    for batch in [None, Some(64)] {
        for policy in policies() {
            let limits = batched(Limits::x86().with_guest_memfd().with_slots(8), batch);
            let model = MemoryModel::new(limits);
            model.add_guest_memfd(7, 1 << 20);
            let (vm, model) = on_model(Vm::builder().holes(policy.clone()), model);
            let private = |n: u64| {
                let backing = memory(HVA + n * PAGE, PAGE).with_guest_memfd(7, n * PAGE);
                RegionSpec::ram(at(n * PAGE, PAGE), backing).permanent()
            };
            let ids = map_all(&vm, [0, 1, 2, 3].map(private));
            let slots = model.slots(0);
            assert_eq!(slots.len(), 4);
            let [plain] = map_all(&vm, [ram(4, 1)]);
            for page in [5, 6, 7] {
                map_all(&vm, [ram(page, 1)]);
            }
            // Ids run out: those of the others are joined, or none are.
            let result = vm.apply(changes(|c| _ = c.map(ram(100, 1))));
            let may_join =
                batch.is_some() || matches!(policy, HolePolicy::NoVcpuRuns | HolePolicy::Gate(_));
            assert_eq!(result.is_ok(), may_join, "{result:?}");
            assert_eq!(model.slots(0)[..4], slots);
            let _ = vm.apply(changes(|c| c.unmap(plain)));
            assert_eq!(model.slots(0)[..4], slots);
            model.reset_counts();
            vm.apply(changes(|c| c.unmap(ids[1]))).unwrap();
            assert_eq!(
                (model.slots(0)[0], model.slots(0)[1], cost(&model)),
                (slots[0], slots[2], (1, 2))
            );
        }
    }
}

/// KVM's limit is not the VMM's business: what is larger is in several slots.
#[test]
fn a_region_larger_than_a_slot() {
    for batch in [None, Some(64)] {
        let limits = batched(Limits::x86().with_slot_pages(16), batch);
        let (vm, model) = on_model(Vm::builder(), MemoryModel::new(limits));
        let spec = RegionSpec::ram(at(0, 40 * PAGE), memory(HVA, 80 * PAGE));
        let [id] = map_all(&vm, [spec.log_dirty().label("large")]);
        assert_eq!(vm.slots(0).len(), 3);
        assert_same_slots(&vm, &model);
        for page in [0, 15, 16, 39] {
            let hva = HVA + page * PAGE;
            assert_eq!(model.guest_at(0, page * PAGE), GuestAccess::Ram { hva });
            model.guest_write(0, page * PAGE, 1);
        }
        let dirty = vm.dirty_log(id).unwrap();
        assert_eq!(Vec::from_iter(dirty.iter()), [0, 15, 16, 39]);
        model.guest_write(0, 17 * PAGE, 1);
        let logs = vm.dirty_logs().unwrap();
        assert_eq!((logs.len(), Vec::from_iter(logs[0].1.iter())), (1, vec![17]));

        vm.apply(changes(|c| c.resize(id, 80 * PAGE))).unwrap();
        assert_eq!(model.guest_at(0, 79 * PAGE), GuestAccess::Ram { hva: HVA + 79 * PAGE });
        assert!(vm.slots(0).iter().all(|slot| slot.mapping.range().size() <= 16 * PAGE));
        vm.apply(changes(|c| c.set_log_dirty(id, false))).unwrap();
        vm.apply(changes(|c| c.move_to(id, 1000 * PAGE))).unwrap();
        assert_eq!(model.guest_at(0, 1079 * PAGE), GuestAccess::Ram { hva: HVA + 79 * PAGE });
        assert_eq!(model.guest_at(0, 0), GuestAccess::Mmio);
        vm.apply(changes(|c| c.unmap(id))).unwrap();
        assert_eq!(model.slot_count(0), 0);
    }
    // With KVM's own limit, in pieces of whole GiB.
    let (vm, model) = common::vm(Limits::x86());
    map_all(&vm, [RegionSpec::ram(at(1 << 40, 1 << 43), memory(1 << 40, 1 << 43))]);
    let sizes: Vec<_> = model.slots(0).iter().map(|slot| slot.mapping.range().size()).collect();
    assert_eq!(sizes.iter().sum::<u64>(), 1 << 43);
    assert!(sizes.iter().all(|size| size % (1 << 30) == 0 && *size <= Limits::x86().slot_bytes()));
}

/// A region in several slots, as it grew, and one that was split.
fn in_pieces(policy: HolePolicy) -> (Vm, MemoryModel, RegionId, [RegionId; 2]) {
    let (vm, model) = on_model(Vm::builder().holes(policy), MemoryModel::new(Limits::x86()));
    let grows = RegionSpec::ram(at(0, PAGE), memory(HVA, 4 * PAGE));
    let [grown, low] = map_all(&vm, [grows, ram(10, 4)]);
    for pages in 2..=4 {
        vm.apply(changes(|c| c.resize(grown, pages * PAGE))).unwrap();
    }
    let mut c = Changes::new();
    let high = c.split(low, 2 * PAGE);
    vm.apply(c).unwrap();
    assert_eq!(model.slot_count(0), 5);
    model.reset_counts();
    (vm, model, grown, [low, high])
}

#[test]
fn joining_on_request() {
    let (vm, model, grown, _) = in_pieces(HolePolicy::Refuse);
    let join = || changes(|c| c.join(grown));
    let error = vm.apply(join()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hole { named: true, .. }), "{error}");
    assert_eq!(cost(&model), (0, 0));
    for policy in &policies()[1..] {
        let (vm, model, grown, _) = in_pieces(policy.clone());
        vm.apply(changes(|c| c.join(grown))).unwrap();
        assert_eq!((cost(&model), model.slot_count(0)), ((5, 9), 2), "{policy:?}");
        // When it is in one, joining costs nothing.
        vm.apply(changes(|c| c.join(grown))).unwrap();
        assert_eq!(cost(&model), (0, 0));
        assert_same_slots(&vm, &model);
    }
}

/// What replaces all slots of a region anyway makes one of them.
#[test]
fn a_region_that_grew_is_joined_by_what_replaces_its_slots() {
    let ways: [fn(&mut Changes, RegionId); 3] = [
        |c, id| c.move_to(id, 40 * PAGE),
        |c, id| c.set_read_only(id, true),
        |c, id| c.replace(id, memory(HVA + 0x100_0000, 4 * PAGE)),
    ];
    for way in ways {
        let (vm, model, grown, _) = in_pieces(HolePolicy::Named);
        vm.apply(changes(|c| way(c, grown))).unwrap();
        assert_eq!((cost(&model), model.slot_count(0)), ((5, 9), 2));
        assert_same_slots(&vm, &model);
    }
}

/// Regions that were split and have become different are in a slot each, until they
/// are alike again and joined, all of them in one set.
#[test]
fn what_was_split_and_is_alike_again() {
    for batch in [None, Some(64)] {
        let limits = batched(Limits::x86(), batch);
        let builder = Vm::builder().holes(HolePolicy::NoVcpuRuns);
        let (vm, model) = on_model(builder, MemoryModel::new(limits));
        let [low] = map_all(&vm, [ram(0, 8)]);
        let mut c = Changes::new();
        let high = c.split(low, 4 * PAGE);
        vm.apply(c).unwrap();
        assert_eq!(model.slot_count(0), 1, "splitting costs nothing");
        // Different for a moment only, within a set: nothing has happened.
        model.reset_counts();
        let flips = changes(|c| [true, false].into_iter().for_each(|on| c.set_read_only(high, on)));
        vm.apply(flips).unwrap();
        assert_eq!((cost(&model), model.slot_count(0)), ((0, 0), 1));
        for on in [true, false] {
            vm.apply(changes(|c| c.set_read_only(high, on))).unwrap();
            assert_eq!(model.slot_count(0), 2);
        }
        // One of them joined is one of them.
        vm.apply(changes(|c| c.join(low))).unwrap();
        assert_eq!(model.slot_count(0), 2);
        vm.apply(changes(|c| [high, low].into_iter().for_each(|id| c.join(id)))).unwrap();
        assert_eq!(model.slot_count(0), 1);
        assert_same_slots(&vm, &model);
        // And each part goes alone again.
        model.reset_counts();
        vm.apply(changes(|c| [high, low].into_iter().for_each(|id| c.join(id)))).unwrap();
        assert_eq!((cost(&model), model.slot_count(0)), ((0, 0), 1), "they are joined");
        vm.apply(changes(|c| c.unmap(low))).unwrap();
        let [slot] = vm.slots(0)[..] else { panic!("{:?}", vm.slots(0)) };
        assert_eq!(slot.mapping.range(), vm.region(high).unwrap().range);
        assert_same_slots(&vm, &model);
    }
}

/// To map a region and to split it is the same in one set as in two: parts that are
/// alike are in one slot, which is no other region's.
#[test]
fn what_is_mapped_and_split_in_one_set() {
    for batch in [None, Some(64)] {
        let limits = batched(Limits::x86(), batch);
        let (vm, model) = on_model(Vm::builder(), MemoryModel::new(limits));
        let neighbour = map_all(&vm, [ram(0, 2)]);
        model.reset_counts();
        let mut c = Changes::new();
        let first = c.map(ram(2, 8));
        let mut parts = vec![first];
        parts.extend([6, 4, 2].map(|at| c.split(first, at * PAGE)));
        c.set_log_dirty(parts[1], true);
        let alone = c.map(ram(10, 2).alone());
        c.split(alone, PAGE);
        vm.apply(c).unwrap();
        // [2, 8), the logged [8, 10), and two that stand alone.
        assert_eq!(model.slot_count(0), 1 + 4);
        assert_eq!(cost(&model), if batch.is_none() { (4, 4) } else { (1, 1) });
        let whole = model.slots(0).into_iter().find(|slot| slot.mapping.range().size() == 6 * PAGE);
        assert_eq!(whole.map(|slot| slot.mapping.range().gpa()), Some(2 * PAGE));
        // Nobody else notices what becomes of them.
        vm.set_hole_policy(HolePolicy::Named).unwrap();
        for id in parts.into_iter().chain(neighbour) {
            vm.apply(changes(|c| c.unmap(id))).unwrap();
            assert_same_slots(&vm, &model);
        }
        assert_eq!(model.slot_count(0), 2);
    }
}

/// Nearly full, a change of one page costs what is touched.
#[test]
fn nearly_full() {
    for policy in policies() {
        let (vm, model) = small(32_764, policy);
        let mut c = Changes::new();
        let ids: Vec<_> = (0..32_764).map(|n| c.map(ram(2 * n, 1))).collect();
        vm.apply(c).unwrap();
        model.reset_counts();
        for n in 0..200 {
            vm.apply(changes(|c| c.unmap(ids[n * 100]))).unwrap();
            vm.apply(changes(|c| _ = c.map(ram(2 * n as u64 * 100, 1)))).unwrap();
        }
        assert_eq!(cost(&model), (400, 600));
        assert_eq!(vm.slot_usage(0).unwrap().available, 0);
    }
}

/// Where undoing failed there may be less room than there was: what shared a slot
/// because it always had gets one again.
#[test]
fn what_shared_a_slot_shares_one_again_after_a_failure() {
    for policy in policies().into_iter().skip(1) {
        let (vm, model) = small(2, policy);
        let [low, _] = map_all(&vm, [ram(0, 4), ram(100, 1)]);
        vm.apply(changes(|c| _ = c.split(low, 2 * PAGE))).unwrap();
        model.inject(Fault::from_nth(2, Errno::ENOMEM).only(Call::SetRegion));
        let error = vm.apply(changes(|c| c.unmap(low))).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Stuck { .. }), "{error}");
        model.clear_faults();
        vm.apply(Changes::new()).unwrap();
        assert_same_slots(&vm, &model);
        assert_eq!((vm.regions().len(), vm.slots(0).len()), (3, 2));
    }
}
