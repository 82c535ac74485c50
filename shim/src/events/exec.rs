//! Makes the calls of a plan, and takes them back if one fails.

use std::time::{Duration, Instant};

use super::calls::EventCalls;
use super::error::{Failed, Why};
use super::op::{Cost, Op};
use super::state::State;
use crate::errno::Errno;
use crate::guard::{Panic, guarded, keep_first};

/// What carrying out calls took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    /// The calls.
    pub cost: Cost,
    /// From the first call to the last.
    pub elapsed: Duration,
}

/// Makes the calls `ops` in order, from the state `live`, which follows.
///
/// A call of `calls` that panics counts as refused with `EIO`, and as one that
/// may have been carried out all the same.
///
/// # Errors
/// [`Failed`]. In every case but [`Why::Stuck`] the state is what it was, and
/// `live` says so.
#[allow(clippy::result_large_err)] // Once a plan; the caller makes its own of it.
pub fn execute(calls: &dyn EventCalls, live: &mut State, ops: &[Op]) -> Result<Done, Failed> {
    let start = Instant::now();
    let mut cost = Cost::default();
    for (index, op) in ops.iter().enumerate() {
        if let Err(refusal) = call(calls, op) {
            live.follow_all(&ops[..index]);
            refusal.unsettles(live, op);
            return Err(give_up(calls, live, &ops[..index], op, refusal));
        }
        cost += op.cost();
    }
    live.follow_all(ops);
    Ok(Done { cost, elapsed: start.elapsed() })
}

/// KVM said no, or nobody knows what it said.
struct Refusal {
    errno: Errno,
    panic: Option<Panic>,
}

impl Refusal {
    /// What may have been carried out is not in `live` afterwards.
    fn unsettles(&self, live: &mut State, op: &Op) {
        if self.panic.is_none() {
            return;
        }
        match op {
            Op::Routes { to, .. } => {
                let kept = live.routes.iter().filter(|route| to.contains(route));
                live.routes = kept.copied().collect();
            }
            Op::Deassign(_) => live.follow(op),
            Op::Assign(_) => {}
        }
    }
}

fn call(calls: &dyn EventCalls, op: &Op) -> Result<(), Refusal> {
    let answer = guarded(|| calls.change(op));
    match answer {
        Ok(Ok(())) => Ok(()),
        Ok(Err(errno)) => Err(Refusal { errno, panic: None }),
        Err(panic) => Err(Refusal { errno: Errno::EIO, panic: Some(panic) }),
    }
}

/// Makes a call, which `live` follows.
fn make(calls: &dyn EventCalls, live: &mut State, op: &Op) -> Result<(), Refusal> {
    let answer = call(calls, op);
    match &answer {
        Ok(()) => live.follow(op),
        Err(refusal) => refusal.unsettles(live, op),
    }
    answer
}

/// Takes `done` back, last first. Goes on after a refusal: what can be taken
/// back is.
#[cold]
fn give_up(
    calls: &dyn EventCalls,
    live: &mut State,
    done: &[Op],
    op: &Op,
    refusal: Refusal,
) -> Failed {
    let (op, Refusal { errno, mut panic }) = (op.clone(), refusal);
    let mut unsure = Vec::new();
    let mut first = None;
    if panic.is_some() {
        unsure.push(op.clone());
    }
    for inverse in done.iter().rev().map(Op::inverse) {
        if let Err(refusal) = make(calls, live, &inverse) {
            if refusal.panic.is_some() {
                unsure.push(inverse.clone());
            }
            keep_first(&mut panic, refusal.panic);
            first.get_or_insert((inverse, refusal.errno));
        }
    }
    if first.is_none() && !unsure.is_empty() {
        first = Some((op.inverse(), errno));
    }
    let why = match first {
        None => Why::Refused { op, errno },
        Some((undo, undo_errno)) => {
            Why::Stuck { op, errno, undo, undo_errno, live: live.clone(), unsure }
        }
    };
    Failed { why, panic }
}
