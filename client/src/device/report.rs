//! What attaching and detaching cost.

use std::fmt;
use std::time::Duration;

use kvm_memslots_shim::eventing::Carried;

use crate::CommitReport;

/// What a change of devices cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceReport {
    /// The memory; `None` where there was none to change.
    pub memory: Option<CommitReport>,
    /// Routes, irqfds and ioeventfds.
    pub events: Carried,
    /// From the first check to the last call.
    pub elapsed: Duration,
}

impl DeviceReport {
    /// System calls that changed something.
    #[must_use]
    pub fn ioctls(&self) -> u64 {
        let events = self.events;
        self.memory.map_or(0, |memory| memory.ioctls)
            + events.routing_calls
            + events.irqfd_calls
            + events.ioeventfd_calls
    }

    /// Grace periods waited for in the calls themselves, by the rules of Linux
    /// 6.18; those of the kernel's worker behind `KVM_IRQFD` deassign are
    /// `events.waits.in_irqfd_shutdown`.
    #[must_use]
    pub fn grace_periods(&self) -> u64 {
        self.memory.map_or(0, |memory| memory.grace_periods) + self.events.waits.in_calls
    }
}

impl fmt::Display for DeviceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ioctls, {} grace periods and {} in irqfd shutdown, {:?}",
            self.ioctls(),
            self.grace_periods(),
            self.events.waits.in_irqfd_shutdown,
            self.elapsed
        )
    }
}
