//! The ioctls of a VM fd, one method each.

use std::cmp::Ordering;
use std::fmt;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use kvm_bindings::{
    kvm_clear_dirty_log, kvm_coalesced_mmio_zone, kvm_dirty_log, kvm_enable_cap, kvm_ioeventfd,
    kvm_irq_routing, kvm_irqfd,
};
use kvm_memslots_uapi::{
    kvm_userspace_memory_region, kvm_userspace_memory_region2, kvm_userspace_memory_regions,
};
use libc::c_int;

use super::files::compare_files;
#[cfg(target_arch = "x86_64")]
use super::requests::KVM_GET_IRQCHIP;
use super::requests::{
    KVM_CHECK_EXTENSION, KVM_CLEAR_DIRTY_LOG, KVM_CREATE_VM, KVM_ENABLE_CAP, KVM_GET_API_VERSION,
    KVM_GET_DIRTY_LOG, KVM_IOEVENTFD, KVM_IRQFD, KVM_REGISTER_COALESCED_MMIO, KVM_SET_GSI_ROUTING,
    KVM_SET_USER_MEMORY_REGION, KVM_SET_USER_MEMORY_REGION2, KVM_SET_USER_MEMORY_REGIONS,
    KVM_UNREGISTER_COALESCED_MMIO,
};
use super::retry::retry;
use crate::errno::Errno;

/// What is asked of a VM fd. A trait, so that kernels that lie, that are
/// interrupted or that lack an ioctl can be played.
pub(crate) trait VmCalls: Send + Sync + fmt::Debug {
    /// Another VM of the same KVM, to try things on.
    fn scratch_vm(&self) -> Result<Box<dyn VmCalls>, Errno>;

    /// Whether `other` is of the same open file; `None` where nobody says.
    fn same_file(&self, other: BorrowedFd<'_>) -> Option<bool>;

    /// `KVM_GET_API_VERSION`: succeeds on the `/dev/kvm` fd only.
    fn api_version(&self) -> Result<c_int, Errno>;

    /// `KVM_CHECK_EXTENSION`: not negative.
    fn check_extension(&self, cap: u32) -> Result<c_int, Errno>;

    /// `KVM_SET_USER_MEMORY_REGION`.
    ///
    /// # Safety
    /// [`MemoryCalls::change`](crate::memory::MemoryCalls::change).
    unsafe fn set_user_memory_region(
        &self,
        region: &kvm_userspace_memory_region,
    ) -> Result<(), Errno>;

    /// `KVM_SET_USER_MEMORY_REGION2`.
    ///
    /// # Safety
    /// [`MemoryCalls::change`](crate::memory::MemoryCalls::change).
    unsafe fn set_user_memory_region2(
        &self,
        region: &kvm_userspace_memory_region2,
    ) -> Result<(), Errno>;

    /// `KVM_SET_USER_MEMORY_REGIONS`.
    ///
    /// # Safety
    /// `header` is valid for reads and writes, and the `nr` entries behind it
    /// are for reads; and unless it is a dry run
    /// [`MemoryCalls::change`](crate::memory::MemoryCalls::change) for each.
    unsafe fn set_user_memory_regions(
        &self,
        header: *mut kvm_userspace_memory_regions,
    ) -> Result<(), Errno>;

    /// `KVM_GET_DIRTY_LOG`.
    ///
    /// # Safety
    /// `log` points at memory that may be written, up to where a write faults:
    /// KVM knows how large the slot is, the caller may be mistaken.
    unsafe fn get_dirty_log(&self, log: &kvm_dirty_log) -> Result<(), Errno>;

    /// `KVM_CLEAR_DIRTY_LOG`.
    ///
    /// # Safety
    /// `log` points at `num_pages` bits, rounded up to 64, that may be read.
    unsafe fn clear_dirty_log(&self, log: &mut kvm_clear_dirty_log) -> Result<(), Errno>;

    /// `KVM_SET_GSI_ROUTING`.
    ///
    /// # Safety
    /// `table` and the `nr` entries behind it are valid for reads.
    unsafe fn set_gsi_routing(&self, table: *const kvm_irq_routing) -> Result<(), Errno>;

    /// `KVM_IRQFD`. Descriptors that are not what they should be are refused.
    fn irqfd(&self, irqfd: &kvm_irqfd) -> Result<(), Errno>;

    /// `KVM_IOEVENTFD`, likewise.
    fn ioeventfd(&self, ioeventfd: &kvm_ioeventfd) -> Result<(), Errno>;

    /// `KVM_REGISTER_COALESCED_MMIO`.
    fn register_coalesced_mmio(&self, zone: &kvm_coalesced_mmio_zone) -> Result<(), Errno>;

    /// `KVM_UNREGISTER_COALESCED_MMIO`.
    fn unregister_coalesced_mmio(&self, zone: &kvm_coalesced_mmio_zone) -> Result<(), Errno>;

    /// `KVM_GET_IRQCHIP` of the first PIC, whose state is thrown away: `ENXIO`
    /// where `KVM_CREATE_IRQCHIP` was not called. x86 only.
    fn get_irqchip(&self) -> Result<(), Errno>;

    /// `KVM_ENABLE_CAP` of the VM, of a capability that reads `args` alone.
    fn enable_cap(&self, cap: &kvm_enable_cap) -> Result<(), Errno>;
}

/// # Safety
/// `argument` is what `request` takes: a number, or a pointer that is valid for what
/// the kernel reads and writes there.
unsafe fn ioctl(fd: BorrowedFd<'_>, request: u32, argument: usize) -> Result<c_int, Errno> {
    // 32 bits, of which musl makes an `int`.
    #[allow(clippy::cast_lossless)]
    let request = request as libc::Ioctl;
    // SAFETY: the caller's promise.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if answer < 0 { Err(Errno::last()) } else { Ok(answer) }
}

/// The same with a structure that the kernel reads; with one that it writes, too, if
/// the pointer is a mutable one.
///
/// # Safety
/// It is what `request` takes; what pointers in it point at is the caller's promise.
unsafe fn tell<T>(fd: &OwnedFd, request: u32, argument: *const T) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { ioctl(fd.as_fd(), request, argument.expose_provenance()) }.map(drop)
}

/// `KVM_CHECK_EXTENSION` of a VM, or of `/dev/kvm`.
pub(super) fn check_extension(fd: BorrowedFd<'_>, cap: u32) -> Result<c_int, Errno> {
    let cap = usize::try_from(cap).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the argument is a number, and nothing is changed.
    unsafe { ioctl(fd, KVM_CHECK_EXTENSION, cap) }
}

/// `KVM_CAP_ARM_VM_IPA_SIZE`: how many bits a guest address can have, which is
/// the type of a VM where the default, 40, is more than the host has.
const CAP_ARM_VM_IPA_SIZE: u32 = 165;

/// Another VM on the same KVM.
///
/// # Errors
/// That of opening `/dev/kvm`, or of `KVM_CREATE_VM`.
fn new_vm() -> Result<OwnedFd, Errno> {
    let kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|error| Errno::of(&error))?;
    // SAFETY: the argument is a number, the type of the VM; a new descriptor is all
    // that comes of it.
    let create = |kind: usize| retry(|| unsafe { ioctl(kvm.as_fd(), KVM_CREATE_VM, kind) });
    let vm =
        create(0).or_else(|errno| match check_extension(kvm.as_fd(), CAP_ARM_VM_IPA_SIZE) {
            Ok(bits @ 1..) => create(bits.unsigned_abs() as usize),
            _ => Err(errno),
        })?;
    // SAFETY: KVM has just given this descriptor out, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(vm) })
}

impl VmCalls for OwnedFd {
    fn scratch_vm(&self) -> Result<Box<dyn VmCalls>, Errno> {
        new_vm().map(|vm| Box::new(vm) as _)
    }

    fn same_file(&self, other: BorrowedFd<'_>) -> Option<bool> {
        let order = compare_files(self.as_raw_fd(), other.as_raw_fd());
        order.ok().map(Ordering::is_eq)
    }

    fn api_version(&self) -> Result<c_int, Errno> {
        // KVM refuses the call if its argument, which it does not use, is not 0.
        // SAFETY: the argument is a number, and nothing is changed.
        unsafe { ioctl(self.as_fd(), KVM_GET_API_VERSION, 0) }
    }

    fn check_extension(&self, cap: u32) -> Result<c_int, Errno> {
        check_extension(self.as_fd(), cap)
    }

    unsafe fn set_user_memory_region(
        &self,
        region: &kvm_userspace_memory_region,
    ) -> Result<(), Errno> {
        // SAFETY: what it maps is the caller's promise.
        unsafe { tell(self, KVM_SET_USER_MEMORY_REGION, region) }
    }

    unsafe fn set_user_memory_region2(
        &self,
        region: &kvm_userspace_memory_region2,
    ) -> Result<(), Errno> {
        // SAFETY: what it maps is the caller's promise.
        unsafe { tell(self, KVM_SET_USER_MEMORY_REGION2, region) }
    }

    unsafe fn set_user_memory_regions(
        &self,
        header: *mut kvm_userspace_memory_regions,
    ) -> Result<(), Errno> {
        // SAFETY: the caller's promise, for pointer and mappings.
        unsafe { tell(self, KVM_SET_USER_MEMORY_REGIONS, header) }
    }

    unsafe fn get_dirty_log(&self, log: &kvm_dirty_log) -> Result<(), Errno> {
        // SAFETY: the kernel writes behind its pointer, where the caller says that
        // it may.
        unsafe { tell(self, KVM_GET_DIRTY_LOG, log) }
    }

    unsafe fn clear_dirty_log(&self, log: &mut kvm_clear_dirty_log) -> Result<(), Errno> {
        // SAFETY: the kernel writes the structure, and reads behind its pointer, where
        // the caller says that it may.
        unsafe { tell(self, KVM_CLEAR_DIRTY_LOG, &raw mut *log) }
    }

    unsafe fn set_gsi_routing(&self, table: *const kvm_irq_routing) -> Result<(), Errno> {
        // SAFETY: the kernel reads what the caller says may be read.
        unsafe { tell(self, KVM_SET_GSI_ROUTING, table) }
    }

    fn irqfd(&self, irqfd: &kvm_irqfd) -> Result<(), Errno> {
        // SAFETY: there is no pointer in it.
        unsafe { tell(self, KVM_IRQFD, irqfd) }
    }

    fn ioeventfd(&self, ioeventfd: &kvm_ioeventfd) -> Result<(), Errno> {
        // SAFETY: there is no pointer in it.
        unsafe { tell(self, KVM_IOEVENTFD, ioeventfd) }
    }

    fn register_coalesced_mmio(&self, zone: &kvm_coalesced_mmio_zone) -> Result<(), Errno> {
        // SAFETY: there is no pointer in it.
        unsafe { tell(self, KVM_REGISTER_COALESCED_MMIO, zone) }
    }

    fn unregister_coalesced_mmio(&self, zone: &kvm_coalesced_mmio_zone) -> Result<(), Errno> {
        // SAFETY: there is no pointer in it.
        unsafe { tell(self, KVM_UNREGISTER_COALESCED_MMIO, zone) }
    }

    #[cfg(target_arch = "x86_64")]
    fn get_irqchip(&self) -> Result<(), Errno> {
        let mut chip = kvm_bindings::kvm_irqchip::default();
        // SAFETY: the kernel reads and writes the structure, which is borrowed
        // mutably.
        unsafe { tell(self, KVM_GET_IRQCHIP, &raw mut chip) }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn get_irqchip(&self) -> Result<(), Errno> {
        Err(Errno::ENOTTY)
    }

    fn enable_cap(&self, cap: &kvm_enable_cap) -> Result<(), Errno> {
        // SAFETY: its `args` are numbers to the capabilities that this is for.
        unsafe { tell(self, KVM_ENABLE_CAP, cap) }
    }
}
