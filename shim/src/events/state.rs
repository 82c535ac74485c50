//! What KVM has of a VM.

use std::collections::BTreeSet;

use super::op::Op;
use super::routes::Routes;
use super::types::{Ioeventfd, Irqfd};
use super::zone::Zone;

/// All that KVM has of a VM, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// The routes.
    pub routes: Routes,
    /// The irqfds.
    pub irqfds: BTreeSet<Irqfd>,
    /// The ioeventfds.
    pub ioeventfds: BTreeSet<Ioeventfd>,
    /// The coalesced zones.
    pub zones: BTreeSet<Zone>,
}

impl State {
    /// What this state has and `other` lacks.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self {
            routes: self.routes.without(&other.routes),
            irqfds: &self.irqfds - &other.irqfds,
            ioeventfds: &self.ioeventfds - &other.ioeventfds,
            zones: &self.zones - &other.zones,
        }
    }

    /// Follows a change that was made.
    pub fn follow(&mut self, op: &Op) {
        match op {
            Op::Routes { to, .. } => self.routes = to.clone(),
            Op::AssignIrqfd(irqfd) => _ = self.irqfds.insert(*irqfd),
            Op::DeassignIrqfd(irqfd) => _ = self.irqfds.remove(irqfd),
            Op::AssignIoeventfd(ioeventfd) => _ = self.ioeventfds.insert(*ioeventfd),
            Op::DeassignIoeventfd(ioeventfd) => _ = self.ioeventfds.remove(ioeventfd),
            Op::RegisterZone(zone) => _ = self.zones.insert(*zone),
            Op::UnregisterZone(zone) => _ = self.zones.remove(zone),
        }
    }
}
