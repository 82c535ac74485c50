//! An executable statement of KVM's memslot rules, in memory, with KVM's
//! errnos.

use kvm_memslots_uapi::{MemoryRegions, kvm_userspace_memory_region2};

use super::{Errno, Memslots};
use crate::{Limits, Slot};

/// The model of a VM's memslots.
#[derive(Debug)]
pub struct Model {
    limits: Limits,
}

impl Model {
    /// An empty VM that allows what `limits` says.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits }
    }
}

impl Memslots for Model {
    fn limits(&self) -> Limits {
        self.limits
    }
    fn name(&self) -> &'static str {
        "model"
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
