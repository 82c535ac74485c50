//! arm64: EL1, under an identity map of blocks.
//!
//! The map is not for addresses but for caches: with the MMU off, the guest's
//! accesses go around them, and miss what the host wrote.

mod code;

pub(in crate::guest) use code::returning;

use std::ops::Range;

use kvm_bindings::{
    KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U64, kvm_vcpu_init,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::platform::Start;
use crate::guest::{GuestError, MAPPED_END, OWN_GPA};
use crate::host::HostMemory;

/// Bytes of the one table: with granules of 4 KiB and addresses of 39 bits
/// ([`MAPPED_END`]), the first level has 512 entries of 1 GiB.
pub(super) const TABLES_SIZE: u64 = 4096;
const BLOCK: u64 = 1 << 30;

/// A block: normal memory as in MAIR's first byte, inner shareable, EL1 may
/// do anything. Accessed beforehand.
const BLOCK_BITS: u64 = 1 | 3 << 8 | 1 << 10;

/// Write-back, allocating.
const MAIR_NORMAL: u64 = 0xff;
/// Tables for 39 bits, in granules of 4 KiB, in memory as above; none for the
/// upper half; physical addresses of 40 bits.
const TCR: u64 = (64 - 39) | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32;
/// MMU and caches on, and the bits that have to be 1.
const SCTLR: u64 = 0x30d0_0800 | 1 | 1 << 2 | 1 << 12;

const SCTLR_EL1: u64 = system_register(1, 0, 0);
const TTBR0_EL1: u64 = system_register(2, 0, 0);
const TCR_EL1: u64 = system_register(2, 0, 2);
const MAIR_EL1: u64 = system_register(10, 2, 0);
const VBAR_EL1: u64 = system_register(12, 0, 0);

const X0: u64 = core_register(0);
const X1: u64 = core_register(8);
const PC: u64 = core_register(256);

/// The exception vectors: a guest that can't even fetch these stays there.
pub(super) const LOST: Range<u64> = 0..code::VECTORS;

const fn system_register(crn: u64, crm: u64, op2: u64) -> u64 {
    let encoding = 3 << 14 | crn << 7 | crm << 3 | op2;
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | encoding
}

/// The register at `offset` bytes into `struct kvm_regs`.
const fn core_register(offset: u64) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | offset / 4
}

/// Maps [0, [`MAPPED_END`]) to itself, in the slot that is at [`OWN_GPA`].
pub(super) fn write_identity_map(memory: &HostMemory) {
    for (entry, block) in (0..MAPPED_END).step_by(BLOCK as usize).enumerate() {
        memory.write(entry as u64 * 8, block | BLOCK_BITS);
    }
}

/// Makes `vcpu` start so. Reset has masked interrupts, and put it at EL1.
pub(super) fn enter(vm: &VmFd, vcpu: &VcpuFd, start: &Start) -> Result<(), GuestError> {
    let mut target = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut target).map_err(GuestError::kvm("KVM_ARM_PREFERRED_TARGET"))?;
    vcpu.vcpu_init(&target).map_err(GuestError::kvm("KVM_ARM_VCPU_INIT"))?;
    let registers = [
        (MAIR_EL1, MAIR_NORMAL),
        (TCR_EL1, TCR),
        (TTBR0_EL1, OWN_GPA),
        (VBAR_EL1, start.code),
        (SCTLR_EL1, SCTLR),
        (X0, start.mailbox),
        (X1, start.doorbell),
        (PC, start.entry),
    ];
    for (register, value) in registers {
        vcpu.set_one_reg(register, &value.to_le_bytes())
            .map_err(GuestError::kvm("KVM_SET_ONE_REG"))?;
    }
    Ok(())
}

/// Where the guest is.
pub(super) fn program_counter(vcpu: &VcpuFd) -> Result<u64, GuestError> {
    let mut pc = [0; 8];
    vcpu.get_one_reg(PC, &mut pc).map_err(GuestError::kvm("KVM_GET_ONE_REG"))?;
    Ok(u64::from_le_bytes(pc))
}
