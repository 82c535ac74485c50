//! Which calls lead from one state to another, in which order.

use super::delta::Delta;
use super::op::{Cost, Op};
use super::part::Part;
use super::routes::Routes;
use super::state::State;

/// The calls that lead from one state to another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The calls, in an order in which KVM accepts each one.
    pub ops: Vec<Op>,
    /// How many of them take away. Memory changes behind these, and before the
    /// others.
    pub gone: usize,
}

impl Plan {
    /// What the calls cost.
    #[must_use]
    pub fn cost(&self) -> Cost {
        self.ops.iter().map(Op::cost).sum()
    }
}

/// The calls that lead from `live` to `wanted`; none if they are the same.
#[must_use]
pub fn plan(live: &State, wanted: &State) -> Plan {
    plan_delta(&live.routes, &Delta::between(live, wanted))
}

/// The calls that make these differences, to a VM with these routes: none
/// where there are none.
///
/// - What goes, goes first: ioeventfds and zones, then irqfds, so that nothing raises a
///   GSI when its route goes.
/// - The routes change once, whatever changes in them.
/// - Irqfds come after their routes, so that an event that is pending in the
///   eventfd finds its way.
/// - Ioeventfds and zones come last: since Linux 6.18 registering one leaves a normal
///   grace period in flight on `kvm->srcu` (`call_srcu()`), which the next
///   change of memory waits for.
/// - They come by address: KVM loses sight of one of length 0 if another that
///   ends there is registered after it (`kvm_io_bus_cmp()`).
#[must_use]
pub fn plan_delta(routes: &Routes, delta: &Delta) -> Plan {
    let Delta { gone, come } = delta;
    let mut ops = Vec::with_capacity(gone.assigned.len() + come.assigned.len() + 1);
    ops.extend(gone.assigned.iter().copied().map(Op::Deassign));
    let taken = ops.len();
    if !(gone.routes.is_empty() && come.routes.is_empty()) {
        let to = routes.changed(&gone.routes, &come.routes);
        ops.push(Op::Routes { from: routes.clone(), to });
    }
    for irqfds in [true, false] {
        let those = come.assigned.iter().filter(|part| matches!(part, Part::Irqfd(_)) == irqfds);
        ops.extend(those.copied().map(Op::Assign));
    }
    Plan { ops, gone: taken }
}
