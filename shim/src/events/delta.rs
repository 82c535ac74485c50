//! What is different between two states.

use std::collections::BTreeSet;

use super::part::Part;
use super::routes::Routes;
use super::state::State;
use super::types::Route;

/// Some of what KVM has of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts {
    /// Routes.
    pub routes: BTreeSet<Route>,
    /// Irqfds, ioeventfds and coalesced zones.
    pub assigned: BTreeSet<Part>,
}

impl Parts {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.assigned.is_empty()
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
            assigned: &one.assigned - &other.assigned,
        };
        Self { gone: less(live, wanted), come: less(wanted, live) }
    }

    /// Leaves out what would go and come again.
    pub fn cancel(&mut self) {
        cancel(&mut self.gone.routes, &mut self.come.routes);
        cancel(&mut self.gone.assigned, &mut self.come.assigned);
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
