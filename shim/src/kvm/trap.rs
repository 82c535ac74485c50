//! Whether slots can have the trap flag, asked of a VM made for that.

use kvm_memslots_uapi::kvm_userspace_memory_region;
use kvm_memslots_uapi::probe::{ProbeTrap, TrapMismatch, TrapSupport, probe_trap};
use libc::c_int;

use super::calls::VmCalls;
use super::requests::KVM_SET_USER_MEMORY_REGION;
use super::scratch::Scratch;
use crate::errno::Errno;

/// Probes for the trap flag through `vm`.
pub(super) fn probe(vm: &dyn VmCalls, page_size: u64) -> TrapSupport {
    probe_trap(&mut Probe { vm, scratch: None, page_size, made: 0 })
}

struct Probe<'a> {
    vm: &'a dyn VmCalls,
    /// Made when the first slot is.
    scratch: Option<(Box<dyn VmCalls>, Scratch)>,
    page_size: u64,
    made: u32,
}

impl ProbeTrap for Probe<'_> {
    fn check_extension(&mut self, cap: u32) -> c_int {
        self.vm.check_extension(cap).unwrap_or(-1)
    }

    fn make_slot(&mut self, flags: u32) -> Result<(), TrapMismatch> {
        let none = |errno: Errno| TrapMismatch::NoScratchVm { errno: errno.raw() };
        let mut scratch = match self.scratch.take() {
            Some(scratch) => scratch,
            None => (self.vm.scratch_vm().map_err(none)?, Scratch::new(self.page_size as usize)),
        };
        let page = scratch.1.words(self.page_size as usize / size_of::<u64>()).map_err(none)?;
        let region = kvm_userspace_memory_region {
            slot: self.made,
            flags,
            guest_phys_addr: u64::from(self.made) * self.page_size,
            memory_size: self.page_size,
            userspace_addr: page.as_ptr().addr() as u64,
        };
        self.made += 1;
        // SAFETY: the VM has no vCPU, and goes with the probe.
        let answer = unsafe { scratch.0.tell(KVM_SET_USER_MEMORY_REGION, &raw const region) };
        self.scratch = Some(scratch);
        answer.map_err(|errno| TrapMismatch::Refused { errno: errno.raw() })
    }
}
