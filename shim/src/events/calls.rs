//! Who answers the event calls of one VM: KVM, or the model of it.

use super::types::{Ioeventfd, Irqfd, Route};
use super::zone::Zone;
use crate::errno::Errno;
use crate::limits::{EventLimits, ZoneLimits};

/// The calls of one VM, each as the ioctl of the same name, with the kernel's
/// errno where it refuses; nothing has changed then.
pub trait EventCalls: Send + Sync {
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
    fn set_routes(&self, routes: &[Route]) -> Result<(), Errno>;

    /// `KVM_IRQFD`.
    ///
    /// # Errors
    /// `EINVAL`: no interrupt controller in the kernel (for resampling: none
    /// with pins), or a descriptor that is no eventfd; `EBADF`: one that is not
    /// open; `EBUSY`: the eventfd is an irqfd already; `EAGAIN`: the
    /// controller is not set up yet (arm64).
    fn assign_irqfd(&self, irqfd: &Irqfd) -> Result<(), Errno>;

    /// `KVM_IRQFD` with `KVM_IRQFD_FLAG_DEASSIGN`. Waits until a worker of the
    /// kernel's has waited for a grace period on `kvm->irq_srcu`, with
    /// resampling for two.
    ///
    /// # Errors
    /// `EBADF`, `EINVAL`. That there is no such irqfd is not an error to KVM.
    fn deassign_irqfd(&self, irqfd: &Irqfd) -> Result<(), Errno>;

    /// `KVM_IOEVENTFD`.
    ///
    /// # Errors
    /// `EINVAL`: length, address, or a descriptor that is no eventfd; `EBADF`:
    /// one that is not open; `EEXIST`: another ioeventfd would fire for some of
    /// the same writes.
    fn assign_ioeventfd(&self, ioeventfd: &Ioeventfd) -> Result<(), Errno>;

    /// `KVM_IOEVENTFD` with `KVM_IOEVENTFD_FLAG_DEASSIGN`. Waits for one grace
    /// period on `kvm->srcu`, for two where the length is 0 on MMIO.
    ///
    /// # Errors
    /// `ENOENT`: there is none like this; `EBADF`, `EINVAL`.
    fn deassign_ioeventfd(&self, ioeventfd: &Ioeventfd) -> Result<(), Errno>;

    /// What this VM allows of zones: nothing, unless it says so.
    fn zone_limits(&self) -> ZoneLimits {
        ZoneLimits::default()
    }

    /// `KVM_REGISTER_COALESCED_MMIO`. KVM takes a zone as often as it is
    /// registered, and one that overlaps with others.
    ///
    /// # Errors
    /// `ENOSPC`: the bus is full (`NR_IOBUS_DEVS`, which ioeventfds don't count
    /// for); `ENOTTY` where there are none.
    fn register_zone(&self, _zone: &Zone) -> Result<(), Errno> {
        Err(Errno::ENOTTY)
    }

    /// `KVM_UNREGISTER_COALESCED_MMIO`: of all zones that this one is in. Waits
    /// for one grace period on `kvm->srcu` for each.
    ///
    /// # Errors
    /// `ENOTTY` where there are none. That there is no such zone is not an error
    /// to KVM.
    fn unregister_zone(&self, _zone: &Zone) -> Result<(), Errno> {
        Err(Errno::ENOTTY)
    }

    /// Whether `KVM_CREATE_IRQCHIP` was called on the VM, as `KVM_GET_IRQCHIP`
    /// says; `None` where nobody can tell.
    fn has_irqchip(&self) -> Option<bool> {
        None
    }
}
