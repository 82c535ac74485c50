//! Batches: what KVM blames, what is checked before.

use kvm_memslots_shim::backend::Errno;
use kvm_memslots_shim::backend::model::Fault;
use kvm_memslots_shim::exec::{ExecError, Holes, How, dry_run};
use kvm_memslots_shim::{Mapping, Op, Plan, Slot};

use crate::script::{PAGE, Script};

fn slot(id: u16, page: u64) -> Slot {
    Slot { id, mapping: Mapping::ram(page * PAGE, PAGE, 0x7f00_0000_0000 + page * PAGE) }
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
        let mut vm = Script::new(&[foreign]);
        let how = How::Batch { max_entries };
        let error = vm.execute(&creates(), how, Holes::Refuse, &mut vec![]).unwrap_err();
        let ExecError::Refused { index, op, errno } = error else { panic!("{error:?}") };
        assert_eq!((index, errno), (Some(7), Errno::EEXIST), "{max_entries} a call");
        assert_eq!(op, Some(creates().ops[7]));
        assert_eq!(vm.slots(), [foreign]);
        assert_eq!(vm.calls, calls, "{max_entries} a call");
    }
}

#[test]
fn a_blame_beyond_the_batch_is_no_blame() {
    for entry in [4, 5, u32::MAX] {
        let fault = Fault::nth(2, Errno::EIO).blaming(entry);
        let mut vm = Script::new(&[]).failing([fault]);
        let how = How::Batch { max_entries: 4 };
        let error = vm.execute(&creates(), how, Holes::Refuse, &mut vec![]).unwrap_err();
        assert!(matches!(error, ExecError::Refused { index: None, op: None, .. }), "{error:?}");
        assert!(vm.slots().is_empty());
    }
}

#[test]
fn a_kernel_without_the_ioctl_says_so() {
    let limits = kvm_memslots_shim::Limits::x86();
    let config = kvm_memslots_shim::backend::model::ModelConfig::new(limits);
    let mut vm = Script::with_config(config, &[]);
    let how = How::Batch { max_entries: 64 };
    let error = vm.execute(&creates(), how, Holes::Refuse, &mut vec![]).unwrap_err();
    assert!(matches!(error, ExecError::Refused { index: None, errno: Errno::ENOTTY, .. }));
}

#[test]
fn a_dry_run_finds_what_the_plan_would_and_changes_nothing() {
    let foreign = slot(100, 7);
    let mut vm = Script::new(&[foreign]);
    let how = How::Batch { max_entries: 64 };
    let error = dry_run(&mut vm, 0, &creates(), how).unwrap_err();
    let ExecError::Refused { index, op, errno } = error else { panic!("{error:?}") };
    assert_eq!((index, op, errno), (Some(7), Some(creates().ops[7]), Errno::EEXIST));
    assert_eq!(vm.slots(), [foreign]);

    let mut vm = Script::new(&[]);
    dry_run(&mut vm, 0, &creates(), how).unwrap();
    assert!(vm.slots().is_empty());
    assert_eq!((vm.model.counts().dry_runs, vm.model.counts().ioctls), (1, 0));
}

#[test]
fn a_dry_run_of_several_calls_checks_the_first() {
    let how = How::Batch { max_entries: 4 };
    let second = slot(100, 7);
    assert!(dry_run(&mut Script::new(&[second]), 0, &creates(), how).is_ok());
    let first = slot(100, 3);
    let error = dry_run(&mut Script::new(&[first]), 0, &creates(), how).unwrap_err();
    assert!(matches!(error, ExecError::Refused { index: Some(3), .. }));
}

#[test]
fn a_dry_run_that_kvm_can_not_do_is_not_done() {
    let mut vm = Script::new(&[slot(100, 7)]);
    assert!(dry_run(&mut vm, 0, &creates(), How::PerRegion).is_ok());
    assert!(dry_run(&mut vm, 0, &Plan::default(), How::Batch { max_entries: 4 }).is_ok());
    assert_eq!(vm.calls, 0);
}
