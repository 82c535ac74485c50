//! Back to where a plan began.

use std::collections::BTreeMap;

use super::steps::Steps;
use crate::backend::{Errno, Memslots};
use crate::{Op, Slot};

/// An undo that did not reach the start.
#[derive(Debug)]
pub(super) struct Incomplete {
    /// Of the first step that could not be taken back.
    pub(super) errno: Errno,
    /// What is live, of all the slots that the plan names.
    pub(super) live: Vec<Slot>,
}

/// Takes the first `done` steps back, last first. Goes on after a refusal:
/// what can be taken back is.
///
/// # Safety
/// [`Memslots::set_region`] for what was mapped before each step.
pub(super) unsafe fn undo<B: Memslots + ?Sized>(
    steps: &mut Steps<'_, B>,
    done: usize,
) -> Result<(), Incomplete> {
    let mut refused = Vec::new();
    for step in (0..done).rev() {
        // SAFETY: the caller's promise is the same.
        if let Err(errno) = unsafe { steps.take_back(step) } {
            refused.push((step, errno));
        }
    }
    let Some((_, errno)) = refused.first().copied() else { return Ok(()) };
    let mut live = at_start(steps.ops());
    for step in 0..done {
        live.extend(steps.ops_of(step).iter().map(|op| (op.slot_id(), op.after())));
    }
    let mut refused = refused.into_iter().map(|(step, _)| step).peekable();
    for step in (0..done).rev() {
        if refused.next_if_eq(&step).is_none() {
            let ops = steps.ops_of(step).iter().rev();
            live.extend(ops.map(|op| (op.slot_id(), op.before())));
        }
    }
    Err(Incomplete { errno, live: live.into_values().flatten().collect() })
}

/// Each slot id that `ops` name, with the slot that was there before them.
pub(super) fn at_start(ops: &[Op]) -> BTreeMap<u16, Option<Slot>> {
    let mut slots = BTreeMap::new();
    for op in ops {
        slots.entry(op.slot_id()).or_insert_with(|| op.before());
    }
    slots
}
