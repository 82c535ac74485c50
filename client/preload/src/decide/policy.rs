//! When deferred slots are mapped: by hits, or by what they have cost.

use kvm_memslots::deferred::policy::{Costs, Estimate, Policy};

/// The bill of one VM: what its exits and its slots cost, as measured, and what
/// has been paid since the slots were deferred.
#[derive(Debug, Default)]
pub(crate) struct Bill {
    policy: Policy,
    map: Estimate,
    unmap: Estimate,
    /// The shortest way from one exit through the guest to the next: what the
    /// guest does in between is not the exit's.
    round_trip: Option<u64>,
    exits: u64,
}

impl Bill {
    pub(crate) fn new(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// A slot was mapped by a call that took this long.
    pub(crate) fn mapped(&mut self, ns: u64) {
        self.map.add(ns);
    }

    /// A slot was deleted by a call that took this long.
    pub(crate) fn unmapped(&mut self, ns: u64) {
        self.unmap.add(ns);
    }

    /// An exit was served, `ns` after the one before it, if that is known.
    pub(crate) fn exit(&mut self, ns: Option<u64>) {
        self.exits = self.exits.saturating_add(1);
        self.round_trip = self.round_trip.into_iter().chain(ns).min();
    }

    /// Nothing is deferred any more.
    pub(crate) fn settled(&mut self) {
        self.exits = 0;
    }

    /// Whether `deferred` slots, together, are worth mapping.
    pub(crate) fn is_due(&self, deferred: usize) -> bool {
        let costs = self.costs();
        let price = costs.slot_ns().saturating_mul(deferred as u64);
        deferred > 0 && self.exits >= self.policy.exits(price, costs.exit_ns)
    }

    /// What things cost here.
    pub(crate) fn costs(&self) -> Costs {
        let unmeasured = Costs::UNMEASURED;
        Costs {
            map_ns: self.map.ns().unwrap_or(unmeasured.map_ns),
            unmap_ns: self.unmap.ns().unwrap_or(unmeasured.unmap_ns),
            exit_ns: self.round_trip.unwrap_or(unmeasured.exit_ns),
        }
    }
}
