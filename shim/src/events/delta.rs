//! What is different between two states.

use std::collections::BTreeSet;

use super::routes::Routes;
use super::state::State;
use super::types::{Ioeventfd, Irqfd, Route};
use super::zone::Zone;

/// Some of what KVM has of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts {
    /// Routes.
    pub routes: BTreeSet<Route>,
    /// Irqfds.
    pub irqfds: BTreeSet<Irqfd>,
    /// Ioeventfds.
    pub ioeventfds: BTreeSet<Ioeventfd>,
    /// Coalesced zones.
    pub zones: BTreeSet<Zone>,
}

impl Parts {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let interrupts = self.routes.is_empty() && self.irqfds.is_empty();
        interrupts && self.ioeventfds.is_empty() && self.zones.is_empty()
    }
}

/// What is to go and what is to come. Nothing of `gone` is in `come`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Delta {
    /// What KVM has, and is not to have any more.
    pub gone: Parts,
    /// What it is to have, and has not yet.
    pub come: Parts,
}

impl Delta {
    /// All that is different.
    #[must_use]
    pub fn between(live: &State, wanted: &State) -> Self {
        let less = |one: &State, other: &State| Parts {
            routes: one.routes.without(&other.routes).iter().copied().collect(),
            irqfds: &one.irqfds - &other.irqfds,
            ioeventfds: &one.ioeventfds - &other.ioeventfds,
            zones: &one.zones - &other.zones,
        };
        Self { gone: less(live, wanted), come: less(wanted, live) }
    }

    /// Leaves out what would go and come again.
    pub fn cancel(&mut self) {
        cancel(&mut self.gone.routes, &mut self.come.routes);
        cancel(&mut self.gone.irqfds, &mut self.come.irqfds);
        cancel(&mut self.gone.ioeventfds, &mut self.come.ioeventfds);
        cancel(&mut self.gone.zones, &mut self.come.zones);
    }

    /// How many routes there are then, of a VM with these.
    #[must_use]
    pub fn routes_after(&self, live: &Routes) -> usize {
        (live.len() + self.come.routes.len()).saturating_sub(self.gone.routes.len())
    }
}

fn cancel<T: Ord>(gone: &mut BTreeSet<T>, come: &mut BTreeSet<T>) {
    if !gone.is_empty() {
        come.retain(|part| !gone.remove(part));
    }
}
