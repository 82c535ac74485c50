//! A 64-bit guest, from its memory to its last instruction.
//!
//! What to look at: all memory is one set of changes, made before there is a vCPU.
//! The report says what it has cost. Host memory is owned by its regions, so nothing
//! here promises that it stays.

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("SKIPPED boot-64: its guest is for x86");
}

#[cfg(target_arch = "x86_64")]
fn main() -> kvm_memslots_examples::Result<()> {
    x86::main()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use kvm_ioctls::{Kvm, VcpuExit};
    use kvm_memslots::{Changes, RegionSpec, Vm, vm_fd};
    use kvm_memslots_examples::{Result, has_kvm, long_mode, memory};
    use vm_memory::{Bytes as _, MemoryRegionAddress};

    const MIB: u64 = 1 << 20;
    const CODE: u64 = 0x1000;
    /// What 32 bits don't reach.
    const HIGH: u64 = 4 << 30;
    const VALUE: u64 = 0x0123_4567_89ab_cdef;

    /// `mov rax, 4 GiB; mov rcx, [rax]; mov [rax + 8], rcx; out 0x80, al; hlt`
    const PROGRAM: [u8; 20] = [
        0x48, 0xb8, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x48, 0x8b, 0x08, 0x48, 0x89,
        0x48, 0x08, 0xe6, 0x80, 0xf4,
    ];

    pub(super) fn main() -> Result<()> {
        if !has_kvm("boot-64") {
            return Ok(());
        }
        let kvm = Kvm::new()?;
        let fd = kvm.create_vm()?;
        let vm = Vm::open(vm_fd(&fd))?;

        let (low, high) = (memory(0, 2 * MIB)?, memory(HIGH, 2 * MIB)?);
        low.write_slice(&PROGRAM, MemoryRegionAddress(CODE))?;
        high.write_obj(VALUE, MemoryRegionAddress(0))?;
        let mut boot = Changes::new();
        for (region, label) in [(&low, "low memory"), (&high, "high memory")] {
            let spec = RegionSpec::vm_memory(region).ok_or("memory without a host address")?;
            // It stays for as long as the VM lives, and may share a slot.
            boot.map(spec.permanent().label(label));
        }
        println!("memory: {}", vm.apply(boot)?);

        // Page tables are guest memory like any other.
        let mut vcpu = long_mode(&kvm, &fd, &low, CODE)?;
        match vcpu.run()? {
            VcpuExit::IoOut(0x80, _) => println!("the guest is through its program"),
            exit => return Err(format!("the guest ended with {exit:?}").into()),
        }
        match vcpu.run()? {
            VcpuExit::Hlt => println!("the guest halted"),
            exit => return Err(format!("the guest ended with {exit:?}").into()),
        }
        let copied: u64 = high.read_obj(MemoryRegionAddress(8))?;
        if copied != VALUE {
            return Err(format!("the guest copied {copied:#x} where {VALUE:#x} is").into());
        }
        println!("it copied {copied:#x} above 4 GiB");
        Ok(())
    }
}
