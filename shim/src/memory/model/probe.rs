//! The model as a kernel that is probed.

use std::ffi::c_int;

use kvm_memslots_uapi::probe::{ProbeTrap, ProbeVm, TrapMismatch};
use kvm_memslots_uapi::{
    KVM_CAP_MEM_TRAP, KVM_CAP_USER_MEMORY_REGIONS, MemFlags, kvm_userspace_memory_region,
    kvm_userspace_memory_regions,
};

use super::handle::Model;
use crate::errno::Errno;

impl ProbeTrap for Model {
    /// Knows no capability but that of the trap flag.
    fn check_extension(&mut self, cap: u32) -> c_int {
        let trap = if self.with(|vm| vm.config.limits.trap) { MemFlags::TRAP.bits() } else { 0 };
        if cap == KVM_CAP_MEM_TRAP { c_int::try_from(trap).unwrap_or(c_int::MAX) } else { 0 }
    }

    /// On a VM of its own, as everybody's.
    fn make_slot(&mut self, flags: u32) -> Result<(), TrapMismatch> {
        let region = kvm_userspace_memory_region {
            flags,
            memory_size: self.with(|vm| vm.config.limits.page_size),
            ..Default::default()
        };
        Self::with_config(self.with(|vm| vm.config.clone()))
            .set_user_memory_region(&region)
            .map_err(|errno| TrapMismatch::Refused { errno: errno.raw() })
    }
}

impl ProbeVm for Model {
    /// Knows no capability but that of the batch ioctl.
    fn check_extension(&mut self, cap: u32) -> c_int {
        let batch = self.with(|vm| vm.config.limits.batch).unwrap_or(0);
        if cap == KVM_CAP_USER_MEMORY_REGIONS {
            c_int::try_from(batch).unwrap_or(c_int::MAX)
        } else {
            0
        }
    }

    fn set_user_memory_regions(
        &mut self,
        header: &mut kvm_userspace_memory_regions,
    ) -> Result<(), c_int> {
        self.set_user_memory_regions_raw(header, &[]).map_err(Errno::raw)
    }
}
