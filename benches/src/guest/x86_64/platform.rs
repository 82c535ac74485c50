//! The slot that the guest code lives in, and vCPUs that start in it.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use nix::errno::Errno;

use super::code::{self, DOORBELL_GPA, Program, mailbox};
use crate::guest::{GuestError, MAPPED_END, OWN_GPA};
use crate::host::{HostMemory, LARGE_PAGE, Pages};

// The slot's layout, in bytes from its start.
const PML4: u64 = 0;
const PDPT: u64 = 0x1000;
const PAGE_DIRECTORIES: u64 = 0x2000;
const CODE: u64 = PAGE_DIRECTORIES + DIRECTORIES * TABLE;
const MAILBOXES: u64 = 2 * LARGE_PAGE;

/// One page directory a GiB of the identity map.
const DIRECTORIES: u64 = MAPPED_END >> 30;
/// Bytes of a page table of any level, and its entries.
const TABLE: u64 = 4096;
const TABLE_ENTRIES: u64 = 512;

/// Page table entry bits: present, writable, user, accessed; of a large page
/// also dirty. Accessed and dirty are set beforehand so that KVM's walker never
/// writes the tables.
const PTE_TABLE: u64 = 0x27;
const PTE_LARGE_PAGE: u64 = 0xe7;

const CR0_PE_MP_ET_NE_WP_PG: u64 = 0x8001_0033;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA: u64 = 0x500;

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
        platform.write_identity_map();
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

    /// Maps [0, [`MAPPED_END`]) to itself with large pages.
    fn write_identity_map(&self) {
        let memory = &self.memory;
        memory.write(PML4, (OWN_GPA + PDPT) | PTE_TABLE);
        for directory in 0..DIRECTORIES {
            let table = PAGE_DIRECTORIES + directory * TABLE;
            memory.write(PDPT + directory * 8, (OWN_GPA + table) | PTE_TABLE);
            for entry in 0..TABLE_ENTRIES {
                let page = (directory * TABLE_ENTRIES + entry) * LARGE_PAGE;
                memory.write(table + entry * 8, page | PTE_LARGE_PAGE);
            }
        }
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

    /// Makes vCPU `index` of a VM that has the slot, about to start `program`
    /// in long mode.
    pub(super) fn vcpu(vm: &VmFd, index: usize, program: Program) -> Result<VcpuFd, GuestError> {
        let kvm = Kvm::new().map_err(GuestError::kvm("opening /dev/kvm"))?;
        let vcpu = vm.create_vcpu(index as u64).map_err(GuestError::kvm("KVM_CREATE_VCPU"))?;
        // Without it the guest has no long mode, and 36 address bits.
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(GuestError::kvm("KVM_GET_SUPPORTED_CPUID"))?;
        vcpu.set_cpuid2(&cpuid).map_err(GuestError::kvm("KVM_SET_CPUID2"))?;
        enter_long_mode(&vcpu)?;
        let regs = kvm_regs {
            rip: OWN_GPA + CODE + program.entry(),
            rdi: OWN_GPA + Self::mailbox(index),
            rsi: DOORBELL_GPA,
            rflags: 2,
            ..Default::default()
        };
        vcpu.set_regs(&regs).map_err(GuestError::kvm("KVM_SET_REGS"))?;
        Ok(vcpu)
    }
}

/// At CPL 3: a KVM that has no hardware virtualization to lean on (PVM) runs
/// user code natively, but emulates the supervisor code of a guest that is not
/// made for it, instruction by instruction. A vCPU that is only busy inside
/// KVM's emulator, under `kvm->srcu` all the time, would make grace periods
/// look ten times as expensive as they are.
fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), GuestError> {
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 0x2b,
        type_: 3,
        present: 1,
        dpl: 3,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let code = kvm_segment { selector: 0x33, type_: 11, db: 0, l: 1, ..data };
    let mut sregs = vcpu.get_sregs().map_err(GuestError::kvm("KVM_GET_SREGS"))?;
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // A busy 64-bit TSS, which VMX insists on.
    sregs.tr = kvm_segment { type_: 11, present: 1, limit: 0x67, ..Default::default() };
    sregs.cr0 = CR0_PE_MP_ET_NE_WP_PG;
    sregs.cr3 = OWN_GPA + PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
    vcpu.set_sregs(&sregs).map_err(GuestError::kvm("KVM_SET_SREGS"))
}

/// Describes an exit that ends the guest.
pub(super) fn died(vcpu: &VcpuFd, exit: String) -> GuestError {
    GuestError::Died { rip: vcpu.get_regs().map_or(0, |regs| regs.rip), exit }
}

/// The errno of a failed `KVM_RUN` as an error, unless it is one that says
/// "again".
pub(super) fn run_failed(error: kvm_ioctls::Error) -> Result<(), GuestError> {
    match Errno::from_raw(error.errno()) {
        Errno::EINTR | Errno::EAGAIN => Ok(()),
        errno => Err(GuestError::Kvm { call: "KVM_RUN", errno }),
    }
}
