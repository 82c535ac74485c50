use super::*;
use kvm_memslots_shim::memory::model::{Call, Fault};

const MANUAL: DirtyTracking = DirtyTracking::ManualProtect { initially_set: false };
const ALL_SET: DirtyTracking = DirtyTracking::ManualProtect { initially_set: true };

fn write(model: &Model, gfn: u64) {
    model.guest_write(0, gfn * PAGE + 8, 8);
}

#[test]
fn a_read_log_is_clear() {
    let model = model();
    set(&model, logged(region(0, 16, 100, 100))).unwrap();
    for gfn in [15, 16, 80, 115, 116] {
        write(&model, gfn);
    }
    assert_eq!(dirty(&model, 0), [0, 64, 99]);
    assert_eq!(dirty(&model, 0), []);
    write(&model, 17);
    assert_eq!(dirty(&model, 0), [1]);
}

#[test]
fn a_write_across_pages() {
    let model = model();
    set(&model, logged(region(0, 16, 4, 100))).unwrap();
    model.guest_write(0, 18 * PAGE - 4, 8);
    assert_eq!(dirty(&model, 0), [1, 2]);
}

#[test]
fn read_only_slots_stay_clean() {
    let model = model();
    set(&model, Region { flags: LOG | READONLY, ..region(0, 16, 4, 100) }).unwrap();
    write(&model, 17);
    assert_eq!(dirty(&model, 0), []);
}

#[test]
fn a_log_is_lost_with_the_flag_and_kept_by_a_move() {
    let model = model();
    let live = logged(region(0, 16, 4, 100));
    set(&model, live).unwrap();
    write(&model, 17);
    set(&model, logged(region(0, 32, 4, 100))).unwrap();
    assert_eq!(dirty(&model, 0), [1]);
    write(&model, 34);
    set(&model, region(0, 32, 4, 100)).unwrap();
    set(&model, logged(region(0, 32, 4, 100))).unwrap();
    assert_eq!(dirty(&model, 0), []);
}

#[test]
fn manual_protection() {
    let model = tracking(MANUAL);
    set(&model, logged(region(0, 0, 100, 100))).unwrap();
    for gfn in [1, 2, 65, 99] {
        write(&model, gfn);
    }
    assert_eq!(dirty(&model, 0), [1, 2, 65, 99]);
    // Bits that are not set, and bits beyond the end, do no harm.
    assert_eq!(model.clear_dirty_log(0, 0, 64, 36, &[!0]), Ok(()));
    assert_eq!(dirty(&model, 0), [1, 2]);
    assert_eq!(model.clear_dirty_log(0, 0, 0, 64, &[0b1010]), Ok(()));
    assert_eq!(dirty(&model, 0), [2]);
}

#[test]
fn initially_set() {
    let model = tracking(ALL_SET);
    set(&model, logged(region(0, 0, 67, 100))).unwrap();
    assert_eq!(dirty(&model, 0), (0..67).collect::<Vec<_>>());
    assert_eq!(model.clear_dirty_log(0, 0, 0, 67, &[!0, 0b001]), Ok(()));
    assert_eq!(dirty(&model, 0), [65, 66]);
    set(&model, region(0, 0, 67, 100)).unwrap();
    set(&model, logged(region(0, 0, 67, 100))).unwrap();
    assert_eq!(dirty(&model, 0).len(), 67);
}

#[test]
fn get_in_order_of_precedence() {
    let mut words = [0; 2];
    let ring = tracking(DirtyTracking::Ring);
    set(&ring, logged(region(0, 0, 4, 100))).unwrap();
    assert_eq!(ring.get_dirty_log(9, 0, &mut words), Err(Errno::ENXIO));
    assert_eq!(ring.clear_dirty_log(9, 0, 1, 1, &words), Err(Errno::ENXIO));

    let model = model();
    set(&model, region(0, 0, 4, 100)).unwrap();
    assert_eq!(model.get_dirty_log(2, 0, &mut words), Err(Errno::EINVAL));
    assert_eq!(model.get_dirty_log(0, 32_764, &mut words), Err(Errno::EINVAL));
    assert_eq!(model.get_dirty_log(0, 1, &mut words), Err(Errno::ENOENT), "absent");
    assert_eq!(model.get_dirty_log(0, 0, &mut words), Err(Errno::ENOENT), "not logged");
    set(&model, logged(region(0, 0, 4, 100))).unwrap();
    assert_eq!(model.get_dirty_log(0, 0, &mut []), Err(Errno::EINVAL));
    assert_eq!(model.get_dirty_log(0, 0, &mut words), Ok(()));
}

#[test]
fn clear_in_order_of_precedence() {
    let model = tracking(MANUAL);
    set(&model, logged(region(0, 0, 100, 100))).unwrap();
    let clear = |as_id, id, first, pages| model.clear_dirty_log(as_id, id, first, pages, &[0; 2]);
    assert_eq!(clear(2, 1, 0, 64), Err(Errno::EINVAL), "address space");
    assert_eq!(clear(0, 32_764, 0, 64), Err(Errno::EINVAL), "slot id");
    assert_eq!(clear(0, 1, 32, 64), Err(Errno::EINVAL), "first page, before the slot");
    assert_eq!(clear(0, 1, 0, 64), Err(Errno::ENOENT), "absent");
    assert_eq!(clear(0, 0, 128, 0), Err(Errno::EINVAL), "beyond the end");
    assert_eq!(clear(0, 0, 64, 64), Err(Errno::EINVAL), "past the end");
    assert_eq!(clear(0, 0, 0, 63), Err(Errno::EINVAL), "neither 64 nor the end");
    assert_eq!(clear(0, 0, 0, 64), Ok(()));
    assert_eq!(clear(0, 0, 64, 36), Ok(()));
    assert_eq!(clear(0, 0, 0, 100), Ok(()));
    assert_eq!(clear(0, 0, 0, 0), Ok(()));
}

#[test]
fn clearing_needs_no_manual_protection() {
    let model = model();
    set(&model, logged(region(0, 0, 4, 100))).unwrap();
    write(&model, 1);
    write(&model, 2);
    assert_eq!(model.clear_dirty_log(0, 0, 0, 4, &[0b0010]), Ok(()));
    assert_eq!(dirty(&model, 0), [2]);
}

#[test]
fn logging_a_terabyte_costs_little() {
    let model = tracking(ALL_SET);
    let pages = 1 << 28;
    set(&model, logged(region(0, 0, pages, 100))).unwrap();
    assert_eq!(model.clear_dirty_log(0, 0, pages - 64, 64, &[!0]), Ok(()));
    write(&model, pages - 1);
    let mut words = vec![0; (pages / 64) as usize];
    assert_eq!(model.get_dirty_log(0, 0, &mut words), Ok(()));
    assert_eq!(words.last(), Some(&(1 << 63)));
    assert_eq!(words.first(), Some(&!0));
}

#[test]
fn faults_strike_the_call_they_name() {
    let model = model();
    set(&model, logged(region(0, 0, 4, 100))).unwrap();
    write(&model, 3);
    model.inject(Fault::nth(2, Errno::EINTR).only(Call::GetDirtyLog));
    model.inject(Fault::every(Errno::EIO).only(Call::ClearDirtyLog));
    let mut words = [0];
    assert_eq!(model.clear_dirty_log(0, 0, 0, 4, &words), Err(Errno::EIO));
    assert_eq!(set(&model, region(1, 8, 1, 1)), Ok(()));
    assert_eq!(model.get_dirty_log(0, 0, &mut words), Ok(()));
    assert_eq!(words, [0b1000]);
    write(&model, 2);
    assert_eq!(model.get_dirty_log(0, 0, &mut words), Err(Errno::EINTR));
    assert_eq!(model.get_dirty_log(0, 0, &mut words), Ok(()));
    assert_eq!(words, [0b0100], "the call that failed cleared nothing");
    assert_eq!(model.clear_dirty_log(0, 0, 0, 4, &words), Err(Errno::EIO));
    model.clear_faults();
    assert_eq!(model.clear_dirty_log(0, 0, 0, 4, &words), Ok(()));
    let counts = model.counts();
    assert_eq!((counts.get_dirty_log, counts.clear_dirty_log), (3, 3));
}
