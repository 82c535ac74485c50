//! Ioeventfds, irqfds and interrupt routes: how a VM's devices and its guest
//! signal each other without an exit to the VMM.
//!
//! As for memory: a pure planner ([`plan`]) that says which calls lead from one
//! [`State`] to another, an executor ([`carry_out`]) that makes them and undoes
//! them if one fails, and somebody who answers ([`EventCalls`]): KVM
//! ([`KvmEventing`]) or an in-memory model of it ([`EventModel`]).
//!
//! # Words
//! A *GSI* is the number by which KVM knows an interrupt; a *route* says what
//! raising it does: a message to a local APIC or ITS (MSI), or a pin of an
//! interrupt controller in the kernel. An *irqfd* raises a GSI when an eventfd
//! is signalled; an *ioeventfd* signals an eventfd when the guest writes to an
//! address.

mod bus;
mod exec;
mod gsis;
mod kvm;
mod model;
mod plan;
mod types;

pub use exec::{Carried, Incomplete, Refused, carry_out};
pub use gsis::Gsis;
pub use kvm::KvmEventing;
pub use model::{
    EventCall, EventCounts, EventFault, EventModel, FdKind, Irqchip, SharedEventModel,
};
pub use plan::{State, Step, Waits, plan};
pub use types::{Bus, Ioeventfd, Irqfd, Msi, Route, RouteTarget};

use crate::backend::Errno;

/// What a VM's KVM allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventLimits {
    /// GSIs run from 0 to `routes - 1`, and a table has at most this many
    /// routes (`KVM_CAP_IRQ_ROUTING`).
    pub routes: u32,
    /// Whether `KVM_IRQFD_FLAG_NO_IRQBYPASS` can be used.
    pub no_irqbypass: bool,
    /// Whether an MSI route can name its device (`KVM_CAP_MSI_DEVID`).
    pub devid: bool,
}

/// The calls of one VM, each as the ioctl of the same name, with the kernel's
/// errno where it refuses; nothing has changed then.
pub trait EventCalls: Send {
    /// What this VM allows.
    fn limits(&self) -> EventLimits;

    /// A word for reports: `"kvm"` or `"model"`.
    fn name(&self) -> &'static str;

    /// `KVM_SET_GSI_ROUTING`: replaces all routes of the VM. Waits for one
    /// grace period on `kvm->irq_srcu`.
    ///
    /// # Errors
    /// `EINVAL`: no interrupt controller in the kernel, too many routes, a GSI
    /// or pin that there is not, a GSI with two routes.
    fn set_routes(&mut self, routes: &[Route]) -> Result<(), Errno>;

    /// `KVM_IRQFD`.
    ///
    /// # Errors
    /// `EINVAL`: no interrupt controller in the kernel (for resampling: none
    /// with pins), or a descriptor that is no eventfd; `EBADF`: one that is not
    /// open; `EBUSY`: the eventfd is an irqfd already; `EAGAIN`: the
    /// controller is not set up yet (arm64).
    fn assign_irqfd(&mut self, irqfd: &Irqfd) -> Result<(), Errno>;

    /// `KVM_IRQFD` with `KVM_IRQFD_FLAG_DEASSIGN`. Waits until a worker of the
    /// kernel's has waited for a grace period on `kvm->irq_srcu`, with
    /// resampling for two.
    ///
    /// # Errors
    /// `EBADF`, `EINVAL`. That there is no such irqfd is not an error to KVM.
    fn deassign_irqfd(&mut self, irqfd: &Irqfd) -> Result<(), Errno>;

    /// `KVM_IOEVENTFD`.
    ///
    /// # Errors
    /// `EINVAL`: length, address, or a descriptor that is no eventfd; `EBADF`:
    /// one that is not open; `EEXIST`: another ioeventfd would fire for some of
    /// the same writes.
    fn assign_ioeventfd(&mut self, ioeventfd: &Ioeventfd) -> Result<(), Errno>;

    /// `KVM_IOEVENTFD` with `KVM_IOEVENTFD_FLAG_DEASSIGN`. Waits for one grace
    /// period on `kvm->srcu`, for two where the length is 0 on MMIO.
    ///
    /// # Errors
    /// `ENOENT`: there is none like this; `EBADF`, `EINVAL`.
    fn deassign_ioeventfd(&mut self, ioeventfd: &Ioeventfd) -> Result<(), Errno>;
}
