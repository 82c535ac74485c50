//! Which calls lead from one state to another, in which order.

use super::op::{Cost, Op};
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
///
/// - What goes, goes first: ioeventfds, then irqfds, so that nothing raises a
///   GSI when its route goes.
/// - The routes change once, whatever changes in them.
/// - Irqfds come after their routes, so that an event that is pending in the
///   eventfd finds its way.
/// - Ioeventfds come last: since Linux 6.18 registering one leaves a normal
///   grace period in flight on `kvm->srcu` (`call_srcu()`), which the next
///   change of memory waits for.
/// - They come by address: KVM loses sight of one of length 0 if another that
///   ends there is registered after it (`kvm_io_bus_cmp()`).
#[must_use]
pub fn plan(live: &State, wanted: &State) -> Plan {
    let mut ops = Vec::new();
    ops.extend(live.ioeventfds.difference(&wanted.ioeventfds).copied().map(Op::DeassignIoeventfd));
    ops.extend(live.irqfds.difference(&wanted.irqfds).copied().map(Op::DeassignIrqfd));
    let gone = ops.len();
    if live.routes != wanted.routes {
        let table = |state: &State| state.routes.iter().copied().collect();
        ops.push(Op::Routes { from: table(live), to: table(wanted) });
    }
    ops.extend(wanted.irqfds.difference(&live.irqfds).copied().map(Op::AssignIrqfd));
    ops.extend(wanted.ioeventfds.difference(&live.ioeventfds).copied().map(Op::AssignIoeventfd));
    Plan { ops, gone }
}
