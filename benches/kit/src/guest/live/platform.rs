//! The slot that the guest code lives in, and vCPUs that start in it.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{VcpuFd, VmFd};
use nix::errno::Errno;

use super::arch;
use super::code::{self, DOORBELL_GPA, Program, mailbox};
use crate::guest::{GuestError, OWN_GPA};
use crate::host::{HostMemory, LARGE_PAGE, Pages};

// The slot's layout, in bytes from its start. Page tables come first.
const CODE: u64 = arch::TABLES_SIZE;
const MAILBOXES: u64 = 2 * LARGE_PAGE;

/// Where a vCPU starts, and with what: guest addresses.
#[derive(Debug)]
pub(super) struct Start {
    /// All programs.
    #[cfg_attr(target_arch = "x86_64", expect(dead_code))]
    pub(super) code: u64,
    /// The first instruction.
    pub(super) entry: u64,
    pub(super) mailbox: u64,
    pub(super) doorbell: u64,
}

/// The slot at [`OWN_GPA`]: identity map, code, a mailbox and a work area for
/// each vCPU.
#[derive(Debug)]
pub(super) struct Platform {
    memory: HostMemory,
    vcpus: usize,
    area: u64,
}

impl Platform {
    /// Builds the slot and gives it to `vm` under the id `slot`. `area` bytes
    /// of work area for each vCPU, rounded up to large pages.
    ///
    /// The slot stays in the VM when this value is dropped, without memory
    /// behind it: by then no vCPU may run.
    pub(super) fn install(
        vm: &VmFd,
        slot: u16,
        vcpus: usize,
        area: u64,
        pages: Pages,
    ) -> Result<Self, GuestError> {
        let too_large = || GuestError::TooLarge { vcpus, bytes: area };
        let area = area.checked_next_multiple_of(LARGE_PAGE).ok_or_else(too_large)?;
        let size = (area.checked_add(mailbox::SIZE))
            .and_then(|each| each.checked_mul(vcpus as u64))
            .and_then(|all| all.checked_add(MAILBOXES + LARGE_PAGE))
            .filter(|size| *size <= DOORBELL_GPA - OWN_GPA)
            .ok_or_else(too_large)?;
        let memory = HostMemory::reserve(size, pages).map_err(GuestError::host("mmap"))?;
        let platform = Self { memory, vcpus, area };
        arch::write_identity_map(&platform.memory);
        platform.memory.write_bytes(CODE, code::code());

        let region = kvm_userspace_memory_region {
            slot: u32::from(slot),
            flags: 0,
            guest_phys_addr: OWN_GPA,
            memory_size: platform.memory.size(),
            userspace_addr: platform.memory.hva(),
        };
        // SAFETY: the memory is anonymous, belongs to `platform` alone and is
        // only accessed atomically. The owner of the platform joins the vCPU
        // threads before it drops it.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(GuestError::kvm("KVM_SET_USER_MEMORY_REGION for the guest code's slot"))?;
        Ok(platform)
    }

    /// The memory of the slot.
    pub(super) const fn memory(&self) -> &HostMemory {
        &self.memory
    }

    /// Where in the slot the mailbox of vCPU `index` is.
    pub(super) const fn mailbox(index: usize) -> u64 {
        MAILBOXES + index as u64 * mailbox::SIZE
    }

    /// Where in the slot the work area of vCPU `index` is, and its length.
    pub(super) const fn area(&self, index: usize) -> (u64, u64) {
        let first = Self::mailbox(self.vcpus).next_multiple_of(LARGE_PAGE);
        (first + index as u64 * self.area, self.area)
    }

    /// Makes vCPU `index` of a VM that has the slot, about to start `program`.
    pub(super) fn vcpu(vm: &VmFd, index: usize, program: Program) -> Result<VcpuFd, GuestError> {
        let vcpu = vm.create_vcpu(index as u64).map_err(GuestError::kvm("KVM_CREATE_VCPU"))?;
        let start = Start {
            code: OWN_GPA + CODE,
            entry: OWN_GPA + CODE + program.entry(),
            mailbox: OWN_GPA + Self::mailbox(index),
            doorbell: DOORBELL_GPA,
        };
        arch::enter(vm, &vcpu, &start)?;
        Ok(vcpu)
    }
}

/// Describes an exit that ends the guest.
pub(super) fn died(vcpu: &VcpuFd, exit: String) -> GuestError {
    GuestError::Died { pc: arch::program_counter(vcpu).unwrap_or(0), exit }
}

/// Whether the guest is where it gets by no way of its own: no memory is there
/// to fetch code for an exception from, which is another exception, and KVM
/// need not come out of that.
pub(super) fn check_lost(vcpu: &VcpuFd) -> Result<(), GuestError> {
    if arch::LOST.is_empty() {
        return Ok(());
    }
    let pc = arch::program_counter(vcpu)?;
    if arch::LOST.contains(&pc.wrapping_sub(OWN_GPA + CODE)) {
        return Err(died(vcpu, "it is lost in an exception".to_owned()));
    }
    Ok(())
}

/// The errno of a failed `KVM_RUN` as an error, unless it is one that says
/// "again".
pub(super) fn run_failed(error: kvm_ioctls::Error) -> Result<(), GuestError> {
    match Errno::from_raw(error.errno()) {
        Errno::EINTR | Errno::EAGAIN => Ok(()),
        errno => Err(GuestError::Kvm { call: "KVM_RUN", errno }),
    }
}
