//! The ioctls of a VM fd, one method each.

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

mod request {
    #[cfg(target_arch = "x86_64")]
    use kvm_bindings::kvm_irqchip;
    use kvm_bindings::{
        kvm_clear_dirty_log, kvm_coalesced_mmio_zone, kvm_dirty_log, kvm_enable_cap, kvm_ioeventfd,
        kvm_irq_routing, kvm_irqfd,
    };
    use kvm_memslots_uapi::{
        kvm_userspace_memory_region, kvm_userspace_memory_region2, kvm_userspace_memory_regions,
    };
    use nix::{ioctl_readwrite_bad, ioctl_write_int_bad, ioctl_write_ptr_bad};

    #[cfg(target_arch = "x86_64")]
    use crate::kvm::requests::KVM_GET_IRQCHIP;
    use crate::kvm::requests::{
        KVM_CHECK_EXTENSION, KVM_CLEAR_DIRTY_LOG, KVM_CREATE_VM, KVM_ENABLE_CAP,
        KVM_GET_API_VERSION, KVM_GET_DIRTY_LOG, KVM_IOEVENTFD, KVM_IRQFD,
        KVM_REGISTER_COALESCED_MMIO, KVM_SET_GSI_ROUTING, KVM_SET_USER_MEMORY_REGION,
        KVM_SET_USER_MEMORY_REGION2, KVM_SET_USER_MEMORY_REGIONS, KVM_UNREGISTER_COALESCED_MMIO,
    };

    // KVM refuses the call if its argument, which it does not use, is not 0.
    ioctl_write_int_bad!(get_api_version, KVM_GET_API_VERSION);
    // The argument is the type of the VM.
    ioctl_write_int_bad!(create_vm, KVM_CREATE_VM);
    ioctl_write_int_bad!(check_extension, KVM_CHECK_EXTENSION);
    ioctl_write_ptr_bad!(get_dirty_log, KVM_GET_DIRTY_LOG, kvm_dirty_log);
    ioctl_write_ptr_bad!(
        set_user_memory_region,
        KVM_SET_USER_MEMORY_REGION,
        kvm_userspace_memory_region
    );
    ioctl_write_ptr_bad!(
        set_user_memory_region2,
        KVM_SET_USER_MEMORY_REGION2,
        kvm_userspace_memory_region2
    );
    #[cfg(target_arch = "x86_64")]
    ioctl_readwrite_bad!(get_irqchip, KVM_GET_IRQCHIP, kvm_irqchip);
    ioctl_write_ptr_bad!(enable_cap, KVM_ENABLE_CAP, kvm_enable_cap);
    ioctl_write_ptr_bad!(set_gsi_routing, KVM_SET_GSI_ROUTING, kvm_irq_routing);
    ioctl_write_ptr_bad!(irqfd, KVM_IRQFD, kvm_irqfd);
    ioctl_write_ptr_bad!(ioeventfd, KVM_IOEVENTFD, kvm_ioeventfd);
    ioctl_write_ptr_bad!(
        register_coalesced_mmio,
        KVM_REGISTER_COALESCED_MMIO,
        kvm_coalesced_mmio_zone
    );
    ioctl_write_ptr_bad!(
        unregister_coalesced_mmio,
        KVM_UNREGISTER_COALESCED_MMIO,
        kvm_coalesced_mmio_zone
    );
    ioctl_readwrite_bad!(clear_dirty_log, KVM_CLEAR_DIRTY_LOG, kvm_clear_dirty_log);
    ioctl_readwrite_bad!(
        set_user_memory_regions,
        KVM_SET_USER_MEMORY_REGIONS,
        kvm_userspace_memory_regions
    );
}

/// `KVM_CHECK_EXTENSION` of a VM, or of `/dev/kvm`.
pub(super) fn check_extension(fd: BorrowedFd<'_>, cap: u32) -> Result<c_int, Errno> {
    let cap = c_int::try_from(cap).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the argument is a number, and nothing is changed.
    unsafe { request::check_extension(fd.as_raw_fd(), cap) }.map_err(Errno::from_nix)
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
    // SAFETY: the argument is a number; a new descriptor is all that comes of it.
    let create = |kind| unsafe { request::create_vm(kvm.as_raw_fd(), kind) };
    let create = |kind| retry(|| create(kind).map_err(Errno::from_nix));
    let vm =
        create(0).or_else(|errno| match check_extension(kvm.as_fd(), CAP_ARM_VM_IPA_SIZE) {
            Ok(bits @ 1..) => create(bits),
            _ => Err(errno),
        })?;
    // SAFETY: KVM has just given this descriptor out, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(vm) })
}

/// `linux/kcmp.h`.
const KCMP_FILE: libc::c_long = 0;

impl VmCalls for OwnedFd {
    fn scratch_vm(&self) -> Result<Box<dyn VmCalls>, Errno> {
        new_vm().map(|vm| Box::new(vm) as _)
    }

    fn same_file(&self, other: BorrowedFd<'_>) -> Option<bool> {
        let process = libc::c_long::from(std::process::id());
        let [own, other] = [self.as_raw_fd(), other.as_raw_fd()].map(libc::c_long::from);
        // SAFETY: takes numbers only, and compares.
        let order =
            unsafe { libc::syscall(libc::SYS_kcmp, process, process, KCMP_FILE, own, other) };
        (order >= 0).then_some(order == 0)
    }

    fn api_version(&self) -> Result<c_int, Errno> {
        // SAFETY: the argument is a number, and nothing is changed.
        unsafe { request::get_api_version(self.as_raw_fd(), 0) }.map_err(Errno::from_nix)
    }

    fn check_extension(&self, cap: u32) -> Result<c_int, Errno> {
        check_extension(self.as_fd(), cap)
    }

    unsafe fn set_user_memory_region(
        &self,
        region: &kvm_userspace_memory_region,
    ) -> Result<(), Errno> {
        // SAFETY: the kernel reads the structure; what it maps is the caller's
        // promise.
        unsafe { request::set_user_memory_region(self.as_raw_fd(), region) }
            .map(drop)
            .map_err(Errno::from_nix)
    }

    unsafe fn set_user_memory_region2(
        &self,
        region: &kvm_userspace_memory_region2,
    ) -> Result<(), Errno> {
        // SAFETY: as above.
        unsafe { request::set_user_memory_region2(self.as_raw_fd(), region) }
            .map(drop)
            .map_err(Errno::from_nix)
    }

    unsafe fn set_user_memory_regions(
        &self,
        header: *mut kvm_userspace_memory_regions,
    ) -> Result<(), Errno> {
        // SAFETY: the caller's promise, for pointer and mappings.
        unsafe { request::set_user_memory_regions(self.as_raw_fd(), header) }
            .map(drop)
            .map_err(Errno::from_nix)
    }

    unsafe fn get_dirty_log(&self, log: &kvm_dirty_log) -> Result<(), Errno> {
        // SAFETY: the kernel reads the structure and writes behind its
        // pointer, where the caller says that it may.
        unsafe { request::get_dirty_log(self.as_raw_fd(), log) }.map(drop).map_err(Errno::from_nix)
    }

    unsafe fn clear_dirty_log(&self, log: &mut kvm_clear_dirty_log) -> Result<(), Errno> {
        // SAFETY: the kernel reads the structure and behind its pointer.
        unsafe { request::clear_dirty_log(self.as_raw_fd(), log) }
            .map(drop)
            .map_err(Errno::from_nix)
    }

    unsafe fn set_gsi_routing(&self, table: *const kvm_irq_routing) -> Result<(), Errno> {
        // SAFETY: the kernel reads what the caller says may be read.
        let answer = unsafe { request::set_gsi_routing(self.as_raw_fd(), table) };
        answer.map(drop).map_err(Errno::from_nix)
    }

    fn irqfd(&self, irqfd: &kvm_irqfd) -> Result<(), Errno> {
        // SAFETY: the kernel reads the structure.
        let answer = unsafe { request::irqfd(self.as_raw_fd(), irqfd) };
        answer.map(drop).map_err(Errno::from_nix)
    }

    fn ioeventfd(&self, ioeventfd: &kvm_ioeventfd) -> Result<(), Errno> {
        // SAFETY: the kernel reads the structure.
        let answer = unsafe { request::ioeventfd(self.as_raw_fd(), ioeventfd) };
        answer.map(drop).map_err(Errno::from_nix)
    }

    fn register_coalesced_mmio(&self, zone: &kvm_coalesced_mmio_zone) -> Result<(), Errno> {
        // SAFETY: the kernel reads the structure.
        let answer = unsafe { request::register_coalesced_mmio(self.as_raw_fd(), zone) };
        answer.map(drop).map_err(Errno::from_nix)
    }

    fn unregister_coalesced_mmio(&self, zone: &kvm_coalesced_mmio_zone) -> Result<(), Errno> {
        // SAFETY: the kernel reads the structure.
        let answer = unsafe { request::unregister_coalesced_mmio(self.as_raw_fd(), zone) };
        answer.map(drop).map_err(Errno::from_nix)
    }

    #[cfg(target_arch = "x86_64")]
    fn get_irqchip(&self) -> Result<(), Errno> {
        let mut chip = kvm_bindings::kvm_irqchip::default();
        // SAFETY: the kernel reads and writes the structure.
        let answer = unsafe { request::get_irqchip(self.as_raw_fd(), &raw mut chip) };
        answer.map(drop).map_err(Errno::from_nix)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn get_irqchip(&self) -> Result<(), Errno> {
        Err(Errno::ENOTTY)
    }

    fn enable_cap(&self, cap: &kvm_enable_cap) -> Result<(), Errno> {
        // SAFETY: the kernel reads the structure, whose `args` are numbers to
        // the capabilities that this is for.
        let answer = unsafe { request::enable_cap(self.as_raw_fd(), cap) };
        answer.map(drop).map_err(Errno::from_nix)
    }
}
