//! Batches: what KVM blames, what is checked before.

use kvm_memslots_shim::memory::model::{Fault, ModelConfig};
use kvm_memslots_shim::memory::{How, Op, Plan, Why, check};
use kvm_memslots_shim::{Errno, Limits, Slot};

use crate::script::{PAGE, Script, mapping, split};

fn slot(id: u16, page: u64) -> Slot {
    Slot { id, mapping: mapping(page * PAGE, PAGE, 0x7f00_0000_0000 + page * PAGE) }
}

/// Ten creates.
fn creates() -> Plan {
    Plan { ops: (0..10).map(|id| Op::Create(slot(id, u64::from(id)))).collect(), ..Plan::default() }
}

#[test]
fn the_entry_that_kvm_blames_is_found_in_the_plan() {
    // In the way of change 7.
    let foreign = slot(100, 7);
    for (max_entries, calls) in [(0, 15), (1, 15), (4, 3), (7, 3), (10, 1), (u32::MAX, 1)] {
        let vm = Script::new(&[foreign]);
        let how = How::Batch { max_entries };
        let error = vm.execute(&creates(), how, false, &mut vec![]).unwrap_err();
        let Why::Refused { index, op, errno } = error.why else { panic!("{error:?}") };
        assert_eq!((index, errno), (Some(7), Errno::EEXIST), "{max_entries} a call");
        assert_eq!(op, Some(creates().ops[7]));
        assert_eq!(vm.slots(), [foreign]);
        assert_eq!(vm.calls(), calls, "{max_entries} a call");
    }
}

#[test]
fn a_blame_beyond_the_batch_is_no_blame() {
    for entry in [4, 5, u32::MAX] {
        let fault = Fault::nth(2, Errno::EIO).blaming(entry);
        let vm = Script::new(&[]).failing([fault]);
        let how = How::Batch { max_entries: 4 };
        let error = vm.execute(&creates(), how, false, &mut vec![]).unwrap_err();
        assert!(matches!(error.why, Why::Refused { index: None, op: None, .. }), "{error:?}");
        assert!(vm.slots().is_empty());
    }
}

#[test]
fn a_kernel_without_the_ioctl_says_so() {
    let config = ModelConfig::new(Limits::x86());
    let vm = Script::with_config(config, &[]);
    let how = How::Batch { max_entries: 64 };
    let error = vm.execute(&creates(), how, false, &mut vec![]).unwrap_err();
    assert!(matches!(error.why, Why::Refused { index: None, errno: Errno::ENOTTY, .. }));
}

#[test]
fn a_dry_run_finds_what_the_plan_would_and_changes_nothing() {
    let foreign = slot(100, 7);
    let vm = Script::new(&[foreign]);
    let how = How::Batch { max_entries: 64 };
    let error = check(&vm, 0, &creates(), how).unwrap_err();
    let Why::Refused { index, op, errno } = error.why else { panic!("{error:?}") };
    assert_eq!((index, op, errno), (Some(7), Some(creates().ops[7]), Errno::EEXIST));
    assert_eq!(vm.slots(), [foreign]);

    let vm = Script::new(&[]);
    check(&vm, 0, &creates(), how).unwrap();
    assert!(vm.slots().is_empty());
    assert_eq!((vm.model.counts().dry_runs, vm.model.counts().ioctls), (1, 0));
}

#[test]
fn a_dry_run_of_several_calls_checks_the_first() {
    let how = How::Batch { max_entries: 4 };
    let second = slot(100, 7);
    assert!(check(&Script::new(&[second]), 0, &creates(), how).is_ok());
    let first = slot(100, 3);
    let error = check(&Script::new(&[first]), 0, &creates(), how).unwrap_err();
    assert!(matches!(error.why, Why::Refused { index: Some(3), .. }));
}

#[test]
fn a_dry_run_that_kvm_can_not_do_is_not_done() {
    let vm = Script::new(&[slot(100, 7)]);
    assert!(check(&vm, 0, &creates(), How::PerRegion).is_ok());
    assert!(check(&vm, 0, &Plan::default(), How::Batch { max_entries: 4 }).is_ok());
    assert_eq!(vm.calls(), 0);
}

#[test]
fn one_batch_opens_no_hole() {
    let (old, plan) = split();
    for read_logs in [false, true] {
        let vm = Script::new(&[old]);
        let mut saved = vec![];
        let how = How::Batch { max_entries: 3 };
        let done = vm.execute(&plan, how, read_logs, &mut saved).unwrap();
        assert_eq!((done.ioctls, done.grace_periods), (1, 2));
        assert_eq!((vm.calls(), saved.len()), (1, 0));
    }
}

#[test]
fn an_empty_plan_calls_nobody() {
    let vm = Script::new(&[]);
    let plan = Plan { holes: vec![mapping(0, PAGE, 0).range()], ..Plan::default() };
    for read_logs in [false, true] {
        let done = vm.execute(&plan, How::PerRegion, read_logs, &mut vec![]).unwrap();
        assert_eq!((done.ioctls, done.grace_periods), (0, 0));
    }
    assert_eq!(vm.calls(), 0);
}
