//! Makes the calls of a plan, and takes them back if one fails.

use std::time::{Duration, Instant};

use super::{EventCalls, State, Step, Waits};
use crate::backend::Errno;

/// What carrying out a plan took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carried {
    /// `KVM_SET_GSI_ROUTING`.
    pub routing_calls: u64,
    /// `KVM_IRQFD`.
    pub irqfd_calls: u64,
    /// `KVM_IOEVENTFD`.
    pub ioeventfd_calls: u64,
    /// The grace periods that these wait for, by KVM's rules.
    pub waits: Waits,
    /// From the first call to the last.
    pub elapsed: Duration,
}

/// A call that KVM refused. Those before it were taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Which step of the plan.
    pub index: usize,
    /// The step.
    pub step: Step,
    /// KVM's errno.
    pub errno: Errno,
    /// Where taking back failed too, and what is live then.
    pub incomplete: Option<Box<Incomplete>>,
}

/// An undo that did not reach the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incomplete {
    /// The first step that could not be taken back.
    pub step: Step,
    /// KVM's errno for that.
    pub errno: Errno,
    /// What KVM really has.
    pub live: State,
}

/// Takes `steps` in order, from the state `live`.
///
/// # Errors
/// [`Refused`]: the state is `live` again, unless
/// [`incomplete`](Refused::incomplete) says otherwise.
pub fn carry_out(
    calls: &mut (impl EventCalls + ?Sized),
    live: &State,
    steps: &[Step],
) -> Result<Carried, Refused> {
    let start = Instant::now();
    let mut carried = Carried::default();
    for (index, step) in steps.iter().enumerate() {
        if let Err(errno) = take(calls, step) {
            let incomplete = take_back(calls, live, &steps[..index]);
            return Err(Refused { index, step: step.clone(), errno, incomplete });
        }
        carried.waits += step.waits();
        match step {
            Step::Routes { .. } => carried.routing_calls += 1,
            Step::AssignIrqfd(_) | Step::DeassignIrqfd(_) => carried.irqfd_calls += 1,
            Step::AssignIoeventfd(_) | Step::DeassignIoeventfd(_) => carried.ioeventfd_calls += 1,
        }
    }
    carried.elapsed = start.elapsed();
    Ok(carried)
}

fn take(calls: &mut (impl EventCalls + ?Sized), step: &Step) -> Result<(), Errno> {
    match step {
        Step::Routes { to, .. } => calls.set_routes(to),
        Step::AssignIrqfd(irqfd) => calls.assign_irqfd(irqfd),
        Step::DeassignIrqfd(irqfd) => calls.deassign_irqfd(irqfd),
        Step::AssignIoeventfd(ioeventfd) => calls.assign_ioeventfd(ioeventfd),
        Step::DeassignIoeventfd(ioeventfd) => calls.deassign_ioeventfd(ioeventfd),
    }
}

/// Takes `done` back, last first. Goes on after a refusal: what can be taken
/// back is.
fn take_back(
    calls: &mut (impl EventCalls + ?Sized),
    live: &State,
    done: &[Step],
) -> Option<Box<Incomplete>> {
    let mut now = live.clone();
    for step in done {
        now.follow(step);
    }
    let mut first: Option<(Step, Errno)> = None;
    for inverse in done.iter().rev().map(Step::inverse) {
        match take(calls, &inverse) {
            Ok(()) => now.follow(&inverse),
            Err(errno) => _ = first.get_or_insert((inverse, errno)),
        }
    }
    first.map(|(step, errno)| Box::new(Incomplete { step, errno, live: now }))
}
