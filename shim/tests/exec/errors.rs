//! Errors name what they are about.

use kvm_memslots_shim::memory::model::{Call, Fault};
use kvm_memslots_shim::memory::{How, Op, Plan};
use kvm_memslots_shim::{Errno, MemFlags, Slot};

use crate::script::{PAGE, Script, mapping, split};

/// What the failure of `op`, after one that succeeds, says.
fn refusal(start: &[Slot], op: Op) -> String {
    let first = Slot { id: 9, mapping: mapping(0x90_0000, PAGE, 0x7f00_0000_0000) };
    let plan = Plan { ops: vec![Op::Create(first), op], ..Plan::default() };
    let vm = Script::new(start);
    vm.execute(&plan, How::PerRegion, false, &mut vec![]).unwrap_err().to_string()
}

fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{word:?} is missing in: {message}");
    }
}

#[test]
fn a_refusal_names_change_slot_addresses_and_errno() {
    let slot = Slot { id: 5, mapping: mapping(0x10_0000, 4 * PAGE, 0x7e00_0000_0000) };
    let names = ["change 1", "slot 5", "[0x100000, 0x104000)", "0x7e0000000000"];
    let foreign = Slot { id: 6, mapping: mapping(0x10_3000, PAGE, 0x7d00_0000_0000) };
    let message = refusal(&[foreign], Op::Create(slot));
    assert_says(&message, &names);
    assert_says(&message, &["to create", "EEXIST", "behind this library's back", "what it was"]);

    let message = refusal(&[], Op::Delete(slot));
    assert_says(&message, &names);
    assert_says(&message, &["to delete", "EINVAL", "no such slot"]);

    let larger = Slot { mapping: mapping(0x10_0000, 8 * PAGE, 0x7e00_0000_0000), ..slot };
    let message = refusal(&[larger], Op::Move { from: slot, gpa: 0x20_0000 });
    assert_says(&message, &names);
    assert_says(&message, &["to move", "0x200000", "EINVAL", "changed behind"]);

    let flags = MemFlags::LOG_DIRTY_PAGES;
    let message = refusal(&[larger], Op::SetFlags { from: slot, flags });
    assert_says(&message, &names);
    assert_says(&message, &["from none to LOG_DIRTY_PAGES", "EINVAL"]);
}

#[test]
fn a_plan_that_is_stuck_says_how_much_is_live() {
    let (old, plan) = split();
    let faults = [Fault::nth(3, Errno::ENOMEM), Fault::nth(4, Errno::EIO)];
    let vm = Script::new(&[old]).failing(faults);
    let error = vm.execute(&plan, How::PerRegion, false, &mut vec![]).unwrap_err();
    assert_says(&error.to_string(), &["change 2", "ENOMEM", "EIO", "1 of the plan's slots"]);
}

#[test]
fn a_panic_says_of_what_nothing_is_known() {
    let (old, plan) = split();
    let vm = Script::new(&[old]).failing([Fault::nth(3, Errno::EIO).panicking()]);
    let error = vm.execute(&plan, How::PerRegion, false, &mut vec![]).unwrap_err();
    let words = ["change 2", "1 of the plan's slots", "slots [1]", "a call panicked"];
    assert_says(&error.to_string(), &words);
}

#[test]
fn a_log_that_cannot_be_read_says_whose() {
    let (old, plan) = split();
    let fault = Fault::every(Errno::ENOENT).only(Call::GetDirtyLog);
    let vm = Script::new(&[old]).failing([fault]);
    let error = vm.execute(&plan, How::PerRegion, true, &mut vec![]).unwrap_err();
    assert_says(&error.to_string(), &["slot 0", "[0x100000, 0x164000)", "ENOENT", "nothing was"]);
    assert_eq!(vm.slots(), [old]);
}
