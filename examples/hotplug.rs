//! Memory that comes and goes under a vCPU that runs.
//!
//! What to look at: several blocks are one set of changes; the vCPU is not stopped
//! for them. Memory that is not there is MMIO, which the VMM answers. A block's host
//! memory goes when its region has been unmapped and nobody else holds it.

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("SKIPPED hotplug: its guest is for x86");
}

#[cfg(target_arch = "x86_64")]
fn main() -> kvm_memslots_examples::Result<()> {
    x86::main()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use kvm_ioctls::{Kvm, VcpuExit};
    use kvm_memslots::{Changes, RegionId, RegionSpec, Vm, vm_fd};
    use kvm_memslots_examples::{Gate, Result, Running, has_kvm, long_mode, memory};
    use vm_memory::{Bytes as _, GuestRegionMmap, MemoryRegionAddress};

    const MIB: u64 = 1 << 20;
    const CODE: u64 = 0x1000;
    /// Where the guest is to look, what it found there, and how often it has.
    const LOOK_AT: MemoryRegionAddress = MemoryRegionAddress(0x2000);
    const FOUND: MemoryRegionAddress = MemoryRegionAddress(0x2008);
    const ROUNDS: MemoryRegionAddress = MemoryRegionAddress(0x2010);
    /// Plugged memory starts here, a block at a time.
    const HOTPLUG: u64 = 4 << 30;
    const BLOCK: u64 = 2 * MIB;
    const BLOCKS: u64 = 8;
    /// What a bus says where nothing is.
    const NOTHING: u64 = u64::MAX;

    /// ```asm
    /// again: mov rax, [0x2000]
    ///        mov rax, [rax]
    ///        mov [0x2008], rax
    ///        inc qword [0x2010]
    ///        out 0x80, al
    ///        jmp again
    /// ```
    const PROGRAM: [u8; 31] = [
        0x48, 0x8b, 0x04, 0x25, 0x00, 0x20, 0x00, 0x00, 0x48, 0x8b, 0x00, 0x48, 0x89, 0x04, 0x25,
        0x08, 0x20, 0x00, 0x00, 0x48, 0xff, 0x04, 0x25, 0x10, 0x20, 0x00, 0x00, 0xe6, 0x80, 0xeb,
        0xe1,
    ];

    pub(super) fn main() -> Result<()> {
        if !has_kvm("hotplug") {
            return Ok(());
        }
        let kvm = Kvm::new()?;
        let fd = kvm.create_vm()?;
        let gate = Arc::new(Gate::default());
        let vm = Vm::builder().gate(Arc::clone(&gate) as _).open(vm_fd(&fd))?;

        let low = memory(0, 2 * MIB)?;
        low.write_slice(&PROGRAM, MemoryRegionAddress(CODE))?;
        low.write_obj(HOTPLUG, LOOK_AT)?;
        let mut boot = Changes::new();
        boot.map(ram(&low)?.permanent().label("boot memory"));
        vm.apply(boot)?;

        let missed = Arc::new(AtomicU64::new(0));
        let misses = Arc::clone(&missed);
        let vcpu = long_mode(&kvm, &fd, &low, CODE)?;
        let guest = Running::start(vcpu, gate, move |exit| match exit {
            VcpuExit::IoOut(0x80, _) => Ok(()),
            VcpuExit::MmioRead(_, data) => {
                data.fill(0xff);
                misses.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            exit => Err(format!("the guest ended with {exit:?}")),
        });
        expect(&guest, &low, HOTPLUG, NOTHING)?;

        let (blocks, report) = plug(&vm)?;
        println!("plugged {BLOCKS} blocks: {report}");
        for block in 0..BLOCKS {
            expect(&guest, &low, HOTPLUG + block * BLOCK, stamp(block))?;
        }
        println!("the guest found all of them");

        // One goes by itself, the others together.
        let (first, rest) = blocks.split_first().ok_or("no blocks")?;
        vm.apply(unplug(&[*first]))?;
        expect(&guest, &low, HOTPLUG, NOTHING)?;
        expect(&guest, &low, HOTPLUG + BLOCK, stamp(1))?;
        println!("unplugged {}: {}", rest.len(), vm.apply(unplug(rest))?);
        for block in 0..BLOCKS {
            expect(&guest, &low, HOTPLUG + block * BLOCK, NOTHING)?;
        }
        println!("the guest found none of them, by {} exits", missed.load(Ordering::Relaxed));
        guest.stop()?;
        println!("{} region is left", vm.regions().len());
        Ok(())
    }

    fn ram(region: &Arc<GuestRegionMmap>) -> Result<RegionSpec> {
        Ok(RegionSpec::vm_memory(region).ok_or("memory without a host address")?)
    }

    /// What each block begins with.
    const fn stamp(block: u64) -> u64 {
        0xb10c_0000 | block
    }

    fn plug(vm: &Vm) -> Result<(Vec<RegionId>, kvm_memslots::Report)> {
        let mut c = Changes::new();
        let mut ids = Vec::new();
        for block in 0..BLOCKS {
            let memory = memory(HOTPLUG + block * BLOCK, BLOCK)?;
            memory.write_obj(stamp(block), MemoryRegionAddress(0))?;
            // The region holds the memory from here on.
            ids.push(c.map(ram(&memory)?.tag(block).label("plugged")));
        }
        let report = vm.apply(c)?;
        Ok((ids, report))
    }

    fn unplug(blocks: &[RegionId]) -> Changes {
        let mut c = Changes::new();
        for id in blocks {
            c.unmap(*id);
        }
        c
    }

    /// Has the guest look at `gpa`. What it was about to find when it was told is
    /// of the time before: so the second round from there on counts.
    fn expect(guest: &Running, low: &GuestRegionMmap, gpa: u64, expected: u64) -> Result<()> {
        low.store(gpa, LOOK_AT, Ordering::SeqCst)?;
        let rounds = || low.load::<u64>(ROUNDS, Ordering::SeqCst).unwrap_or(0);
        let begun = rounds();
        guest.wait(|| rounds() >= begun + 2)?;
        let found: u64 = low.load(FOUND, Ordering::SeqCst)?;
        if found != expected {
            return Err(format!("the guest found {found:#x} at {gpa:#x}, not {expected:#x}").into());
        }
        Ok(())
    }
}
