//! What changes took beside time.

use std::ops::AddAssign;
use std::time::Duration;

use kvm_memslots::Report;
use serde::{Deserialize, Serialize};

use crate::compare::{Lap, Taken};

/// What changes cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Spent {
    /// Calls that changed something in KVM, flips not among them.
    pub ioctls: u64,
    /// Calls that only flipped the trap bit.
    pub flips: u64,
    /// Of the calls, `KVM_SET_GSI_ROUTING`.
    pub routing_calls: u64,
    /// Grace periods that the calls wait for, by KVM's rules.
    pub grace_periods: u64,
    /// Of those, `KVM_IOEVENTFD` deassign's.
    pub in_ioeventfd_deassign: u64,
    /// Those of the worker behind `KVM_IRQFD` deassign.
    pub in_irqfd_shutdown: u64,
    /// How often vCPUs were paused.
    pub pauses: u64,
    /// The time in those calls; without the library, from the first to the
    /// last, as a clock read beside each would count.
    pub in_calls: Duration,
}

impl Spent {
    /// Calls that wait for `grace_periods` together.
    #[must_use]
    pub fn calls(ioctls: u64, grace_periods: u64) -> Self {
        Self { ioctls, grace_periods, ..Self::default() }
    }

    /// A table of routes that was set.
    pub(crate) fn routes() -> Self {
        Self { routing_calls: 1, ..Self::calls(1, 1) }
    }

    /// An irqfd that was deassigned.
    pub(crate) fn irqfd_gone() -> Self {
        Self { in_irqfd_shutdown: 1, ..Self::calls(1, 0) }
    }

    /// An ioeventfd that was deassigned.
    pub(crate) fn ioeventfd_gone() -> Self {
        Self { in_ioeventfd_deassign: 1, ..Self::calls(1, 1) }
    }

    /// For a row.
    pub(crate) fn taken(&self, lap: Lap) -> Taken {
        Taken {
            lap,
            ioctls: Some(self.ioctls + self.flips),
            grace_periods: Some(self.grace_periods),
            ..Taken::default()
        }
    }
}

impl AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.ioctls += other.ioctls;
        self.flips += other.flips;
        self.routing_calls += other.routing_calls;
        self.grace_periods += other.grace_periods;
        self.in_ioeventfd_deassign += other.in_ioeventfd_deassign;
        self.in_irqfd_shutdown += other.in_irqfd_shutdown;
        self.pauses += other.pauses;
        self.in_calls += other.in_calls;
    }
}

impl From<&Report> for Spent {
    fn from(report: &Report) -> Self {
        Self {
            ioctls: report.calls(),
            flips: 0,
            routing_calls: report.events.routing_calls,
            grace_periods: report.waits(),
            in_ioeventfd_deassign: report.events.waits.in_ioeventfd_deassign,
            in_irqfd_shutdown: report.events.waits.in_irqfd_shutdown,
            pauses: report.vcpus_paused.into(),
            in_calls: report.elapsed,
        }
    }
}
