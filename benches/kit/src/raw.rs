//! The memslot ioctls as they are, without the library.

use std::os::fd::{AsRawFd, OwnedFd};

use kvm_ioctls::VmFd;
use kvm_memslots::backend::{Kvm, KvmOptions, MemoryCalls, MemoryModel};
use kvm_memslots::{Errno, Limits, vm_fd};
use kvm_memslots_shim::uapi::{
    MemFlags, MemoryRegions, kvm_userspace_memory_region, kvm_userspace_memory_region2,
};

/// Who takes memslot ioctls: a VM, or the model of one.
pub trait RawCalls {
    /// What the VM allows.
    fn limits(&self) -> Limits;

    /// `KVM_SET_USER_MEMORY_REGION`, or `..._REGION2` where the entry has a
    /// `guest_memfd`.
    ///
    /// # Errors
    /// KVM's errno.
    ///
    /// # Safety
    /// As [`MemoryCalls::change`].
    unsafe fn set_region(&self, region: &kvm_userspace_memory_region2) -> Result<(), Errno>;

    /// `KVM_SET_USER_MEMORY_REGIONS`.
    ///
    /// # Errors
    /// KVM's errno.
    ///
    /// # Safety
    /// As [`set_region`](Self::set_region), for each entry.
    unsafe fn set_regions(&self, regions: &mut MemoryRegions) -> Result<(), Errno>;
}

/// The calls of a VM.
#[derive(Debug)]
pub struct OnKvm {
    vm: OwnedFd,
    limits: Limits,
}

mod request {
    use kvm_memslots_shim::uapi::{
        KVM_SET_USER_MEMORY_REGIONS, KVMIO, kvm_userspace_memory_region,
        kvm_userspace_memory_region2, kvm_userspace_memory_regions,
    };
    use nix::{ioctl_readwrite_bad, ioctl_write_ptr};

    ioctl_write_ptr!(set_region, KVMIO, 0x46, kvm_userspace_memory_region);
    ioctl_write_ptr!(set_region2, KVMIO, 0x49, kvm_userspace_memory_region2);
    ioctl_readwrite_bad!(set_regions, KVM_SET_USER_MEMORY_REGIONS, kvm_userspace_memory_regions);
}

impl OnKvm {
    /// On a VM, whose descriptor is duplicated.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(vm: &VmFd) -> std::io::Result<Self> {
        let fd = vm_fd(vm);
        let kvm = Kvm::open(fd, KvmOptions { scratch_vm: true }).map_err(std::io::Error::other)?;
        Ok(Self { limits: MemoryCalls::limits(&kvm), vm: fd.try_clone_to_owned()? })
    }
}

fn errno(error: nix::errno::Errno) -> Errno {
    Errno::from_raw(error as i32)
}

/// The same for `KVM_SET_USER_MEMORY_REGION`.
#[must_use]
pub const fn region1(region: &kvm_userspace_memory_region2) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region {
        slot: region.slot,
        flags: region.flags,
        guest_phys_addr: region.guest_phys_addr,
        memory_size: region.memory_size,
        userspace_addr: region.userspace_addr,
    }
}

/// `KVM_SET_USER_MEMORY_REGION` of a slot without flags; of 0 bytes it goes.
///
/// # Errors
/// KVM's.
///
/// # Safety
/// As [`MemoryCalls::change`].
pub unsafe fn set_slot(
    vm: &VmFd,
    slot: u32,
    guest_phys_addr: u64,
    memory_size: u64,
    userspace_addr: u64,
) -> Result<(), kvm_ioctls::Error> {
    let region = kvm_bindings::kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr,
        memory_size,
        userspace_addr,
    };
    // SAFETY: the caller's promise is the same.
    unsafe { vm.set_user_memory_region(region) }
}

impl RawCalls for OnKvm {
    fn limits(&self) -> Limits {
        self.limits
    }

    unsafe fn set_region(&self, region: &kvm_userspace_memory_region2) -> Result<(), Errno> {
        let fd = self.vm.as_raw_fd();
        let made = if region.flags & MemFlags::GUEST_MEMFD.bits() != 0 {
            // SAFETY: the kernel reads the structure; the mapping is the
            // caller's promise.
            unsafe { request::set_region2(fd, region) }
        } else {
            // SAFETY: as above.
            unsafe { request::set_region(fd, &region1(region)) }
        };
        made.map(drop).map_err(errno)
    }

    unsafe fn set_regions(&self, regions: &mut MemoryRegions) -> Result<(), Errno> {
        // SAFETY: the header is followed by as many entries as it says; the
        // mappings are the caller's promise.
        unsafe { request::set_regions(self.vm.as_raw_fd(), regions.as_mut_ptr()) }
            .map(drop)
            .map_err(errno)
    }
}

impl RawCalls for MemoryModel {
    fn limits(&self) -> Limits {
        MemoryCalls::limits(self)
    }

    unsafe fn set_region(&self, region: &kvm_userspace_memory_region2) -> Result<(), Errno> {
        if region.flags & MemFlags::GUEST_MEMFD.bits() != 0 {
            return self.set_user_memory_region2(region);
        }
        self.set_user_memory_region(&region1(region))
    }

    unsafe fn set_regions(&self, regions: &mut MemoryRegions) -> Result<(), Errno> {
        self.set_user_memory_regions(regions)
    }
}
