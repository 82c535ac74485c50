//! Dirty logs of regions that share slots: what is asked of KVM, parts of a
//! region, last bits, and dirty rings.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::common::{
    self, Gate, HVA, PAGE, assert_same_slots, changes, limits, map_all, memory, on_model, ram,
};
use kvm_memslots::backend::MemoryModel;
use kvm_memslots::backend::model::memory::{DirtyTracking, Fault, ModelConfig};
use kvm_memslots::{
    Builder, Changes, DirtyBitmap, Errno, HolePolicy, RegionId, RegionSpec, Vm, at,
};

fn tracked(builder: Builder, tracking: DirtyTracking) -> (Vm, MemoryModel) {
    on_model(builder, MemoryModel::with_config(ModelConfig::new(limits()).dirty_tracking(tracking)))
}

fn plain(builder: Builder) -> (Vm, MemoryModel) {
    tracked(builder, DirtyTracking::Bitmap)
}

fn write(model: &MemoryModel, pages: &[u64]) {
    for page in pages {
        model.guest_write(0, page * PAGE, 1);
    }
}

fn pages(dirty: &DirtyBitmap) -> Vec<u64> {
    dirty.iter().collect()
}

/// `n` logged regions of two pages that share slots, `of` in each.
fn sharing(vm: &Vm, n: u64, of: u64) -> Vec<RegionId> {
    let mut c = Changes::new();
    let ids = (0..n).map(|n| c.map(ram(n * 2 + n / of, 2).permanent().log_dirty())).collect();
    vm.apply(c).unwrap();
    assert_eq!(vm.slots(0).len() as u64, n / of);
    ids
}

#[test]
fn all_regions_in_one_pass_read_each_slot_once() {
    let (vm, model) = plain(Vm::builder());
    let ids = sharing(&vm, 4096, 64);
    let [other] = map_all(&vm, [ram(20_000, 4)]);
    // Grown, it is in two slots.
    let [grown] = map_all(
        &vm,
        [RegionSpec::ram(30_000 * PAGE..30_002 * PAGE, memory(HVA, 4 * PAGE)).log_dirty()],
    );
    vm.apply(changes(|c| c.resize(grown, 4 * PAGE))).unwrap();
    let page = |n: u64| n * 2 + n / 64;
    write(&model, &[page(5), page(4000) + 1, 20_001, 30_001, 30_003]);
    model.reset_counts();
    let logs = vm.dirty_logs().unwrap();
    assert_eq!(model.counts().get_dirty_log, 64 + 2);
    // Those with a dirty page only.
    assert_eq!(Vec::from_iter(logs.iter().map(|(id, _)| *id)), [ids[5], ids[4000], grown]);
    for (id, dirty) in &logs {
        let expected = match ids.iter().position(|known| known == id) {
            Some(5) => vec![0],
            Some(4000) => vec![1],
            Some(n) => panic!("region {n} is clean"),
            None => vec![1, 3],
        };
        assert_eq!(pages(dirty), expected);
    }
    assert!(vm.dirty_logs().unwrap().is_empty());

    // The same without copies, and in the same order.
    write(&model, &[page(7), page(7) + 1, 30_002]);
    let mut seen = Vec::new();
    vm.for_each_dirty_log(|id, dirty| {
        seen.push(id);
        let expected: &[u64] = if id == grown { &[2] } else { &[0, 1] };
        assert_eq!(Vec::from_iter(dirty.iter()), expected);
        assert_eq!(pages(&dirty.to_bitmap()), expected);
        assert_eq!((dirty.count(), dirty.is_clean()), (expected.len() as u64, false));
        // Nothing is held meanwhile.
        vm.region(id).unwrap();
        if seen.len() == 1 {
            vm.apply(changes(|c| c.unmap(other))).unwrap();
        }
    })
    .unwrap();
    assert_eq!(seen, [ids[7], grown]);
}

/// The slots of another address space are not read, and lose nothing.
#[test]
fn one_address_space_costs_its_slots() {
    let two = ModelConfig::new(limits().with_address_spaces(2));
    let (vm, model) = on_model(Vm::builder(), MemoryModel::with_config(two));
    let ids = sharing(&vm, 8, 2);
    let [smm] = map_all(&vm, [ram(0, 4).log_dirty().address_space(1)]);
    write(&model, &[0, 15]);
    model.guest_write(1, PAGE, 8);
    model.reset_counts();
    let read = |as_id| {
        let mut seen = Vec::new();
        vm.for_each_dirty_log_in(as_id, |id, dirty| seen.push((id, pages(&dirty.to_bitmap()))))
            .map(|()| seen)
    };
    assert_eq!(read(0).unwrap(), [(ids[0], vec![0]), (ids[6], vec![0])]);
    assert_eq!(model.counts().get_dirty_log, 4);
    assert_eq!(read(1).unwrap(), [(smm, vec![1])]);
    assert_eq!(model.counts().get_dirty_log, 5);
    let error = read(2).unwrap_err().to_string();
    assert!(error.starts_with("address space 2 was asked for, this VM has 2"), "{error}");
}

/// One region of several in a slot: one call, and the others lose nothing.
#[test]
fn one_region_costs_one_call_a_slot() {
    let (vm, model) = plain(Vm::builder());
    let ids = sharing(&vm, 8, 8);
    write(&model, &[0, 3, 15]);
    model.reset_counts();
    assert_eq!(pages(&vm.dirty_log(ids[0]).unwrap()), [0]);
    assert_eq!(model.counts().get_dirty_log, 1);
    assert_eq!(pages(&vm.dirty_log(ids[1]).unwrap()), [1]);
    assert_eq!(pages(&vm.dirty_log(ids[7]).unwrap()), [1]);
}

#[test]
fn a_callback_that_panics_loses_nothing() {
    let (vm, model) = plain(Vm::builder());
    let ids = sharing(&vm, 4, 4);
    write(&model, &[0, 3, 7]);
    let read = || vm.for_each_dirty_log(|id, _| assert_ne!(id, ids[1], "a bug"));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).unwrap_err();
    let logs = vm.dirty_logs().unwrap();
    let dirty = |n: usize| logs.iter().find(|(id, _)| *id == ids[n]).map(|(_, d)| pages(d));
    assert_eq!((dirty(1), dirty(3)), (Some(vec![1]), Some(vec![1])));
}

/// Not even those of a region that has moved since they were read.
#[test]
fn a_callback_that_moves_regions_and_panics_loses_nothing() {
    let (vm, model) = plain(Vm::builder().holes(HolePolicy::NoVcpuRuns));
    let ids = sharing(&vm, 4, 4);
    write(&model, &[0, 3, 7]);
    let read = || {
        vm.for_each_dirty_log(|id, _| {
            if id == ids[0] {
                vm.apply(changes(|c| c.move_to(ids[3], 100 * PAGE))).unwrap();
                let unmapped = vm.apply(changes(|c| c.unmap(ids[2]))).unwrap();
                assert_eq!(unmapped.last_dirty.len(), 1);
                std::panic::resume_unwind(Box::new("a bug"));
            }
        })
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).unwrap_err();
    let logs = vm.dirty_logs().unwrap();
    let dirty = |n: usize| logs.iter().find(|(id, _)| *id == ids[n]).map(|(_, d)| pages(d));
    assert_eq!((dirty(0), dirty(1), dirty(3)), (Some(vec![0]), Some(vec![1]), Some(vec![1])));
}

/// A part that is split off and moved in one set takes its dirty pages along; one that
/// is split off and unmapped leaves them in the report.
#[test]
fn what_is_split_off_keeps_its_dirty_pages() {
    for exact in [false, true] {
        let policy = if exact { HolePolicy::NoVcpuRuns } else { HolePolicy::Named };
        let (vm, model) = plain(Vm::builder().holes(policy));
        let [low] = map_all(&vm, [ram(0, 6).log_dirty()]);
        write(&model, &[0, 3, 4]);
        let mut c = Changes::new();
        let middle = c.split(low, 2 * PAGE);
        let high = c.split(middle, 2 * PAGE);
        c.move_to(middle, 100 * PAGE);
        c.unmap(high);
        let report = vm.apply(c).unwrap();
        let [(part, last)] = &report.last_dirty[..] else { panic!("{report:?}") };
        assert_eq!((part.id, part.range.gpa()), (high, 4 * PAGE));
        assert_eq!((last.pages(), last.is_dirty(0)), (2, true));
        let dirty = vm.dirty_log(middle).unwrap();
        assert_eq!((dirty.pages(), dirty.is_dirty(1)), (2, true));
        let stays = vm.dirty_log(low).unwrap();
        assert!(stays.is_dirty(0));
        if exact {
            assert_eq!((pages(last), pages(&dirty), pages(&stays)), (vec![0], vec![1], vec![0]));
        }
    }
}

/// What a region loses of its memory leaves its dirty pages in the report, as what is
/// unmapped does; what stays keeps its own.
#[test]
fn what_a_region_loses_leaves_its_dirty_pages() {
    for exact in [false, true] {
        let policy = if exact { HolePolicy::NoVcpuRuns } else { HolePolicy::Named };
        let (vm, model) = plain(Vm::builder().holes(policy));
        let [id] = map_all(&vm, [ram(0, 6).log_dirty().label("a")]);
        write(&model, &[1, 4]);
        let report = vm.apply(changes(|c| c.resize(id, 3 * PAGE))).unwrap();
        let [(cut, last)] = &report.last_dirty[..] else { panic!("{report:?}") };
        assert_eq!((cut.id, cut.range.gpa(), cut.hva), (id, 3 * PAGE, HVA + 3 * PAGE));
        assert_eq!((pages(last), last.pages(), cut.label.as_deref()), (vec![1], 3, Some("a")));
        let stays = vm.dirty_log(id).unwrap();
        assert!(stays.is_dirty(1) && (!exact || stays.count() == 1));
        // Moved and cut, and other memory.
        write(&model, &[0, 2]);
        let mut c = changes(|c| c.move_to(id, 100 * PAGE));
        c.resize(id, 2 * PAGE);
        let report = vm.apply(c).unwrap();
        let [(cut, last)] = &report.last_dirty[..] else { panic!("{report:?}") };
        assert_eq!((cut.range.gpa(), pages(last)), (2 * PAGE, vec![0]));
        write(&model, &[101]);
        let other = memory(HVA + 100 * PAGE, 2 * PAGE);
        let report = vm.apply(changes(|c| c.replace(id, other))).unwrap();
        let [(was, last)] = &report.last_dirty[..] else { panic!("{report:?}") };
        assert_eq!((was.id, was.range.gpa(), was.hva), (id, 100 * PAGE, HVA));
        assert!(last.is_dirty(1) && (!exact || pages(last) == [0, 1]));
        assert_eq!(vm.dirty_log(id).unwrap().count(), 0);
    }
}

/// The same memory is mapped a second time in the set that moves it: whichever of the
/// two KVM's slot becomes, the one that moves has its dirty pages.
#[test]
fn what_moves_beside_an_alias_keeps_its_dirty_pages() {
    for alias in [3, 6, 12, 30] {
        for policy in [HolePolicy::Named, HolePolicy::NoVcpuRuns] {
            let (vm, model) = plain(Vm::builder().holes(policy));
            let [id] = map_all(&vm, [ram(15, 1).log_dirty()]);
            write(&model, &[15]);
            let mut c = Changes::new();
            c.move_to(id, 9 * PAGE);
            let same = memory(HVA + 15 * PAGE, PAGE);
            c.map(RegionSpec::ram(at(alias * PAGE, PAGE), same).log_dirty());
            vm.apply(c).unwrap();
            assert_eq!(pages(&vm.dirty_log(id).unwrap()), [0], "alias at {alias}");
        }
    }
}

#[test]
fn parts_of_a_region() {
    let (vm, model) = plain(Vm::builder());
    let [_, id] = map_all(&vm, [0, 100].map(|page| ram(page, 100).permanent().log_dirty()));
    write(&model, &[99, 100, 163, 164, 199]);
    assert_eq!(pages(&vm.dirty_log_of(id, 63..65).unwrap()), [0, 1]);
    let first = vm.dirty_log_of(id, 0..63).unwrap();
    assert_eq!((first.pages(), pages(&first)), (63, vec![0]));
    assert_eq!(pages(&vm.dirty_log(id).unwrap()), [99], "the rest");
    assert_eq!(pages(&vm.dirty_log_of(id, 0..100).unwrap()), [0; 0]);
}

/// Clearing by range, with bits of neighbours in the same word of KVM's bitmap.
#[test]
fn parts_of_a_region_are_cleared() {
    let builder = Vm::builder().manual_dirty_log(true);
    let (vm, model) = tracked(builder, DirtyTracking::ManualProtect { initially_set: false });
    let [low, id] = map_all(&vm, [0, 100].map(|page| ram(page, 100).permanent().log_dirty()));
    write(&model, &[99, 100, 101, 163, 164, 199]);
    let mut bits = DirtyBitmap::new(2);
    bits.set(0, 2);
    vm.clear_dirty_log(id, 63, &bits).unwrap();
    assert_eq!(pages(&vm.dirty_log(id).unwrap()), [0, 1, 99]);
    // A bit that is not set stays dirty.
    let mut bits = DirtyBitmap::new(2);
    bits.set(1, 1);
    vm.clear_dirty_log(id, 0, &bits).unwrap();
    assert_eq!(pages(&vm.dirty_log(id).unwrap()), [0, 99]);
    let mut bits = DirtyBitmap::new(1);
    bits.set(0, 1);
    vm.clear_dirty_log(id, 99, &bits).unwrap();
    assert_eq!(pages(&vm.dirty_log(id).unwrap()), [0]);
    assert_eq!(pages(&vm.dirty_log(low).unwrap()), [99]);
}

/// The last bits of what is unmapped come with the report, also of what was read
/// before for another's sake.
#[test]
fn last_bits_come_with_the_report() {
    for policy in &common::policies()[1..] {
        let (vm, model) = plain(Vm::builder().holes(policy.clone()));
        let [a, b] = map_all(&vm, [0, 10].map(|page| ram(page, 10).log_dirty()));
        let [plain] = map_all(&vm, [ram(30, 1)]);
        write(&model, &[2, 15, 30]);
        vm.dirty_log(a).unwrap();
        write(&model, &[4]);
        let report =
            vm.apply(changes(|c| [a, b, plain].into_iter().for_each(|id| c.unmap(id)))).unwrap();
        let last = report.last_dirty.iter().map(|(region, dirty)| (region.id, pages(dirty)));
        let mut last: Vec<_> = last.collect();
        last.sort();
        assert_eq!(last, [(a, vec![4]), (b, vec![5])], "{policy:?}");
    }
    // Of one of several in a slot; those of the others stay.
    let (vm, model) = plain(Vm::builder().holes(HolePolicy::NoVcpuRuns));
    let ids = sharing(&vm, 3, 3);
    write(&model, &[1, 2, 5]);
    let was = vm.region(ids[1]).unwrap();
    let report = vm.apply(changes(|c| c.unmap(ids[1]))).unwrap();
    let [(region, last)] = &report.last_dirty[..] else { panic!("{report:?}") };
    assert_eq!((region, pages(last)), (&was, vec![0]));
    let left = [0, 2].map(|n| pages(&vm.dirty_log(ids[n]).unwrap()));
    assert_eq!(left, [[1], [1]]);
}

/// A set that fails, or is never applied, eats no bits.
#[test]
fn a_set_that_fails_eats_no_bits() {
    let (vm, model) = plain(Vm::builder().holes(HolePolicy::NoVcpuRuns));
    let ids = sharing(&vm, 3, 3);
    write(&model, &[1, 2, 5]);
    let unmap = || changes(|c| c.unmap(ids[1]));
    vm.preview(&unmap()).unwrap();
    std::mem::forget(unmap());
    model.inject(Fault::nth(3, Errno::ENOMEM));
    vm.apply(unmap()).unwrap_err();
    model.clear_faults();
    let dirty = [0, 1, 2].map(|n| pages(&vm.dirty_log(ids[n]).unwrap()));
    assert_eq!(dirty, [[1], [0], [1]]);
}

/// With a dirty ring KVM has no bitmaps: what was replaced while vCPUs run is in
/// the overlay, and that can be read all the same.
#[test]
fn the_overlay_is_readable_with_a_dirty_ring() {
    let (vm, _) = tracked(Vm::builder(), DirtyTracking::Ring);
    let [a, b] = map_all(&vm, [0, 10].map(|page| ram(page, 10).log_dirty()));
    assert_eq!(vm.dirty_log(a).unwrap().count(), 0);
    vm.apply(changes(|c| c.resize(b, 3 * PAGE))).unwrap();
    assert_eq!(pages(&vm.dirty_log_of(b, 1..2).unwrap()), [0]);
    let mut bits = DirtyBitmap::new(1);
    bits.set(0, 1);
    vm.clear_dirty_log(b, 0, &bits).unwrap();
    let logs = vm.dirty_logs().unwrap();
    let [(id, dirty)] = &logs[..] else { panic!("{logs:?}") };
    assert_eq!((*id, pages(dirty)), (b, vec![2]));
    let report = vm.apply(changes(|c| c.unmap(a))).unwrap();
    assert_eq!(report.last_dirty.len(), 1);
}

/// A ring is emptied when vCPUs are paused and before the first change: each of
/// its entries leads to the region whose page was written.
#[test]
fn a_ring_is_harvested_before_slots_go() {
    let gate = Arc::new(Gate::default());
    let (calls, ring) = (Arc::new(AtomicU32::new(0)), Arc::new(Mutex::new(Vec::new())));
    let harvested = Arc::new(Mutex::new(Vec::new()));
    let builder = {
        let (calls, ring, harvested) = (calls.clone(), ring.clone(), harvested.clone());
        Vm::builder().gate(gate.clone()).harvest(move |vm| {
            calls.fetch_add(1, Ordering::SeqCst);
            for (slot, page) in std::mem::take(&mut *ring.lock().unwrap()) {
                let (region, page) = vm.region_at_slot(0, slot, page).unwrap();
                harvested.lock().unwrap().push((region.id, page));
            }
            // Changes have to wait.
            let error = vm.apply(Changes::new()).unwrap_err();
            assert_eq!(error.errno(), Errno::EDEADLK);
        })
    };
    let (vm, model) = tracked(builder, DirtyTracking::Ring);
    let [a, b, c] = map_all(&vm, [0, 10, 20].map(|page| ram(page, 10).permanent().log_dirty()));
    let slot = vm.slots(0)[0].id;
    ring.lock().unwrap().extend([(slot, 3), (slot, 12), (slot, 29)]);
    model.reset_counts();
    // The slot goes, and its id is another's afterwards.
    vm.apply(changes(|set| {
        set.unmap(a);
        set.map(ram(100, 10).log_dirty());
    }))
    .unwrap();
    assert_eq!(*harvested.lock().unwrap(), [(a, 3), (b, 2), (c, 9)]);
    assert_eq!((calls.load(Ordering::SeqCst), gate.pauses()), (1, 1));
    // Nothing that is logged goes: nothing to harvest.
    vm.apply(changes(|set| _ = set.map(ram(200, 1)))).unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    // A single region that goes by the short way is harvested, too.
    vm.apply(changes(|set| set.unmap(vm.region_at(0, 100 * PAGE).unwrap().id))).unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

/// The set that a migration begins with, and others that look like it.
#[test]
fn a_set_of_flags_is_a_call_a_slot_and_no_more() {
    let (vm, model) = plain(Vm::builder());
    let ids: [RegionId; 20] = map_all(&vm, std::array::from_fn(|n| ram(8 * n as u64, 2)));
    let log = |on: bool| changes(|c| ids.iter().for_each(|id| c.set_log_dirty(*id, on)));
    let logged = || vm.slots(0).iter().filter(|slot| slot.mapping.is_logged()).count();
    let report = vm.apply(log(true)).unwrap();
    assert_eq!((report.ioctls, report.grace_periods, logged()), (20, 20, 20));
    assert_same_slots(&vm, &model);
    // Nothing is to be done, or for some only.
    assert_eq!(vm.apply(log(true)).unwrap().ioctls, 0);
    let some = changes(|c| ids[..9].iter().for_each(|id| c.set_log_dirty(*id, false)));
    assert_eq!((vm.apply(some).unwrap().ioctls, logged()), (9, 11));
    assert_eq!((vm.apply(log(true)).unwrap().ioctls, logged()), (9, 20));

    // One goes, one moves, two change places: KVM moves those that it can.
    let mut more = log(false);
    more.unmap(ids[3]);
    more.move_to(ids[4], 4096 * PAGE);
    more.move_to(ids[5], 8 * 6 * PAGE);
    more.move_to(ids[6], 8 * 5 * PAGE);
    vm.apply(more).unwrap();
    assert_eq!((vm.slots(0).len(), logged()), (19, 0));
    assert_same_slots(&vm, &model);
    for (id, gpa) in [(ids[4], 4096), (ids[5], 48), (ids[6], 40), (ids[7], 56)] {
        assert_eq!(vm.region(id).unwrap().range.gpa(), gpa * PAGE);
    }
    // All of what there was before, if KVM refuses one.
    model.inject(Fault::nth(7, Errno::ENOMEM));
    let again = changes(|c| ids[7..].iter().for_each(|id| c.set_log_dirty(*id, true)));
    assert_eq!(vm.apply(again.clone()).unwrap_err().errno(), Errno::ENOMEM);
    assert_eq!(logged(), 0);
    assert_same_slots(&vm, &model);
    assert_eq!((vm.apply(again).unwrap().ioctls, logged()), (13, 13));
}
