//! The ioctls of a VM fd, one method each.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use kvm_bindings::{kvm_clear_dirty_log, kvm_dirty_log};
use kvm_memslots_uapi::{
    kvm_userspace_memory_region, kvm_userspace_memory_region2, kvm_userspace_memory_regions,
};
use libc::c_int;

use crate::backend::Errno;

/// What is asked of a VM fd. A trait, so that kernels that lie, that are
/// interrupted or that lack an ioctl can be played.
pub(super) trait VmCalls: Send + fmt::Debug + Sized {
    /// Another VM of the same KVM, to try things on.
    fn scratch_vm(&mut self) -> Result<Self, Errno>;

    /// `KVM_GET_API_VERSION`: succeeds on the `/dev/kvm` fd only.
    fn api_version(&mut self) -> Result<c_int, Errno>;

    /// `KVM_CHECK_EXTENSION`: not negative.
    fn check_extension(&mut self, cap: u32) -> Result<c_int, Errno>;

    /// `KVM_SET_USER_MEMORY_REGION`.
    ///
    /// # Safety
    /// [`Memslots::set_region`](crate::backend::Memslots::set_region).
    unsafe fn set_user_memory_region(
        &mut self,
        region: &kvm_userspace_memory_region,
    ) -> Result<(), Errno>;

    /// `KVM_SET_USER_MEMORY_REGION2`.
    ///
    /// # Safety
    /// [`Memslots::set_region`](crate::backend::Memslots::set_region).
    unsafe fn set_user_memory_region2(
        &mut self,
        region: &kvm_userspace_memory_region2,
    ) -> Result<(), Errno>;

    /// `KVM_SET_USER_MEMORY_REGIONS`.
    ///
    /// # Safety
    /// `header` is valid for reads and writes, and the `nr` entries behind it
    /// are for reads; and unless it is a dry run
    /// [`Memslots::set_region`](crate::backend::Memslots::set_region) for each.
    unsafe fn set_user_memory_regions(
        &mut self,
        header: *mut kvm_userspace_memory_regions,
    ) -> Result<(), Errno>;

    /// `KVM_GET_DIRTY_LOG`.
    ///
    /// # Safety
    /// `log` points at memory that may be written, up to where a write faults:
    /// KVM knows how large the slot is, the caller may be mistaken.
    unsafe fn get_dirty_log(&mut self, log: &kvm_dirty_log) -> Result<(), Errno>;

    /// `KVM_CLEAR_DIRTY_LOG`.
    ///
    /// # Safety
    /// `log` points at `num_pages` bits, rounded up to 64, that may be read.
    unsafe fn clear_dirty_log(&mut self, log: &mut kvm_clear_dirty_log) -> Result<(), Errno>;
}

mod request {
    use kvm_bindings::{kvm_clear_dirty_log, kvm_dirty_log};
    use kvm_memslots_uapi::{
        KVM_SET_USER_MEMORY_REGIONS, KVMIO, kvm_userspace_memory_region,
        kvm_userspace_memory_region2, kvm_userspace_memory_regions,
    };
    use nix::{
        ioctl_readwrite, ioctl_readwrite_bad, ioctl_write_int_bad, ioctl_write_ptr,
        request_code_none,
    };

    // KVM refuses the call if its argument, which it does not use, is not 0.
    ioctl_write_int_bad!(get_api_version, request_code_none!(KVMIO, 0x00));
    ioctl_write_int_bad!(check_extension, request_code_none!(KVMIO, 0x03));
    ioctl_write_ptr!(get_dirty_log, KVMIO, 0x42, kvm_dirty_log);
    ioctl_write_ptr!(set_user_memory_region, KVMIO, 0x46, kvm_userspace_memory_region);
    ioctl_write_ptr!(set_user_memory_region2, KVMIO, 0x49, kvm_userspace_memory_region2);
    ioctl_readwrite!(clear_dirty_log, KVMIO, 0xc0, kvm_clear_dirty_log);
    ioctl_readwrite_bad!(
        set_user_memory_regions,
        KVM_SET_USER_MEMORY_REGIONS,
        kvm_userspace_memory_regions
    );
}

/// `KVM_CHECK_EXTENSION` of a VM, or of `/dev/kvm`.
pub(crate) fn check_extension(fd: BorrowedFd<'_>, cap: u32) -> Result<c_int, Errno> {
    let cap = c_int::try_from(cap).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the argument is a number, and nothing is changed.
    unsafe { request::check_extension(fd.as_raw_fd(), cap) }
}

impl VmCalls for OwnedFd {
    fn scratch_vm(&mut self) -> Result<Self, Errno> {
        super::trap::new_vm()
    }

    fn api_version(&mut self) -> Result<c_int, Errno> {
        // SAFETY: the argument is a number, and nothing is changed.
        unsafe { request::get_api_version(self.as_raw_fd(), 0) }
    }

    fn check_extension(&mut self, cap: u32) -> Result<c_int, Errno> {
        check_extension(self.as_fd(), cap)
    }

    unsafe fn set_user_memory_region(
        &mut self,
        region: &kvm_userspace_memory_region,
    ) -> Result<(), Errno> {
        // SAFETY: the kernel reads the structure; what it maps is the caller's
        // promise.
        unsafe { request::set_user_memory_region(self.as_raw_fd(), region) }.map(drop)
    }

    unsafe fn set_user_memory_region2(
        &mut self,
        region: &kvm_userspace_memory_region2,
    ) -> Result<(), Errno> {
        // SAFETY: as above.
        unsafe { request::set_user_memory_region2(self.as_raw_fd(), region) }.map(drop)
    }

    unsafe fn set_user_memory_regions(
        &mut self,
        header: *mut kvm_userspace_memory_regions,
    ) -> Result<(), Errno> {
        // SAFETY: the caller's promise, for pointer and mappings.
        unsafe { request::set_user_memory_regions(self.as_raw_fd(), header) }.map(drop)
    }

    unsafe fn get_dirty_log(&mut self, log: &kvm_dirty_log) -> Result<(), Errno> {
        // SAFETY: the kernel reads the structure and writes behind its
        // pointer, where the caller says that it may.
        unsafe { request::get_dirty_log(self.as_raw_fd(), log) }.map(drop)
    }

    unsafe fn clear_dirty_log(&mut self, log: &mut kvm_clear_dirty_log) -> Result<(), Errno> {
        // SAFETY: the kernel reads the structure and behind its pointer.
        unsafe { request::clear_dirty_log(self.as_raw_fd(), log) }.map(drop)
    }
}
