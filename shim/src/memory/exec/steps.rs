//! The calls of a plan, one after the other.

use std::cell::Cell;

use crate::errno::Errno;
use crate::guard::{Panic, guarded};
use crate::memory::calls::{BatchRefusal, MemoryCalls};
use crate::memory::op::{How, Op};

/// A plan's changes as calls: one a change, or one a chunk of them. Step n is
/// call n.
#[derive(Clone, Copy)]
pub(super) struct Steps<'a> {
    pub(super) calls: &'a dyn MemoryCalls,
    pub(super) as_id: u16,
    /// The changes that all steps make, in order.
    pub(super) ops: &'a [Op],
    how: How,
    /// Whether a flip has had a slot of the VM trap.
    traps: &'a Cell<bool>,
    /// Changes a step.
    size: usize,
}

/// KVM said no, or nobody knows what it said.
pub(super) struct Refusal {
    /// Which change of the plan.
    pub(super) index: Option<usize>,
    pub(super) errno: Errno,
    /// The call panicked: it may have been carried out.
    pub(super) panic: Option<Panic>,
}

impl<'a> Steps<'a> {
    pub(super) fn new(
        calls: &'a dyn MemoryCalls,
        as_id: u16,
        ops: &'a [Op],
        how: How,
        traps: &'a Cell<bool>,
    ) -> Self {
        Self { calls, as_id, ops, how, traps, size: how.ops_per_call() }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.ops.len().div_ceil(self.size)
    }

    /// Whether KVM makes all changes visible at once, and takes dirty bits
    /// along.
    pub(super) fn is_atomic(&self) -> bool {
        self.how != How::PerRegion && self.count() <= 1
    }

    /// The changes that `step` makes, in order.
    pub(super) fn ops_of(&self, step: usize) -> &'a [Op] {
        let start = (step * self.size).min(self.ops.len());
        &self.ops[start..self.ops.len().min(start + self.size)]
    }

    /// Takes `step`; the grace periods that it waited for.
    ///
    /// # Safety
    /// [`MemoryCalls::change`] for what the step's changes map.
    pub(super) unsafe fn take(&self, step: usize) -> Result<u64, Refusal> {
        let ops = self.ops_of(step);
        // SAFETY: the caller's promise is the same.
        refused(step * self.size, ops, guarded(|| unsafe { self.make(ops) }))?;
        Ok(self.waited(ops))
    }

    /// Takes `step` back.
    ///
    /// # Safety
    /// [`MemoryCalls::change`] for what was mapped before the step.
    pub(super) unsafe fn take_back(&self, step: usize) -> Result<(), Refusal> {
        let ops: Vec<Op> = self.ops_of(step).iter().rev().map(Op::inverse).collect();
        // SAFETY: the caller's promise is the same.
        refused(step * self.size, &ops, guarded(|| unsafe { self.make(&ops) }))?;
        self.waited(&ops);
        Ok(())
    }

    /// The grace periods of a call that was made.
    fn waited(&self, ops: &[Op]) -> u64 {
        let mut traps = self.traps.get();
        let waited = self.how.grace_periods(ops, &mut traps);
        self.traps.set(traps);
        waited
    }

    /// Has KVM check the first step, which is not taken.
    pub(super) fn check_first(&self) -> Result<(), Refusal> {
        if self.how == How::PerRegion {
            return Ok(());
        }
        let ops = self.ops_of(0);
        refused(0, ops, guarded(|| self.calls.check_all(self.as_id, ops)))
    }

    /// # Safety
    /// [`MemoryCalls::change`] for what `ops` map.
    unsafe fn make(&self, ops: &[Op]) -> Result<(), BatchRefusal> {
        match (self.how, ops) {
            (How::PerRegion, [op]) => {
                // SAFETY: the caller's promise is the same.
                let answer = unsafe { self.calls.change(self.as_id, op) };
                answer.map_err(|errno| BatchRefusal { index: Some(0), errno })
            }
            // SAFETY: the caller's promise is the same.
            _ => unsafe { self.calls.change_all(self.as_id, ops) },
        }
    }
}

/// What has become of `ops`, the first of which is the plan's `first`.
fn refused(
    first: usize,
    ops: &[Op],
    answer: Result<Result<(), BatchRefusal>, Panic>,
) -> Result<(), Refusal> {
    let (refusal, panic) = match answer {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(refusal)) => (refusal, None),
        Err(panic) => {
            let index = (ops.len() == 1).then_some(0);
            (BatchRefusal { index, errno: Errno::EIO }, Some(panic))
        }
    };
    let index = refusal.index.filter(|index| *index < ops.len()).map(|index| first + index);
    Err(Refusal { index, errno: refusal.errno, panic })
}
