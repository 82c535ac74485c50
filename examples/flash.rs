//! A flash chip: memory in array mode, registers while a command is under way.
//!
//! What to look at: `RomDevice` changes the mode by the trap bit where the kernel has
//! it, else by deferral. With the second, reads of an array that is not mapped exit,
//! and [`Deferred`](kvm_memslots::deferred::Deferred) answers them from its memory
//! before the device is asked.

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("SKIPPED flash: its guest is for x86");
}

#[cfg(target_arch = "x86_64")]
fn main() -> kvm_memslots_examples::Result<()> {
    x86::main()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::sync::Arc;

    use kvm_ioctls::{Kvm, VcpuExit};
    use kvm_memslots::deferred::Retry;
    use kvm_memslots::{Changes, RegionSpec, Report, RomDevice, RomMode, Vm, vm_fd};
    use kvm_memslots_examples::{Result, has_kvm, long_mode, memory};
    use vm_memory::{Bytes as _, GuestRegionMmap, MemoryRegionAddress};

    const MIB: u64 = 1 << 20;
    const CODE: u64 = 0x1000;
    const CHIP: u64 = 0x400_0000;
    const WORDS: u16 = 64;

    // Commands, as Intel's chips have them.
    const PROGRAM: u8 = 0x40;
    const ARRAY: u8 = 0xff;
    /// In the status register: no command is under way.
    const READY: u8 = 0x80;

    /// Programs one word after another, and reads each from the array:
    ///
    /// ```asm
    ///        mov rbx, 0x4000000
    ///        xor esi, esi
    /// next:  mov byte [rbx], 0x40      ; program
    ///        mov [rbx + rsi * 2], si
    /// again: mov al, [rbx]             ; status
    ///        test al, 0x80
    ///        jz again
    ///        mov byte [rbx], 0xff      ; array
    ///        mov ax, [rbx + rsi * 2]
    ///        out 0x80, ax
    ///        inc esi
    ///        jmp next
    /// ```
    const DRIVER: [u8; 36] = [
        0x48, 0xc7, 0xc3, 0x00, 0x00, 0x00, 0x04, 0x31, 0xf6, 0xc6, 0x03, 0x40, 0x66, 0x89, 0x34,
        0x73, 0x8a, 0x03, 0xa8, 0x80, 0x74, 0xfa, 0xc6, 0x03, 0xff, 0x66, 0x8b, 0x04, 0x73, 0x66,
        0xe7, 0x80, 0xff, 0xc6, 0xeb, 0xe5,
    ];

    enum Mode {
        Array,
        /// The next write is a word, and where it goes.
        Program,
        Status,
    }

    /// The device's model: what each access means.
    struct Chip {
        array: Arc<GuestRegionMmap>,
        mode: Mode,
    }

    impl Chip {
        fn read(&self, offset: u64, data: &mut [u8]) -> Result<()> {
            match self.mode {
                Mode::Array => self.array.read_slice(data, MemoryRegionAddress(offset))?,
                Mode::Program | Mode::Status => data.fill(READY),
            }
            Ok(())
        }

        fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
            self.mode = match (&self.mode, data) {
                (Mode::Program, [low, high]) => {
                    // Programming clears bits, and sets none.
                    let at = MemoryRegionAddress(offset);
                    let word = self.array.read_obj::<u16>(at)? & u16::from_le_bytes([*low, *high]);
                    self.array.write_obj(word, at)?;
                    Mode::Status
                }
                (_, [PROGRAM]) => Mode::Program,
                (_, [ARRAY]) => Mode::Array,
                _ => Mode::Status,
            };
            Ok(())
        }
    }

    /// What the mode's changes have cost.
    #[derive(Default)]
    struct Cost {
        calls: u64,
        waits: u64,
    }

    impl Cost {
        fn add(&mut self, report: Option<&Report>) {
            self.calls += report.map_or(0, Report::calls);
            self.waits += report.map_or(0, Report::waits);
        }
    }

    pub(super) fn main() -> Result<()> {
        if !has_kvm("flash") {
            return Ok(());
        }
        let kvm = Kvm::new()?;
        let fd = kvm.create_vm()?;
        let vm = Vm::open(vm_fd(&fd))?;
        let low = memory(0, MIB)?;
        low.write_slice(&DRIVER, MemoryRegionAddress(CODE))?;
        let mut boot = Changes::new();
        boot.map(RegionSpec::vm_memory(&low).ok_or("memory without a host address")?);
        vm.apply(boot)?;

        let array = memory(CHIP, MIB)?;
        // Erased.
        array.write_slice(&vec![0xff; MIB as usize], MemoryRegionAddress(0))?;
        let spec = RegionSpec::vm_memory(&array).ok_or("memory without a host address")?;
        let mut slot = RomDevice::new(&vm, spec.label("flash"), RomMode::Auto)?;
        let mut chip = Chip { array, mode: Mode::Array };
        println!("the chip's mode is changed by {:?}", slot.mode());

        let mut vcpu = long_mode(&kvm, &fd, &low, CODE)?;
        // Each vCPU's thread has one.
        let deferred = vm.deferred(0)?;
        let (mut cost, mut exits, mut next) = (Cost::default(), 0, 0);
        while next < WORDS {
            exits += 1;
            match vcpu.run()? {
                VcpuExit::MmioRead(gpa, data) => {
                    let mut done = Ok(());
                    // The array's memory, where it is not mapped; else the device.
                    let served = deferred.read(gpa, data, |gpa, data| {
                        done = chip.read(gpa - CHIP, data);
                    });
                    done?;
                    if let Some(gpa) = served.fault {
                        return Err(format!("the memory behind {gpa:#x} can't be read").into());
                    }
                    if served.due {
                        cost.add(vm.promote_due()?.as_ref());
                    }
                }
                VcpuExit::MmioWrite(gpa, data) => {
                    chip.write(gpa - CHIP, data)?;
                    let is_array = matches!(chip.mode, Mode::Array);
                    cost.add(slot.set_array_mode(&vm, is_array)?.as_ref());
                }
                VcpuExit::IoOut(0x80, &[low, high]) => {
                    let word = u16::from_le_bytes([low, high]);
                    if word != next {
                        return Err(format!("the guest read {word} where it wrote {next}").into());
                    }
                    next += 1;
                }
                // An access to deferred memory that KVM can't describe.
                VcpuExit::InternalError if vm.undecoded(&deferred)? == Retry::Reenter => {}
                exit => return Err(format!("the guest ended with {exit:?}").into()),
            }
        }
        println!("{WORDS} words programmed and read back, {} flips, {exits} exits", slot.flips());
        println!("{} calls, {} waits", cost.calls, cost.waits);
        slot.remove(&vm).map_err(|(_, error)| error)?;
        Ok(())
    }
}
