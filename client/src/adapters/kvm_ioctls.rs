//! `kvm_ioctls::VmFd`, which is `AsRawFd` only.

use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_ioctls::VmFd;

/// The descriptor of `vm`, for [`Vm::open`](crate::Vm::open).
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use kvm_memslots::{Vm, vm_fd};
///
/// # if std::fs::metadata("/dev/kvm").is_err() { return Ok(()) }
/// let kvm = kvm_ioctls::Kvm::new()?;
/// let fd = kvm.create_vm()?;
/// let vm = Vm::open(vm_fd(&fd))?;
/// # Ok(()) }
/// ```
#[must_use]
pub fn vm_fd(vm: &VmFd) -> BorrowedFd<'_> {
    // SAFETY: `vm` owns the descriptor and keeps it open for the lifetime of
    // the borrow.
    unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) }
}
