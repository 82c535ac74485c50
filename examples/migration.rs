//! Memory that goes to another VM while its guest writes to it.
//!
//! What to look at: the log is on before the first page is sent. Each round sends
//! what was written during the one before, and a guest that writes faster than that
//! is slowed down. The last round is what is left when the vCPU stands still.

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("SKIPPED migration: its guest is for x86");
}

#[cfg(target_arch = "x86_64")]
fn main() -> kvm_memslots_examples::Result<()> {
    x86::main()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::io::{BufReader, BufWriter, PipeReader, PipeWriter, Read, Write};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use kvm_bindings::kvm_regs;
    use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
    use kvm_memslots::{Changes, RegionId, RegionSpec, Vm, vm_fd};
    use kvm_memslots_examples::{Gate, Result, Running, has_kvm, long_mode, memory};
    use vm_memory::{Bytes as _, GuestRegionMmap, MemoryRegionAddress};

    const PAGE: u64 = 4096;
    const RAM: u64 = 8 << 20;
    const CODE: u64 = 0x1000;
    const COUNTER: MemoryRegionAddress = MemoryRegionAddress(0x2000);
    /// So few can be sent while the guest waits.
    const FEW: u64 = 32;
    /// In a page's place: registers come.
    const END: u64 = u64::MAX;

    /// Counts, and writes to one page after another:
    ///
    /// ```asm
    /// again: inc rcx
    ///        mov rdi, rcx
    ///        and edi, 0x3ff
    ///        shl rdi, 12
    ///        mov [rdi + 0x400000], rcx
    ///        mov [0x2000], rcx
    ///        out 0x80, al
    ///        jmp again
    /// ```
    const PROGRAM: [u8; 35] = [
        0x48, 0xff, 0xc1, 0x48, 0x89, 0xcf, 0x81, 0xe7, 0xff, 0x03, 0x00, 0x00, 0x48, 0xc1, 0xe7,
        0x0c, 0x48, 0x89, 0x8f, 0x00, 0x00, 0x40, 0x00, 0x48, 0x89, 0x0c, 0x25, 0x00, 0x20, 0x00,
        0x00, 0xe6, 0x80, 0xeb, 0xdd,
    ];

    /// A VM with its memory.
    struct Machine {
        kvm: Kvm,
        fd: VmFd,
        gate: Arc<Gate>,
        vm: Vm,
        ram: Arc<GuestRegionMmap>,
        id: RegionId,
    }

    impl Machine {
        fn new() -> Result<Self> {
            let kvm = Kvm::new()?;
            let fd = kvm.create_vm()?;
            let gate = Arc::new(Gate::default());
            let vm = Vm::builder().gate(Arc::clone(&gate) as _).open(vm_fd(&fd))?;
            let ram = memory(0, RAM)?;
            let spec = RegionSpec::vm_memory(&ram).ok_or("memory without a host address")?;
            let mut c = Changes::new();
            let id = c.map(spec.permanent().label("RAM"));
            vm.apply(c)?;
            Ok(Self { kvm, fd, gate, vm, ram, id })
        }

        fn run(&self, vcpu: VcpuFd, slower: Arc<AtomicU64>) -> Running {
            Running::start(vcpu, Arc::clone(&self.gate), move |exit| match exit {
                VcpuExit::IoOut(0x80, _) => {
                    std::thread::sleep(Duration::from_micros(slower.load(Ordering::Relaxed)));
                    Ok(())
                }
                exit => Err(format!("the guest ended with {exit:?}")),
            })
        }

        fn counter(&self) -> u64 {
            self.ram.load(COUNTER, Ordering::SeqCst).unwrap_or(0)
        }

        fn contents(&self) -> Result<Vec<u8>> {
            let mut all = vec![0; RAM as usize];
            self.ram.read_slice(&mut all, MemoryRegionAddress(0))?;
            Ok(all)
        }

        fn log(&self, on: bool) -> Result<()> {
            let mut c = Changes::new();
            c.set_log_dirty(self.id, on);
            println!("log: {}", self.vm.apply(c)?);
            Ok(())
        }

        fn send(&self, page: u64, out: &mut impl Write) -> Result<()> {
            let mut bytes = [0; PAGE as usize];
            self.ram.read_slice(&mut bytes, MemoryRegionAddress(page * PAGE))?;
            out.write_all(&page.to_le_bytes())?;
            Ok(out.write_all(&bytes)?)
        }

        /// What was written since the last round; how many pages.
        fn send_dirty(&self, out: &mut impl Write) -> Result<u64> {
            let dirty = self.vm.dirty_log(self.id)?;
            dirty.iter().try_for_each(|page| self.send(page, out))?;
            Ok(dirty.count())
        }

        /// Takes pages until the registers come: where the guest goes on, and its
        /// counter. This guest has no others.
        fn receive(&self, from: PipeReader) -> Result<[u64; 2]> {
            let mut from = BufReader::new(from);
            loop {
                let page = read_number(&mut from)?;
                if page == END {
                    return Ok([read_number(&mut from)?, read_number(&mut from)?]);
                }
                let mut bytes = [0; PAGE as usize];
                from.read_exact(&mut bytes)?;
                self.ram.write_slice(&bytes, MemoryRegionAddress(page * PAGE))?;
            }
        }
    }

    fn read_number(from: &mut impl Read) -> Result<u64> {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Sends `source` with its guest, which is stopped where it is.
    fn migrate(source: &Machine, guest: Running, slower: &AtomicU64, to: PipeWriter) -> Result<()> {
        let mut out = BufWriter::new(to);
        source.log(true)?;
        (0..RAM / PAGE).try_for_each(|page| source.send(page, &mut out))?;
        let mut rounds = vec![source.send_dirty(&mut out)?];
        while rounds.last() > Some(&FEW) && rounds.len() < 20 {
            // Twice as slow each round: so it ends.
            slower.store((slower.load(Ordering::Relaxed) * 2).max(20), Ordering::Relaxed);
            rounds.push(source.send_dirty(&mut out)?);
        }
        println!("rounds: {rounds:?} pages");
        let vcpu = guest.stop()?;
        println!("the last round: {}", source.send_dirty(&mut out)?);
        let kvm_regs { rip, rcx, .. } = vcpu.get_regs()?;
        for number in [END, rip, rcx] {
            out.write_all(&number.to_le_bytes())?;
        }
        out.flush()?;
        source.log(false)
    }

    pub(super) fn main() -> Result<()> {
        if !has_kvm("migration") {
            return Ok(());
        }
        let (source, destination) = (Machine::new()?, Machine::new()?);
        source.ram.write_slice(&PROGRAM, MemoryRegionAddress(CODE))?;
        let vcpu = long_mode(&source.kvm, &source.fd, &source.ram, CODE)?;
        let slower = Arc::new(AtomicU64::new(0));
        let guest = source.run(vcpu, Arc::clone(&slower));
        guest.wait(|| source.counter() > 1000)?;

        let (from, to) = std::io::pipe()?;
        let [rip, rcx] = std::thread::scope(|scope| -> Result<_> {
            let received = scope.spawn(|| destination.receive(from));
            migrate(&source, guest, &slower, to)?;
            received.join().map_err(|_| "the receiver panicked")?
        })?;
        let [ours, theirs] = [source.contents()?, destination.contents()?];
        if let Some(at) = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs) {
            return Err(format!("memory is not the same at {at:#x}").into());
        }
        println!("{} pages are the same", RAM / PAGE);

        // Its page tables are those that came.
        let vcpu = long_mode(&destination.kvm, &destination.fd, &destination.ram, CODE)?;
        vcpu.set_regs(&kvm_regs { rip, rcx, ..vcpu.get_regs()? })?;
        let guest = destination.run(vcpu, Arc::default());
        guest.wait(|| destination.counter() > rcx + 1000)?;
        guest.stop()?;
        println!("the guest counted on in the second VM, from {rcx}");
        Ok(())
    }
}
