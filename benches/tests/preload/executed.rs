//! A second vCPU that runs code in the flash itself, in the guest that is there.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use kvm_memslots_kit::guest::{MAPPED_END, enter_long_mode};

/// An address without a slot.
const NOWHERE: u64 = MAPPED_END - 0x1000;

/// `mov rax, [rip]` (its own bytes behind it), `mov [rsi], rax`, `jmp -12`.
pub(crate) const CODE: [u8; 12] = [0x48, 0x8b, 0x05, 0, 0, 0, 0, 0x48, 0x89, 0x06, 0xeb, 0xf4];

/// What it reads.
pub(crate) const READ: [u8; 5] = [0x48, 0x89, 0x06, 0xeb, 0xf4];

/// `mov rax, [rdx]`, `mov [rsi], rax`, and again.
pub(crate) const LOOP: [u8; 8] = [0x48, 0x8b, 0x02, 0x48, 0x89, 0x06, 0xeb, 0xf8];

/// A vCPU that starts at `start`, at CPL 3, under the guest's identity map, and
/// finds `read` in RDX.
pub(crate) fn vcpu(vm: &VmFd, start: u64, read: u64) -> VcpuFd {
    let kvm = Kvm::new().unwrap();
    let vcpu = vm.create_vcpu(1).unwrap();
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap()).unwrap();
    enter_long_mode(&vcpu).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    // No exception finds a handler: the guest ends.
    sregs.idt.limit = 0;
    vcpu.set_sregs(&sregs).unwrap();
    let regs = kvm_regs { rip: start, rsi: NOWHERE, rdx: read, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).unwrap();
    vcpu
}

/// Runs it until it writes what it has read; how it ended otherwise. `device`
/// is what a read of nothing gets.
pub(crate) fn run(vcpu: &mut VcpuFd, device: u64) -> Result<[u8; 8], String> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::MmioWrite(NOWHERE, data)) => return Ok(data.try_into().unwrap()),
            Ok(VcpuExit::MmioRead(_, data)) => data.copy_from_slice(&device.to_le_bytes()),
            Ok(exit) => return Err(format!("{exit:?}")),
            Err(error) => return Err(error.to_string()),
        }
    }
}
