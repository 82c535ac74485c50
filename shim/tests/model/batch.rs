use std::panic::{AssertUnwindSafe, catch_unwind};

use kvm_memslots_uapi::probe::{ProbeVm, Support, probe};
use kvm_memslots_uapi::{MemoryRegions, MemoryRegionsFlags, kvm_userspace_memory_regions};

use super::*;
use kvm_memslots_shim::memory::model::{Call, Fault};
use kvm_memslots_shim::memory::{BatchRefusal, MemoryCalls, Op};
use kvm_memslots_shim::{Kind, Mapping, Range, Slot};

type Header = kvm_userspace_memory_regions;

const DRY_RUN: u32 = MemoryRegionsFlags::DRY_RUN.bits();

/// The outcome, and the entry that was blamed: `nr` for none.
fn batch(model: &Model, entries: &[Region]) -> (Result<(), Errno>, u32) {
    let mut regions = MemoryRegions::from_entries(0, MemoryRegionsFlags::empty(), entries).unwrap();
    let outcome = model.set_user_memory_regions(&mut regions);
    (outcome, regions.header().failed)
}

fn layout(model: &Model) -> Vec<(u16, u64, u64, u64)> {
    let row = |slot: kvm_memslots_shim::Slot| {
        let mapping = slot.mapping;
        let range = mapping.range();
        (slot.id, range.gpa() / PAGE, range.size() / PAGE, mapping.hva() / PAGE)
    };
    model.slots(0).into_iter().map(row).collect()
}

#[test]
fn in_order_and_with_one_grace_period() {
    let model = model();
    let entries = [region(0, 0, 4, 100), region(1, 8, 4, 200), logged(region(0, 0, 4, 100))];
    assert_eq!(batch(&model, &entries), (Ok(()), 3));
    assert_eq!(layout(&model), [(0, 0, 4, 100), (1, 8, 4, 200)]);
    assert!(model.slot(0, 0).unwrap().mapping.is_logged());
    assert_eq!((model.counts().ioctls, model.counts().grace_periods), (1, 1));
}

#[test]
fn two_grace_periods_where_anything_goes_or_moves() {
    let model = model();
    batch(&model, &[region(0, 0, 4, 100), region(1, 8, 4, 200)]).0.unwrap();
    model.reset_counts();
    let swap = [delete(0), region(1, 0, 4, 200), region(0, 8, 4, 100)];
    assert_eq!(batch(&model, &swap), (Ok(()), 3));
    assert_eq!(layout(&model), [(1, 0, 4, 200), (0, 8, 4, 100)]);
    assert_eq!(model.counts().grace_periods, 2);
    assert_eq!(batch(&model, &[region(0, 8, 4, 100)]), (Ok(()), 1));
    assert_eq!(model.counts().grace_periods, 2, "nothing changed");
    batch(&model, &[region(1, 32, 4, 200), region(0, 40, 4, 100)]).0.unwrap();
    assert_eq!(model.counts().grace_periods, 4, "two moves");
}

#[test]
fn order_decides_what_overlaps() {
    let model = model();
    batch(&model, &[region(0, 0, 4, 100)]).0.unwrap();
    let too_early = [region(1, 8, 4, 200), region(2, 2, 4, 300), delete(0)];
    assert_eq!(batch(&model, &too_early), (Err(Errno::EEXIST), 1));
    assert_eq!(layout(&model), [(0, 0, 4, 100)]);
    let in_time = [region(1, 8, 4, 200), delete(0), region(2, 2, 4, 300)];
    assert_eq!(batch(&model, &in_time), (Ok(()), 3));
}

#[test]
fn what_the_entries_of_a_slot_amount_to() {
    let config = ModelConfig::new(everything()).guest_physical_bits(40);
    let model = Model::with_config(config);
    batch(&model, &[region(0, 0, 4, 100)]).0.unwrap();
    model.reset_counts();
    let end = 1 << 28;
    let never_there = [region(1, 8, 4, 200), delete(1)];
    assert_eq!(batch(&model, &never_there), (Ok(()), 2));
    let there_and_back = [region(0, 8, 4, 100), region(0, 0, 4, 100)];
    assert_eq!(batch(&model, &there_and_back), (Ok(()), 2));
    let beyond_and_back =
        [region(0, end, 4, 100), region(0, 0, 4, 100), region(2, end, 4, 200), delete(2)];
    assert_eq!(batch(&model, &beyond_and_back), (Ok(()), 4));
    assert_eq!(model.counts().grace_periods, 0);

    // The architecture speaks last, of what is left, to the slot's last entry.
    let beyond = [region(1, end, 4, 200), region(0, 8, 4, 100), region(1, end + 4, 4, 200)];
    assert_eq!(batch(&model, &beyond), (Err(Errno::EINVAL), 2));
    let overlapping = [region(1, end, 4, 200), region(2, 2, 4, 300)];
    assert_eq!(batch(&model, &overlapping), (Err(Errno::EEXIST), 1));
    let two = [region(1, end - 3, 4, 200), region(2, end + 8, 4, 300), region(1, end, 4, 200)];
    assert_eq!(batch(&model, &two), (Err(Errno::EINVAL), 1));
    // What stays where it is was asked when it came.
    assert_eq!(batch(&model, &[logged(region(0, 0, 4, 100))]), (Ok(()), 1));
    assert_eq!(layout(&model), [(0, 0, 4, 100)]);
    assert_eq!(model.counts().grace_periods, 1);
}

#[test]
fn all_or_nothing() {
    let model = model();
    model.add_guest_memfd(5, 8 * PAGE);
    let private = Region { flags: MEMFD, guest_memfd: 5, ..region(2, 64, 8, 300) };
    batch(&model, &[logged(region(0, 0, 4, 100)), region(1, 8, 4, 200), private]).0.unwrap();
    model.guest_write(0, PAGE, 1);
    let before = layout(&model);
    model.reset_counts();

    let entries = [
        delete(2),
        region(0, 0, 4, 100),
        delete(0),
        region(1, 2, 4, 200),
        Region { slot: 3, ..private },
        region(4, 128, 1, 1),
        delete(9),
        delete(8),
    ];
    assert_eq!(batch(&model, &entries), (Err(Errno::EINVAL), 6));
    assert_eq!(layout(&model), before);
    assert_eq!(dirty(&model, 0), [1]);
    assert_eq!((model.counts().refused, model.counts().grace_periods), (1, 0));
    // The file's range is still that of slot 2.
    assert_eq!(
        set(&model, Region { slot: 3, guest_phys_addr: 1 << 20, ..private }),
        Err(Errno::EINVAL)
    );
    assert_eq!(set(&model, delete(2)), Ok(()));
    assert_eq!(set(&model, Region { slot: 3, ..private }), Ok(()));
}

#[test]
fn dry_run() {
    let model = model();
    batch(&model, &[logged(region(0, 0, 4, 100))]).0.unwrap();
    model.guest_write(0, PAGE, 1);
    model.reset_counts();
    let entries = [delete(0), logged(region(1, 0, 2, 100)), region(2, 1, 1, 1)];
    let mut regions =
        MemoryRegions::from_entries(0, MemoryRegionsFlags::DRY_RUN, &entries).unwrap();
    assert_eq!(model.set_user_memory_regions(&mut regions), Err(Errno::EEXIST));
    assert_eq!(regions.header().failed, 2);
    regions = MemoryRegions::from_entries(0, MemoryRegionsFlags::DRY_RUN, &entries[..2]).unwrap();
    assert_eq!(model.set_user_memory_regions(&mut regions), Ok(()));
    assert_eq!(regions.header().failed, 2);
    assert_eq!(layout(&model), [(0, 0, 4, 100)]);
    assert_eq!(dirty(&model, 0), [1]);
    let counts = model.counts();
    assert_eq!((counts.ioctls, counts.dry_runs, counts.grace_periods), (0, 2, 0));
}

#[test]
fn the_header() {
    let fine = Header { nr: 1, ..Default::default() };
    let mut reserved = fine;
    reserved.reserved[5] = 1;
    let cases = [
        (fine, Ok(())),
        (Header { flags: 2, ..fine }, Err(Errno::EINVAL)),
        (Header { flags: DRY_RUN | 1 << 31, ..fine }, Err(Errno::EINVAL)),
        (reserved, Err(Errno::EINVAL)),
        (Header { as_id: 2, ..fine }, Err(Errno::EINVAL)),
        (Header { as_id: 1 << 16, ..fine }, Err(Errno::EINVAL)),
        (Header { nr: 0, ..fine }, Err(Errno::EINVAL)),
        (Header { nr: 0, flags: DRY_RUN, ..fine }, Ok(())),
        (Header { nr: 65, ..fine }, Err(Errno::E2BIG)),
        (Header { nr: 65, flags: 2, ..fine }, Err(Errno::EINVAL)),
        (Header { nr: 65, as_id: 2, ..fine }, Err(Errno::EINVAL)),
        (Header { nr: 64, ..fine }, Err(Errno::EFAULT)),
    ];
    for (sent, expected) in cases {
        let model = model();
        let mut header = Header { failed: 77, ..sent };
        let outcome = model.set_user_memory_regions_raw(&mut header, &[region(0, 0, 4, 100)]);
        assert_eq!(outcome, expected, "{sent:?}");
        assert_eq!(header, Header { failed: sent.nr, ..sent });
        let created = outcome.is_ok() && sent.nr == 1;
        assert_eq!(model.slot_count(0), usize::from(created));
    }
}

#[test]
fn the_address_space_is_the_header_s() {
    let model = model();
    let mut header = Header { nr: 2, as_id: 1, ..Default::default() };
    let entries = [region(0, 0, 4, 100), region(1, 8, 4, 200)];
    assert_eq!(model.set_user_memory_regions_raw(&mut header, &entries), Ok(()));
    assert_eq!((model.slot_count(0), model.slot_count(1)), (0, 2));
    // Not even the right address space may be in an entry.
    let entries = [region(2, 16, 4, 300), region(1 << 16 | 3, 32, 4, 300)];
    assert_eq!(model.set_user_memory_regions_raw(&mut header, &entries), Err(Errno::EINVAL));
    assert_eq!((header.failed, model.slot_count(1)), (1, 2));
}

#[test]
fn an_absent_ioctl_touches_nothing() {
    let model = Model::new(Limits::x86());
    let mut header = Header { failed: 77, ..Default::default() };
    assert_eq!(model.set_user_memory_regions_raw(&mut header, &[]), Err(Errno::ENOTTY));
    assert_eq!(header.failed, 77);
    assert_eq!(probe(&mut model.clone()), Support::Absent);
}

#[test]
fn the_probe_finds_it() {
    let model = model();
    assert_eq!(probe(&mut model.clone()), Support::Present { max_entries: 64 });
    assert_eq!(model.clone().check_extension(10), 0);
}

#[test]
fn bits_carry_over_where_guest_and_host_pages_agree() {
    let model = model();
    batch(&model, &[logged(region(0, 0, 100, 1000))]).0.unwrap();
    for gfn in [0, 9, 10, 63, 64, 70, 99] {
        model.guest_write(0, gfn * PAGE, 1);
    }
    // Split with a hole, one part at another host address, one not logged.
    let split = [
        delete(0),
        logged(region(0, 5, 60, 1005)),
        logged(region(1, 66, 10, 2066)),
        region(2, 90, 10, 1090),
    ];
    assert_eq!(batch(&model, &split), (Ok(()), 4));
    assert_eq!(dirty(&model, 0), [4, 5, 58, 59]);
    assert_eq!(dirty(&model, 1), []);
}

#[test]
fn bits_carry_over_into_a_merged_slot() {
    let model = model();
    let parts =
        [logged(region(0, 0, 30, 1000)), logged(region(1, 30, 40, 1030)), region(2, 70, 10, 1070)];
    batch(&model, &parts).0.unwrap();
    for gfn in [3, 29, 30, 69, 75] {
        model.guest_write(0, gfn * PAGE, 1);
    }
    let merge = [delete(0), delete(1), delete(2), logged(region(7, 0, 80, 1000))];
    assert_eq!(batch(&model, &merge), (Ok(()), 4));
    assert_eq!(dirty(&model, 7), [3, 29, 30, 69]);
}

#[test]
fn bits_carry_over_what_happened_in_between() {
    let model = model();
    batch(&model, &[logged(region(0, 0, 8, 1000))]).0.unwrap();
    model.guest_write(0, 3 * PAGE, 1);
    // Another host address, a slot without log, a move, the log off and on:
    // in the end the same pages are logged.
    let there_and_back = [
        delete(0),
        logged(region(0, 0, 8, 2000)),
        delete(0),
        region(1, 0, 8, 1000),
        region(1, 16, 8, 1000),
        region(1, 0, 8, 1000),
        logged(region(1, 0, 8, 1000)),
        region(1, 0, 8, 1000),
        logged(region(1, 0, 8, 1000)),
    ];
    assert_eq!(batch(&model, &there_and_back), (Ok(()), 9));
    assert_eq!(dirty(&model, 1), [3]);
}

#[test]
fn a_slot_that_stays_keeps_its_log() {
    let model = model();
    batch(&model, &[logged(region(0, 0, 8, 1000)), logged(region(1, 8, 8, 2000))]).0.unwrap();
    for gfn in [3, 12] {
        model.guest_write(0, gfn * PAGE, 1);
    }
    let moved_by_way_of_no_log = [
        region(0, 0, 8, 1000),
        logged(region(0, 32, 8, 1000)),
        delete(1),
        logged(region(1, 48, 8, 2000)),
    ];
    assert_eq!(batch(&model, &moved_by_way_of_no_log), (Ok(()), 4));
    assert_eq!(dirty(&model, 0), [3]);
    assert_eq!(dirty(&model, 1), [], "created anew");
}

#[test]
fn a_slot_that_moves_takes_over_what_it_covers() {
    let model = model();
    batch(&model, &[logged(region(0, 0, 8, 1008)), logged(region(1, 8, 8, 1008))]).0.unwrap();
    for gfn in [3, 12] {
        model.guest_write(0, gfn * PAGE, 1);
    }
    let into_the_place_of_the_other = [delete(1), logged(region(0, 8, 8, 1008))];
    assert_eq!(batch(&model, &into_the_place_of_the_other), (Ok(()), 2));
    assert_eq!(dirty(&model, 0), [3, 4]);
}

#[test]
fn initially_set_pages_that_were_clean_stay_clean() {
    let model = tracking(DirtyTracking::ManualProtect { initially_set: true });
    batch(&model, &[logged(region(0, 0, 70, 1000))]).0.unwrap();
    model.clear_dirty_log(0, 0, 0, 70, &[!0b100, !0]).unwrap();
    let grow = [delete(0), logged(region(0, 0, 72, 1000))];
    assert_eq!(batch(&model, &grow), (Ok(()), 2));
    assert_eq!(dirty(&model, 0), [2, 70, 71]);
}

#[test]
fn single_changes_carry_nothing() {
    let model = model();
    set(&model, logged(region(0, 0, 8, 1000))).unwrap();
    model.guest_write(0, 3 * PAGE, 1);
    set(&model, delete(0)).unwrap();
    set(&model, logged(region(0, 0, 8, 1000))).unwrap();
    assert_eq!(dirty(&model, 0), []);
}

#[test]
fn injected_faults() {
    let model = model();
    model.inject(Fault::nth(2, Errno::ENOMEM).only(Call::SetRegions).blaming(1));
    model.inject(Fault::from_nth(2, Errno::EINTR).only(Call::SetRegion));
    let entries = [region(0, 0, 4, 100), region(1, 8, 4, 200)];
    assert_eq!(batch(&model, &entries), (Ok(()), 2));
    assert_eq!(batch(&model, &[delete(0), delete(1)]), (Err(Errno::ENOMEM), 1));
    assert_eq!(batch(&model, &[delete(0), delete(1)]), (Ok(()), 2));
    assert_eq!(set(&model, region(0, 0, 4, 100)), Ok(()));
    assert_eq!(set(&model, delete(0)), Err(Errno::EINTR));
    assert_eq!(set(&model, delete(0)), Err(Errno::EINTR));
    assert_eq!(layout(&model), [(0, 0, 4, 100)]);
}

#[test]
fn a_panic_comes_before_the_call_or_after_it() {
    let model = model();
    for (id, fault, carried_out) in [
        (0, Fault::nth(1, Errno::EIO).panicking(), false),
        (1, Fault::nth(1, Errno::EIO).panicking_after(), true),
    ] {
        model.inject(fault);
        let panicked = || set(&model, region(id, u64::from(id) * 8, 4, 100));
        let panic = catch_unwind(AssertUnwindSafe(panicked)).unwrap_err();
        assert_eq!(panic.downcast_ref::<String>().unwrap(), "an injected panic");
        assert_eq!(model.slot(0, id as u16).is_some(), carried_out);
    }
    // It is over, and the model is as good as before.
    assert_eq!(set(&model, delete(1)), Ok(()));
    assert_eq!((model.slot_count(0), model.counts().ioctls), (0, 3));
}

#[test]
fn holders_share_one_model_and_a_fork_is_another() {
    let model = model();
    let calls: Box<dyn MemoryCalls> = Box::new(model.clone());
    let slot = |id, gfn, hfn| {
        let range = Range::new(gfn * PAGE, 4 * PAGE).unwrap();
        Slot { id, mapping: Mapping::new(range, hfn * PAGE, Kind::Ram).unwrap() }
    };
    let first = Op::Create(slot(0, 0, 100));
    // SAFETY: a model touches no memory.
    unsafe { calls.change(0, &first) }.unwrap();
    let fork = model.fork();
    let ops = [Op::Create(slot(1, 8, 200)), Op::Delete(slot(3, 0, 0))];
    let refused = Err(BatchRefusal { index: Some(1), errno: Errno::EINVAL });
    assert_eq!(calls.check_all(0, &ops), refused);
    // SAFETY: as above.
    assert_eq!(unsafe { calls.change_all(0, &ops) }, refused);
    assert_eq!(calls.check_all(0, &ops[..1]), Ok(()));
    // SAFETY: as above.
    assert_eq!(unsafe { calls.change_all(0, &ops[..1]) }, Ok(()));
    assert_eq!(layout(&model), [(0, 0, 4, 100), (1, 8, 4, 200)]);
    assert_eq!(layout(&fork), [(0, 0, 4, 100)]);
    assert_eq!((calls.name(), calls.limits()), ("model", everything()));
}
