//! Whether slots can have the trap flag, asked of a VM made for that.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use kvm_memslots_uapi::probe::{ProbeTrap, TrapMismatch, TrapSupport, probe_trap};
use kvm_memslots_uapi::{KVMIO, kvm_userspace_memory_region};
use libc::c_int;
use nix::{ioctl_write_int_bad, request_code_none};

use super::calls::{VmCalls, check_extension};
use super::retry;
use super::scratch::Scratch;
use crate::backend::Errno;

// KVM_CREATE_VM: the argument is the type of the VM.
ioctl_write_int_bad!(create_vm, request_code_none!(KVMIO, 0x01));

/// `KVM_CAP_ARM_VM_IPA_SIZE`: how many bits a guest address can have, which is
/// the type of a VM where the default, 40, is more than the host has.
const CAP_ARM_VM_IPA_SIZE: u32 = 165;

/// Another VM on the same KVM.
///
/// # Errors
/// That of opening `/dev/kvm`, or of `KVM_CREATE_VM`.
pub(super) fn new_vm() -> Result<OwnedFd, Errno> {
    let kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))?;
    // SAFETY: the argument is a number; a new descriptor is all that comes of it.
    let vm = retry(|| unsafe { create_vm(kvm.as_raw_fd(), 0) }).or_else(|errno| {
        match check_extension(kvm.as_fd(), CAP_ARM_VM_IPA_SIZE) {
            // SAFETY: as above.
            Ok(bits @ 1..) => retry(|| unsafe { create_vm(kvm.as_raw_fd(), bits) }),
            _ => Err(errno),
        }
    })?;
    // SAFETY: KVM has just given this descriptor out, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(vm) })
}

/// Probes for the trap flag through `vm`.
pub(super) fn probe<V: VmCalls>(vm: &mut V, page_size: u64) -> TrapSupport {
    probe_trap(&mut Probe { vm, scratch: None, page_size, made: 0 })
}

struct Probe<'a, V> {
    vm: &'a mut V,
    /// Made when the first slot is.
    scratch: Option<(V, Scratch)>,
    page_size: u64,
    made: u32,
}

impl<V: VmCalls> ProbeTrap for Probe<'_, V> {
    fn check_extension(&mut self, cap: u32) -> c_int {
        retry(|| self.vm.check_extension(cap)).unwrap_or(-1)
    }

    fn make_slot(&mut self, flags: u32) -> Result<(), TrapMismatch> {
        let none = |errno: Errno| TrapMismatch::NoScratchVm { errno: errno as c_int };
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
        let answer = retry(|| unsafe { scratch.0.set_user_memory_region(&region) });
        self.scratch = Some(scratch);
        answer.map_err(|errno| TrapMismatch::Refused { errno: errno as c_int })
    }
}
