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
