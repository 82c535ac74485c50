//! Who is paused, and for how long.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use kvm_memslots_shim::backend::Errno;
use kvm_memslots_shim::backend::model::Fault;
use kvm_memslots_shim::exec::{ExecError, GateError, Holes, How, VcpuGate};
use kvm_memslots_shim::{Carry, Mapping, MemFlags, Op, Plan, Range, Slot};

use crate::script::{PAGE, Script};

/// Counts pauses and resumes.
#[derive(Debug, Default)]
pub(crate) struct Count {
    pub(crate) pauses: AtomicUsize,
    pub(crate) resumes: AtomicUsize,
    pub(crate) refuses: bool,
}

impl Count {
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.pauses.load(Ordering::Relaxed), self.resumes.load(Ordering::Relaxed))
    }
}

impl VcpuGate for Count {
    fn pause(&self) -> Result<(), GateError> {
        self.pauses.fetch_add(1, Ordering::Relaxed);
        assert_eq!(self.resumes.load(Ordering::Relaxed), 0, "resumed before it was paused");
        if self.refuses { Err(GateError::new("vCPU 3 does not answer")) } else { Ok(()) }
    }

    fn resume(&self) {
        self.resumes.fetch_add(1, Ordering::Relaxed);
    }
}

/// A logged slot of 100 pages that becomes two.
pub(crate) fn split() -> (Slot, Plan) {
    let flags = MemFlags::LOG_DIRTY_PAGES;
    let mapping = Mapping { flags, ..Mapping::ram(0x10_0000, 100 * PAGE, 0x7f00_0000_0000) };
    let old = Slot { id: 0, mapping };
    let part = |id, gpa, pages| {
        let mapping = mapping.clipped_to(Range::new(gpa, pages * PAGE)).unwrap();
        Slot { id, mapping }
    };
    let (low, high) = (part(0, 0x10_0000, 30), part(1, 0x10_0000 + 30 * PAGE, 70));
    let plan = Plan {
        ops: vec![Op::Delete(old), Op::Create(low), Op::Create(high)],
        holes: vec![mapping.range],
        carries: [low, high].map(|new| Carry { slot: old, range: new.mapping.range }).to_vec(),
        ..Plan::default()
    };
    (old, plan)
}

#[test]
fn an_empty_plan_calls_nobody() {
    let gate = Count::default();
    let mut vm = Script::new(&[]);
    let plan = Plan { holes: vec![Range::new(0, PAGE)], ..Plan::default() };
    let done = vm.execute(&plan, How::PerRegion, Holes::Gate(&gate), &mut vec![]).unwrap();
    assert_eq!((done.ioctls, done.grace_periods, done.paused), (0, 0, false));
    assert_eq!((vm.calls, gate.counts()), (0, (0, 0)));
}

#[test]
fn a_hole_is_refused_before_the_first_call() {
    let (old, plan) = split();
    for how in [How::PerRegion, How::Batch { max_entries: 2 }] {
        let mut vm = Script::new(&[old]);
        let mut saved = vec![];
        let error = vm.execute(&plan, how, Holes::Refuse, &mut saved).unwrap_err();
        let range = old.mapping.range;
        assert!(matches!(error, ExecError::Hole { first, count: 1 } if first == range));
        assert_eq!(vm.calls, 0);
        assert!(saved.is_empty());
    }
}

#[test]
fn one_batch_opens_no_hole() {
    let (old, plan) = split();
    let gate = Count::default();
    for holes in [Holes::Refuse, Holes::Gate(&gate), Holes::NoVcpuRuns] {
        let mut vm = Script::new(&[old]);
        let mut saved = vec![];
        let how = How::Batch { max_entries: 3 };
        let done = vm.execute(&plan, how, holes, &mut saved).unwrap();
        assert_eq!((done.ioctls, done.grace_periods, done.paused), (1, 2, false));
        assert_eq!((vm.calls, saved.len()), (1, 0));
    }
    assert_eq!(gate.counts(), (0, 0));
}

#[test]
fn a_plan_without_holes_pauses_nobody() {
    let (_, plan) = split();
    let plan = Plan { ops: plan.ops[1..].to_vec(), ..Plan::default() };
    let gate = Count::default();
    let mut vm = Script::new(&[]);
    let done = vm.execute(&plan, How::PerRegion, Holes::Gate(&gate), &mut vec![]).unwrap();
    assert!(!done.paused);
    assert_eq!(gate.counts(), (0, 0));
}

#[test]
fn a_gate_that_does_not_close_ends_the_plan_before_it_begins() {
    let (old, plan) = split();
    let gate = Count { refuses: true, ..Count::default() };
    let mut vm = Script::new(&[old]);
    let error = vm.execute(&plan, How::PerRegion, Holes::Gate(&gate), &mut vec![]).unwrap_err();
    assert!(matches!(error, ExecError::Gate(_)));
    assert!(error.to_string().contains("vCPU 3 does not answer"));
    assert_eq!((vm.calls, gate.counts()), (0, (1, 0)));
}

#[test]
fn vcpus_are_resumed_once_whatever_happens() {
    let (old, plan) = split();
    // The log is read, then there are three calls, and at most two undos.
    for nth in 1..=5 {
        for fault in [Fault::nth(nth, Errno::ENOMEM), Fault::from_nth(nth, Errno::ENOMEM)] {
            for how in [How::PerRegion, How::Batch { max_entries: 1 }] {
                let gate = Count::default();
                let mut vm = Script::new(&[old]).failing([fault.clone()]);
                let result = vm.execute(&plan, how, Holes::Gate(&gate), &mut vec![]);
                assert_eq!(result.is_ok(), nth == 5);
                assert!(result.map_or(true, |done| done.paused));
                assert_eq!(gate.counts(), (1, 1));
            }
        }
    }
}

#[test]
fn vcpus_are_resumed_if_a_call_panics() {
    let (old, plan) = split();
    for call in 0..4 {
        let gate = Count::default();
        let mut vm = Script { panic_at: Some(call), ..Script::new(&[old]) };
        let mut saved = vec![];
        vm.write(0x100 + 7);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            vm.execute(&plan, How::PerRegion, Holes::Gate(&gate), &mut saved).map(drop)
        }));
        assert!(outcome.is_err());
        assert_eq!(gate.counts(), (1, 1));
        assert!(vm.reported(&saved).contains(&(0x100 + 7)), "call {call}: the log is lost");
    }
}
