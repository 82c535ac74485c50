//! Back to where a plan began.

use std::collections::{BTreeMap, BTreeSet};

use super::steps::Steps;
use crate::errno::Errno;
use crate::guard::{Panic, keep_first};
use crate::mapping::Slot;
use crate::memory::op::Op;

/// What an undo has come to.
pub(super) struct Undone {
    /// Of the first step that could not be taken back.
    pub(super) errno: Option<Errno>,
    /// What is live, of all the slots that the plan names, unsure ones aside.
    pub(super) live: Vec<Slot>,
    /// Slots of which it is not known what they are: a call on them panicked,
    /// and none after it succeeded.
    pub(super) unsure: Vec<u16>,
    /// Of the first step that panicked while it was taken back.
    pub(super) panic: Option<Panic>,
}

impl Undone {
    /// Whether everything is as it was.
    pub(super) fn is_complete(&self) -> bool {
        self.errno.is_none() && self.unsure.is_empty()
    }
}

/// Takes the first `done` steps back, last first; `panicked` is whether the one
/// behind them may have been carried out. Goes on after a refusal: what can be
/// taken back is.
///
/// # Safety
/// [`MemoryCalls::change`](crate::memory::MemoryCalls::change) for what was
/// mapped before each step.
pub(super) unsafe fn undo(steps: Steps<'_>, done: usize, panicked: bool) -> Undone {
    let mut slots = at_start(steps.ops);
    for step in 0..done {
        slots.extend(steps.ops_of(step).iter().map(|op| (op.slot_id(), op.after())));
    }
    let mut unsure = BTreeSet::new();
    if panicked {
        unsure.extend(steps.ops_of(done).iter().map(Op::slot_id));
    }
    let (mut errno, mut panic) = (None, None);
    for step in (0..done).rev() {
        let ops = steps.ops_of(step).iter().rev();
        // SAFETY: the caller's promise is the same.
        match unsafe { steps.take_back(step) } {
            Ok(()) => {
                for op in ops {
                    // What KVM has agreed to, it has: whatever was there.
                    unsure.remove(&op.slot_id());
                    slots.insert(op.slot_id(), op.before());
                }
            }
            Err(refusal) => {
                errno = errno.or(Some(refusal.errno));
                if refusal.panic.is_some() {
                    unsure.extend(ops.map(Op::slot_id));
                }
                keep_first(&mut panic, refusal.panic);
            }
        }
    }
    let live = slots.into_iter().filter(|(id, _)| !unsure.contains(id));
    let live = live.filter_map(|(_, slot)| slot).collect();
    Undone { errno, live, unsure: Vec::from_iter(unsure), panic }
}

/// Each slot id that `ops` name, with the slot that was there before them.
pub(super) fn at_start(ops: &[Op]) -> BTreeMap<u16, Option<Slot>> {
    let mut slots = BTreeMap::new();
    for op in ops {
        slots.entry(op.slot_id()).or_insert_with(|| op.before());
    }
    slots
}
