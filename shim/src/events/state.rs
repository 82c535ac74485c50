//! What KVM has of a VM.

use std::collections::BTreeSet;

use super::op::Op;
use super::part::Part;
use super::routes::Routes;
use super::types::{Ioeventfd, Irqfd};
use super::zone::Zone;

/// All that KVM has of a VM, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// The routes.
    pub routes: Routes,
    /// Irqfds, ioeventfds and coalesced zones.
    pub assigned: BTreeSet<Part>,
}

impl State {
    /// What this state has and `other` lacks.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self {
            routes: self.routes.without(&other.routes),
            assigned: &self.assigned - &other.assigned,
        }
    }

    /// Follows changes that were made, in this order.
    pub(super) fn follow_all(&mut self, ops: &[Op]) {
        if ops.iter().any(|op| matches!(op, Op::Deassign(_))) {
            for op in ops {
                self.follow(op);
            }
            return;
        }
        let mut new = Vec::with_capacity(ops.len());
        for op in ops {
            match op {
                Op::Assign(part) => new.push(*part),
                _ => self.follow(op),
            }
        }
        // Many are sorted once. Putting two sets together takes as long as both are.
        if self.assigned.len() > 4 * new.len() {
            self.assigned.extend(new);
        } else {
            self.assigned.append(&mut new.into_iter().collect());
        }
    }

    /// Follows a change that was made.
    pub fn follow(&mut self, op: &Op) {
        match op {
            Op::Routes { to, .. } => self.routes = to.clone(),
            Op::Assign(part) => _ = self.assigned.insert(*part),
            Op::Deassign(part) => _ = self.assigned.remove(part),
        }
    }

    /// The irqfds.
    pub fn irqfds(&self) -> impl Iterator<Item = Irqfd> + '_ {
        self.assigned.iter().filter_map(|part| match part {
            Part::Irqfd(irqfd) => Some(*irqfd),
            _ => None,
        })
    }

    /// The ioeventfds.
    pub fn ioeventfds(&self) -> impl Iterator<Item = Ioeventfd> + '_ {
        self.assigned.iter().filter_map(|part| match part {
            Part::Ioeventfd(ioeventfd) => Some(*ioeventfd),
            _ => None,
        })
    }

    /// The coalesced zones.
    pub fn zones(&self) -> impl Iterator<Item = Zone> + '_ {
        self.assigned.iter().filter_map(|part| match part {
            Part::Zone(zone) => Some(*zone),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::events::Bus;

    fn op() -> impl Strategy<Value = Op> {
        (0..40_u32, 0..5_u8).prop_map(|(n, kind)| {
            let fd = 7;
            let irqfd = Irqfd { gsi: n, fd, resample: None, no_irqbypass: false };
            let (bus, addr) = (Bus::Mmio, n.into());
            let ioeventfd = Ioeventfd { bus, addr, len: 2, datamatch: None, fd };
            match kind {
                0 | 1 => Op::Assign(irqfd.into()),
                2 => Op::Assign(ioeventfd.into()),
                3 => Op::Deassign(irqfd.into()),
                _ => Op::Deassign(ioeventfd.into()),
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn many_are_followed_as_one_after_the_other(
            before in prop::collection::vec(op(), 0..60),
            ops in prop::collection::vec(op(), 0..60),
            only_new in any::<bool>(),
        ) {
            let takes = |op: &Op| matches!(op, Op::Deassign(_));
            let ops: Vec<Op> = ops.into_iter().filter(|op| !only_new || !takes(op)).collect();
            let mut all = State::default();
            for op in &before {
                all.follow(op);
            }
            let mut each = all.clone();
            all.follow_all(&ops);
            for op in &ops {
                each.follow(op);
            }
            prop_assert_eq!(all, each);
        }
    }
}
