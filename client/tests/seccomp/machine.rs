//! A VM in such a process, and what it is made of.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_memslots::deferred::{Deferral, Policy};
use kvm_memslots::{Access, Backing, HostMemory, Vm};

use crate::jail::{SKIP, end};

pub(crate) const PAGE: u64 = 4096;

/// A VM of this process, or its end. A VM can be used in the process only that
/// made it.
pub(crate) fn vm_fd() -> kvm_ioctls::VmFd {
    let vm = kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm());
    vm.unwrap_or_else(|error| end(SKIP, &format!("no VM from /dev/kvm: {error}")))
}

pub(crate) fn borrowed(vm: &kvm_ioctls::VmFd) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the VM keeps it open.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(vm.as_raw_fd()) }
}

pub(crate) fn open(vm: &kvm_ioctls::VmFd) -> Vm {
    let deferral = Deferral::default().policy(Policy::Fixed { exits: 4 });
    Vm::builder().deferral(deferral).manual_dirty_log(true).open(borrowed(vm)).unwrap()
}

/// Pages of this process, for as long as that is.
pub(crate) struct Pages {
    hva: u64,
    len: u64,
    never_faults: bool,
}

// SAFETY: they are never unmapped, and only used as memory of guests.
unsafe impl HostMemory for Pages {
    fn range(&self) -> (u64, u64) {
        (self.hva, self.len)
    }

    fn access(&self) -> Access {
        Access::ReadWrite
    }

    fn never_faults(&self) -> bool {
        self.never_faults
    }
}

pub(crate) fn pages(count: u64, never_faults: bool) -> Backing {
    let len = count * PAGE;
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, which takes no other's place.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len as usize, access, kind, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    let hva = at.expose_provenance() as u64;
    Backing::owned(Arc::new(Pages { hva, len, never_faults }), 0)
}

/// Whether this VM takes devices: a split irqchip is x86's.
pub(crate) fn has_irqchip(vm: &kvm_ioctls::VmFd) -> bool {
    let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    split.args[0] = 24;
    cfg!(target_arch = "x86_64") && vm.enable_cap(&split).is_ok()
}

/// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.
pub(crate) fn make_manual(vm: &kvm_ioctls::VmFd) {
    let mut manual = kvm_enable_cap { cap: 168, ..Default::default() };
    manual.args[0] = 1;
    vm.enable_cap(&manual).unwrap();
}
