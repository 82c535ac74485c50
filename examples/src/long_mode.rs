//! A vCPU in 64-bit mode, as Linux' boot protocol and small programs want it.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Bytes as _, GuestRegionMmap, MemoryRegionAddress};

use crate::Result;

/// The first of the page tables: one of each upper level, then one for each GiB.
const PML4: u64 = 0x9000;
const PDPT: u64 = PML4 + PAGE;
const PD: u64 = PDPT + PAGE;
const PAGE: u64 = 4096;
/// Guest physical addresses below this are mapped, one to one.
const MAPPED: u64 = 5 << 30;

const PRESENT_WRITABLE: u64 = 3;
/// An entry that maps 2 MiB itself.
const LARGE: u64 = 1 << 7;

/// A vCPU in 64-bit mode, without interrupts, about to run what is at `code`.
/// `ram` begins at guest physical address 0 and gets its page tables, from 0x9000
/// to 0x10000.
///
/// # Errors
/// KVM's, or that `ram` is too small.
pub fn long_mode(kvm: &Kvm, vm: &VmFd, ram: &GuestRegionMmap, code: u64) -> Result<VcpuFd> {
    let put = |table: u64, index: u64, entry: u64| {
        ram.write_obj(entry | PRESENT_WRITABLE, MemoryRegionAddress(table + index * 8))
    };
    put(PML4, 0, PDPT)?;
    for gib in 0..MAPPED >> 30 {
        let table = PD + gib * PAGE;
        put(PDPT, gib, table)?;
        (0..512).try_for_each(|index| put(table, index, gib << 30 | index << 21 | LARGE))?;
    }

    let vcpu = vm.create_vcpu(0)?;
    // Without it the guest has a processor that knows no 64 bits.
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    let mut sregs = vcpu.get_sregs()?;
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 0x18,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment { selector: 0x10, type_: 11, db: 0, l: 1, ..data };
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    // Paging, protection, and caches, which are off after a reset; PAE; long mode,
    // enabled and active.
    (sregs.cr0, sregs.cr3, sregs.cr4) = (1 << 31 | 1 << 4 | 1, PML4, sregs.cr4 | 1 << 5);
    sregs.efer |= 1 << 10 | 1 << 8;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs { rip: code, rflags: 2, ..Default::default() })?;
    Ok(vcpu)
}
