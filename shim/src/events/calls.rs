//! Who answers the event calls of one VM: KVM, or the model of it.

use super::op::Op;
use crate::errno::Errno;
use crate::limits::EventLimits;

/// The calls of one VM, each as the ioctl that it stands for, with the kernel's
/// errno where it refuses; nothing has changed then.
pub trait EventCalls: Send + Sync {
    /// What this VM allows.
    fn limits(&self) -> EventLimits;

    /// A word for reports: `"kvm"` or `"model"`.
    fn name(&self) -> &'static str;

    /// Makes one call.
    ///
    /// - `KVM_SET_GSI_ROUTING` replaces all routes of the VM, and waits for one grace
    ///   period on `kvm->irq_srcu`.
    /// - `KVM_IRQFD`, deassign, waits until a worker of the kernel's has waited for a
    ///   grace period on `kvm->irq_srcu`, with resampling for two. That there is no
    ///   such irqfd is not an error to KVM.
    /// - `KVM_IOEVENTFD`, deassign, waits for one grace period on `kvm->srcu`, for two
    ///   where the length is 0 on MMIO.
    /// - `KVM_REGISTER_COALESCED_MMIO`: KVM takes a zone as often as it is registered,
    ///   and one that overlaps with others.
    /// - `KVM_UNREGISTER_COALESCED_MMIO` is of all zones that this one is in, and waits
    ///   for one grace period on `kvm->srcu` for each. That there is none is not an
    ///   error to KVM.
    ///
    /// # Errors
    /// - Of routes `EINVAL`: no interrupt controller in the kernel, too many, a GSI or
    ///   pin that there is not, a GSI with two routes.
    /// - Of an irqfd `EINVAL`: no interrupt controller in the kernel (for resampling:
    ///   none with pins), or a descriptor that is no eventfd; `EBADF`: one that is not
    ///   open; `EBUSY`: the eventfd is an irqfd already; `EAGAIN`: the controller is
    ///   not set up yet (arm64).
    /// - Of an ioeventfd `EINVAL`: length, address, or a descriptor that is no eventfd;
    ///   `EBADF`: one that is not open; `EEXIST`: another would fire for some of the
    ///   same writes; `ENOENT`: there is none like this to deassign.
    /// - Of a zone `ENOSPC`: the bus is full (`NR_IOBUS_DEVS`, which ioeventfds don't
    ///   count for); `ENOTTY` where there are none.
    fn change(&self, op: &Op) -> Result<(), Errno>;

    /// Whether `KVM_CREATE_IRQCHIP` was called on the VM, as `KVM_GET_IRQCHIP`
    /// says; `None` where nobody can tell.
    fn has_irqchip(&self) -> Option<bool> {
        None
    }
}
