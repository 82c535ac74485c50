//! Whole devices: their memory, ioeventfds and interrupts attached and
//! detached as one unit, all or nothing.
//!
//! An [`Eventing`] stands beside the [`AddressSpace`](crate::AddressSpace) of a
//! VM and knows its irqfds, ioeventfds and interrupt routes. A device is
//! described ([`DeviceSetup`]) and attached, alone or with others:
//!
//! 1. all memory, in one transaction,
//! 2. all routes, in one `KVM_SET_GSI_ROUTING` (none if nothing changes),
//! 3. irqfds, which find their routes,
//! 4. ioeventfds.
//!
//! Detaching goes backwards. What the calls wait for, why they are made in this
//! order and what that costs is in `docs/devices.md`.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use std::os::fd::{FromRawFd, OwnedFd};
//! use kvm_memslots::backend::Model;
//! use kvm_memslots::device::{Bus, DeviceSetup, EventModel, Eventing, Irqchip, Msi};
//! use kvm_memslots::{AddressSpace, Limits};
//!
//! # fn eventfd() -> OwnedFd { unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, 0)) } }
//! // `.open(&vm_fd)` on a real VM, for both.
//! let mut space = AddressSpace::builder().open_on(Box::new(Model::new(Limits::x86())))?;
//! let mut eventing = Eventing::builder().open_on(Box::new(EventModel::new(Irqchip::Split)))?;
//!
//! let (kick, interrupt) = (eventfd(), eventfd());
//! let mut disk = DeviceSetup::new("disk0");
//! disk.ioeventfd(Bus::Mmio, 0xe000_3000, 2, Some(0), &kick)?.vector(&interrupt, None)?;
//! let disk = eventing.attach(&mut space, disk)?;
//!
//! // The guest enables vectors one by one; KVM gets one table.
//! eventing.set_vector(disk, 0, Some(Msi { address: 0xfee0_0000, data: 0x41, devid: None }))?;
//! let report = eventing.commit()?;
//! assert_eq!((report.events.routing_calls, report.events.irqfd_calls), (1, 1));
//!
//! eventing.detach(&mut space, disk)?;
//! # Ok(()) }
//! ```

mod attach;
mod builder;
mod check;
mod error;
mod eventing;
mod memory;
mod parts;
mod report;
mod setup;

pub use builder::EventingBuilder;
pub use error::{DeviceError, DeviceErrorKind, DevicePart};
pub use eventing::Eventing;
pub use kvm_memslots_shim::eventing::{
    Bus, Carried, EventCall, EventCalls, EventCounts, EventFault, EventLimits, EventModel, FdKind,
    Ioeventfd, Irqchip, Irqfd, KvmEventing, Msi, Route, RouteTarget, SharedEventModel, State, Step,
    Waits,
};
pub use report::DeviceReport;
pub use setup::DeviceSetup;

use std::fmt;

/// Names an attached device of one [`Eventing`], until it is detached; never
/// names another one afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    pub(crate) eventing: u32,
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {}.{} of eventing {}", self.index, self.generation, self.eventing)
    }
}
