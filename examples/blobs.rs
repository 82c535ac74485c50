//! Blobs that come and go while a guest looks at them: a window.
//!
//! What to look at: one region, one ioctl, whatever the number of blobs. The guest
//! reads each one while it is placed, and zeroes when it is gone.

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("SKIPPED blobs: its guest is for x86");
}

#[cfg(target_arch = "x86_64")]
fn main() -> kvm_memslots_examples::Result<()> {
    x86::main()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::fs::File;
    use std::io::Write as _;
    use std::os::fd::FromRawFd as _;

    use kvm_ioctls::{VcpuExit, VcpuFd};
    use kvm_memslots::window::{Contents, Gap, Window, WindowSpec};
    use kvm_memslots::{Changes, RegionSpec, Vm, at, vm_fd};
    use kvm_memslots_examples::{Result, has_kvm, memory, real_mode};
    use vm_memory::{Bytes as _, MemoryRegionAddress};

    const PAGE: u64 = 4096;
    const CODE: u64 = 0x1000;
    /// Where the window is, in reach of real mode.
    const WINDOW: u64 = 0x1_0000;
    const BLOBS: u16 = 100;

    /// `mov ax, [0]; out 0x80, ax; jmp back`: says what the window begins with.
    const PROGRAM: [u8; 7] = [0xa1, 0x00, 0x00, 0xe7, 0x80, 0xeb, 0xf9];

    pub(super) fn main() -> Result<()> {
        if !has_kvm("blobs") {
            return Ok(());
        }
        let fd = kvm_ioctls::Kvm::new()?.create_vm()?;
        let vm = Vm::open(vm_fd(&fd))?;

        let ram = memory(0, 0x4000)?;
        ram.write_slice(&PROGRAM, MemoryRegionAddress(CODE))?;
        let mut boot = Changes::new();
        boot.map(RegionSpec::vm_memory(&ram).ok_or("memory without a host address")?);
        vm.apply(boot)?;

        let window = Window::new(WindowSpec::new(at(WINDOW, 1 << 20)).gap(Gap::Zeroes))?;
        let mut changes = Changes::new();
        changes.map(window.region().label("blobs"));
        let report = vm.apply(changes)?;

        let mut vcpu = real_mode(&fd, CODE, WINDOW)?;
        for number in 1..=BLOBS {
            let blob = blob(number)?;
            window.place(0, PAGE, Contents::file(&blob, 0).read_only())?;
            read(&mut vcpu, number)?;
            window.remove(0, PAGE)?;
            read(&mut vcpu, 0)?;
        }
        println!("the guest read {BLOBS} blobs, and zeroes where there was none");
        println!("{BLOBS} blobs came and went in {} ioctl", report.ioctls);
        Ok(())
    }

    /// A blob as a device has it: a descriptor.
    fn blob(number: u16) -> Result<File> {
        // SAFETY: the name is a string; nothing else is passed.
        let fd = unsafe { libc::memfd_create(c"blob".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        // SAFETY: the descriptor is new, and nobody else's.
        let mut file = unsafe { File::from_raw_fd(fd) };
        file.write_all(&number.to_le_bytes())?;
        file.set_len(PAGE)?;
        Ok(file)
    }

    /// Has the guest read once more. What it was about to say when it was stopped
    /// is of the time before: so the second answer counts.
    fn read(vcpu: &mut VcpuFd, expected: u16) -> Result<()> {
        answer(vcpu)?;
        let found = answer(vcpu)?;
        if found != expected {
            return Err(format!("the guest read {found} where {expected} is").into());
        }
        Ok(())
    }

    fn answer(vcpu: &mut VcpuFd) -> Result<u16> {
        match vcpu.run()? {
            VcpuExit::IoOut(_, &[low, high]) => Ok(u16::from_le_bytes([low, high])),
            exit => Err(format!("the guest ended with {exit:?}").into()),
        }
    }
}
