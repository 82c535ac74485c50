//! What a set of changes cost.

use std::fmt;
use std::time::Duration;

use kvm_memslots_shim::Range;
use kvm_memslots_shim::events;

use crate::dirty::DirtyBitmap;
use crate::region::Region;

/// How changes of memory are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Executor {
    /// The batch ioctl where the kernel has it, single calls elsewhere.
    #[default]
    Auto,
    /// `KVM_SET_USER_MEMORY_REGIONS`.
    Batch,
    /// One `KVM_SET_USER_MEMORY_REGION` a change.
    PerRegion,
}

/// What a set of changes cost.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// System calls that changed memslots, as counted while they were made.
    pub ioctls: u64,
    /// SRCU grace periods that those calls wait for, by KVM's rules: one for a
    /// call that creates or changes flags, two for one that deletes or moves, none for
    /// a flip of the trap flag. A VM's first flip to a region that traps waits for one.
    pub grace_periods: u64,
    /// Calls for routes, irqfds and ioeventfds, and what they wait for by the
    /// rules of Linux 6.18.
    pub events: events::Cost,
    /// Regions that were put into a slot beside another one, so that they cost
    /// no call of their own.
    pub regions_merged: usize,
    /// Regions mapped in this set that cost nothing, as a slot already had just
    /// that memory there: their unmap and map cancelled.
    pub regions_cancelled: usize,
    /// Regions mapped in this set that got no slot yet, as they are deferrable.
    pub regions_deferred: usize,
    /// From the first call to the last.
    pub elapsed: Duration,
    /// How the memslot calls were made.
    pub executor: Executor,
    /// `"kvm"`, or `"model"` where nothing of this really happened.
    pub backend: &'static str,
    /// Whether vCPUs were paused through the gate.
    pub vcpus_paused: bool,
    /// Slots of the VM afterwards.
    pub slots: usize,
    /// The last dirty pages of logged memory that was unmapped, with the regions as they
    /// were: lookups do not find them any more. So of what was cut off a region that
    /// shrank, and of the memory that a region had before it got
    /// [other](crate::Changes::replace): as regions of its name.
    pub last_dirty: Vec<(Region, DirtyBitmap)>,
    /// Logged regions that were unmapped, and so large that there was no memory for
    /// as many bits as they have pages: all of their pages may be dirty. Before they
    /// go, [`Vm::dirty_log_of`](crate::Vm::dirty_log_of) reads such a log in parts.
    pub last_dirty_lost: Vec<Region>,
}

impl Report {
    /// System calls that changed something.
    #[must_use]
    pub const fn calls(&self) -> u64 {
        self.ioctls + self.events.calls()
    }

    /// Grace periods waited for in the calls themselves; those of the kernel's
    /// worker behind `KVM_IRQFD` deassign are `events.waits.in_irqfd_shutdown`.
    #[must_use]
    pub const fn waits(&self) -> u64 {
        self.grace_periods + self.events.waits.in_calls
    }
}

/// [`calls`](Self::calls), [`waits`](Self::waits), and what the regions came to.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} calls, {} waits for grace periods, {} merged, {} cancelled, {:?} ({})",
            self.calls(),
            self.waits(),
            self.regions_merged,
            self.regions_cancelled,
            self.elapsed,
            self.backend
        )
    }
}

/// What a set of changes would cost.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preview {
    /// System calls that would change memslots.
    pub ioctls: u64,
    /// Grace periods those calls would wait for.
    pub grace_periods: u64,
    /// Calls for routes, irqfds and ioeventfds, and what they would wait for.
    pub events: events::Cost,
    /// Guest pages that stay mapped, but would be unmapped for a moment between
    /// two calls, with their address spaces. Empty where one batch ioctl does it
    /// all.
    pub holes: Vec<(u16, Range)>,
    /// Slots of the VM afterwards.
    pub slots: usize,
}
