//! Dirty logs of real KVM.

use kvm_memslots_shim::memory::{Carry, How, MemoryCalls, Op, Plan, SavedDirty, execute};
use kvm_memslots_shim::{Errno, MemFlags, Range, Slot};

use crate::machine::{Machine, PAGE};
use crate::writer::Writer;

fn logged(slot: Slot) -> Slot {
    Slot { mapping: slot.mapping.with_flags(MemFlags::LOG_DIRTY_PAGES), ..slot }
}

fn machine(test: &str, pages: u64) -> Option<(Machine, Writer)> {
    let machine = Machine::new(test, pages)?;
    let writer = Writer::new(&machine);
    Some((machine, writer))
}

#[test]
fn what_was_written_is_in_the_log_once() {
    let test = "what_was_written_is_in_the_log_once";
    let Some((machine, mut writer)) = machine(test, 100) else { return };
    let slot = logged(machine.ram.slot(5, 0x10_0000, 100));
    machine.create(&slot).unwrap();
    for page in [0, 64, 99] {
        writer.write(0x10_0000 + page * PAGE);
    }
    let mut log = [0x5a; 3];
    assert_eq!(machine.log(&slot, &mut log), Ok(()));
    assert_eq!(log, [1, 1 | 1 << 35, 0x5a]);
    assert_eq!(machine.log(&slot, &mut log), Ok(()));
    assert_eq!(log, [0, 0, 0x5a]);
}

#[test]
fn a_log_moves_with_its_slot_and_can_be_cleared() {
    let test = "a_log_moves_with_its_slot_and_can_be_cleared";
    let Some((machine, mut writer)) = machine(test, 100) else { return };
    let slot = logged(machine.ram.slot(5, 0x10_0000, 100));
    machine.create(&slot).unwrap();
    writer.write(0x10_0000 + 3 * PAGE);
    writer.write(0x10_0000 + 70 * PAGE);
    let moved = Slot { mapping: slot.mapping.moved_to(0x20_0000).unwrap(), ..slot };
    machine.change(&Op::Move { from: slot, gpa: 0x20_0000 }).unwrap();
    assert_eq!(machine.kvm.clear_dirty_log(0, &moved, 0, 64, &[1 << 3]), Ok(()));
    assert_eq!(machine.kvm.clear_dirty_log(0, &moved, 1, 64, &[0]), Err(Errno::EINVAL));
    let mut log = [0; 2];
    assert_eq!(machine.log(&moved, &mut log), Ok(()));
    assert_eq!(log, [0, 1 << 6]);
}

#[test]
fn a_log_that_is_not_there_is_not_read() {
    let test = "a_log_that_is_not_there_is_not_read";
    let Some((machine, _writer)) = machine(test, 100) else { return };
    let slot = machine.ram.slot(5, 0x10_0000, 100);
    assert_eq!(machine.log(&slot, &mut [0; 2]), Err(Errno::ENOENT));
    machine.create(&slot).unwrap();
    assert_eq!(machine.log(&slot, &mut [0; 2]), Err(Errno::ENOENT));
}

#[test]
fn a_larger_slot_behind_the_back_does_not_write_beyond_the_bitmap() {
    let test = "a_larger_slot_behind_the_back_does_not_write_beyond_the_bitmap";
    let all = 1 << 20;
    let Some((machine, mut writer)) = machine(test, all) else { return };
    // What was read before makes no difference.
    let large = logged(machine.ram.slot(5, 0, 1 << 16));
    machine.create(&large).unwrap();
    machine.log(&large, &mut [0; 1 << 10]).unwrap();
    let ours = logged(machine.ram.slot(5, 0, 64));
    machine.behind_the_back(&machine.deletion(5));
    // From one word more to 128 KiB of log.
    for pages in [65, 64 * 512, 64 * 513, all] {
        let theirs = logged(machine.ram.slot(5, 0, pages));
        machine.behind_the_back(&Op::Create(theirs));
        writer.write((pages - 1) * PAGE);
        let mut log = vec![0x5a; 4096];
        let answer = machine.log(&ours, &mut log[..]);
        assert_eq!(answer, Err(Errno::EFAULT), "{pages} pages");
        assert!(log.iter().all(|word| *word == 0x5a), "{pages} pages");
        machine.behind_the_back(&machine.deletion(5));
    }
}

#[test]
fn pages_that_a_smaller_slot_behind_the_back_lacks_count_as_dirty() {
    let test = "pages_that_a_smaller_slot_behind_the_back_lacks_count_as_dirty";
    let Some((machine, mut writer)) = machine(test, 200) else { return };
    let ours = logged(machine.ram.slot(5, 0, 130));
    let theirs = logged(machine.ram.slot(5, 0, 64));
    machine.behind_the_back(&Op::Create(theirs));
    writer.write(7 * PAGE);
    let mut log = [0; 3];
    assert_eq!(machine.log(&ours, &mut log), Ok(()));
    assert_eq!(log, [1 << 7, !0, 0b11]);
}

#[test]
fn a_split_carries_the_log_page_by_page() {
    let test = "a_split_carries_the_log_page_by_page";
    let Some((machine, mut writer)) = machine(test, 100) else { return };
    let old = logged(machine.ram.slot(0, 0x10_0000, 100));
    machine.create(&old).unwrap();
    let part = |id, first, pages| {
        let range = Range::new(0x10_0000 + first * PAGE, pages * PAGE).unwrap();
        Slot { id, mapping: old.mapping.clipped_to(range).unwrap() }
    };
    let (low, high) = (part(0, 0, 30), part(1, 30, 70));
    let plan = Plan {
        ops: vec![Op::Delete(old), Op::Create(low), Op::Create(high)],
        holes: vec![old.mapping.range()],
        carries: [low, high].map(|new| Carry { slot: old, range: new.mapping.range() }).to_vec(),
        ..Plan::default()
    };
    for page in [5, 30, 99] {
        writer.write(0x10_0000 + page * PAGE);
    }
    let mut saved = vec![];
    // SAFETY: the memory is that of `machine.ram`, as in `Machine::change`.
    let done =
        unsafe { execute(&machine.kvm, 0, &plan, How::PerRegion, &mut false, true, &mut saved) }
            .unwrap();
    assert_eq!((done.ioctls, done.grace_periods), (3, 4));
    let carried = |range, bits: &[u64]| SavedDirty { range, pages: Some(bits.to_vec()) };
    let expected =
        [carried(low.mapping.range(), &[1 << 5]), carried(high.mapping.range(), &[1, 1 << 5])];
    assert_eq!(saved, expected);
    // The new slots begin with empty logs.
    let mut log = [0; 2];
    assert_eq!(machine.log(&high, &mut log), Ok(()));
    assert_eq!(log, [0, 0]);
}

#[test]
fn a_log_that_an_undone_plan_has_read_is_saved_whole() {
    let test = "a_log_that_an_undone_plan_has_read_is_saved_whole";
    let Some((machine, mut writer)) = machine(test, 100) else { return };
    let old = logged(machine.ram.slot(0, 0x10_0000, 100));
    machine.create(&old).unwrap();
    let foreign = machine.ram.slot(9, 0x40_0000, 1);
    machine.behind_the_back(&Op::Create(foreign));
    let range = Range::new(0x10_0000, 30 * PAGE).unwrap();
    let low = Slot { id: 0, mapping: old.mapping.clipped_to(range).unwrap() };
    let in_the_way = machine.ram.slot(1, 0x40_0000, 1);
    let plan = Plan {
        ops: vec![Op::Delete(old), Op::Create(low), Op::Create(in_the_way)],
        holes: vec![range],
        carries: vec![Carry { slot: old, range }],
        ..Plan::default()
    };
    writer.write(0x10_0000 + 99 * PAGE);
    let mut saved = vec![];
    // SAFETY: the memory is that of `machine.ram`, as in `Machine::change`.
    let result =
        unsafe { execute(&machine.kvm, 0, &plan, How::PerRegion, &mut false, true, &mut saved) };
    assert!(result.is_err());
    assert_eq!(saved, [SavedDirty { range: old.mapping.range(), pages: Some(vec![0, 1 << 35]) }]);
    let mut log = [0; 2];
    assert_eq!(machine.log(&old, &mut log), Ok(()));
    assert_eq!(log, [0, 0]);
}
