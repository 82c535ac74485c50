//! x86-64: long mode, under an identity map of large pages.

mod code;

pub(in crate::guest) use code::returning;

use std::ops::Range;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::platform::Start;
use crate::guest::{GuestError, MAPPED_END, OWN_GPA};
use crate::host::{HostMemory, LARGE_PAGE};

// The tables, in bytes from the slot's start.
const PML4: u64 = 0;
const PDPT: u64 = 0x1000;
const PAGE_DIRECTORIES: u64 = 0x2000;
/// Bytes of all.
pub(super) const TABLES_SIZE: u64 = PAGE_DIRECTORIES + DIRECTORIES * TABLE;

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

/// No code is for exceptions: they end the guest.
pub(super) const LOST: Range<u64> = 0..0;

/// Maps [0, [`MAPPED_END`]) to itself, in the slot that is at [`OWN_GPA`].
pub(super) fn write_identity_map(memory: &HostMemory) {
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

/// Makes `vcpu` start so, in long mode.
pub(super) fn enter(_: &VmFd, vcpu: &VcpuFd, start: &Start) -> Result<(), GuestError> {
    let kvm = Kvm::new().map_err(GuestError::kvm("opening /dev/kvm"))?;
    // Without it the guest has no long mode, and 36 address bits.
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(GuestError::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(GuestError::kvm("KVM_SET_CPUID2"))?;
    enter_long_mode(vcpu)?;
    let regs = kvm_regs {
        rip: start.entry,
        rdi: start.mailbox,
        rsi: start.doorbell,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(GuestError::kvm("KVM_SET_REGS"))
}

/// Puts `vcpu` into long mode, under the identity map at [`OWN_GPA`].
///
/// At CPL 3: a KVM that has no hardware virtualization to lean on (PVM) runs
/// user code natively, but emulates the supervisor code of a guest that is not
/// made for it, instruction by instruction. A vCPU that is only busy inside
/// KVM's emulator, under `kvm->srcu` all the time, would make grace periods
/// look ten times as expensive as they are.
///
/// # Errors
/// [`GuestError::Kvm`].
pub fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), GuestError> {
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

/// Where the guest is.
pub(super) fn program_counter(vcpu: &VcpuFd) -> Result<u64, GuestError> {
    vcpu.get_regs().map(|regs| regs.rip).map_err(GuestError::kvm("KVM_GET_REGS"))
}
