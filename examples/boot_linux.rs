//! A small VMM that boots Linux: `boot-linux KERNEL [INITRD [WORD...]]`. The kernel
//! is a bzImage or a vmlinux; an initrd called `-` is a program that says hello and
//! switches the power off; words go to the kernel's command line.
//!
//! What to look at: the order of its start. Memory is there before anything leaves a
//! grace period in flight, its interrupt controllers come next, then its devices as
//! one set of changes, then the vCPU. A timeline on stderr says what each step took
//! and what its calls waited for; stdout is the guest's console. It ends when the
//! guest switches its power off, or asks for a reset, as `reboot=k` has it do.

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("SKIPPED boot-linux: its kernels are for x86");
}

#[cfg(target_arch = "x86_64")]
fn main() -> kvm_memslots_examples::Result<()> {
    x86::main()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::fs::File;
    use std::io::{Stdout, Write};
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::time::Instant;

    use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_regs};
    use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
    use kvm_memslots::device::{Device, Route};
    use kvm_memslots::{Changes, RegionSpec, Vm, vm_fd};
    use kvm_memslots_examples::power::{self, Power};
    use kvm_memslots_examples::{Result, eventfd, has_kvm, initrd, linux, long_mode, memory};
    use vm_superio::{Serial, Trigger};

    const RAM: u64 = 192 << 20;
    /// The first serial port, and its line.
    const SERIAL: std::ops::RangeInclusive<u16> = 0x3f8..=0x3ff;
    const SERIAL_GSI: u32 = 4;
    /// The keyboard controller, which resets a PC.
    const KEYBOARD: u16 = 0x64;
    const RESET: u8 = 0xfe;
    /// Seconds that a guest may take.
    const PATIENCE: u32 = 1200;

    /// When what had been done.
    #[derive(Clone, Copy)]
    struct Timeline(Instant);

    impl Timeline {
        fn say(self, what: &str) {
            eprintln!("[{:10.3} ms] {what}", self.0.elapsed().as_secs_f64() * 1000.0);
        }
    }

    /// The serial port's interrupt: KVM raises the line.
    struct Line(Arc<OwnedFd>);

    impl Trigger for Line {
        type E = std::io::Error;

        fn trigger(&self) -> std::io::Result<()> {
            File::from(self.0.try_clone()?).write_all(&1_u64.to_ne_bytes())
        }
    }

    /// Runs the guest to its end: which, and how many exits that took.
    fn run(
        vcpu: &mut VcpuFd,
        serial: &mut Serial<Line, vm_superio::serial::NoEvents, Stdout>,
        time: Timeline,
    ) -> Result<(&'static str, u64)> {
        let (mut first, mut power) = (true, Power::default());
        for exits in 1.. {
            match vcpu.run() {
                Ok(VcpuExit::IoOut(KEYBOARD, &[RESET])) => {
                    return Ok(("asked for a reset", exits));
                }
                Ok(VcpuExit::IoOut(port, data)) if Power::PORTS.contains(&port) => {
                    if power.write(port, data) {
                        return Ok(("switched its power off", exits));
                    }
                }
                Ok(VcpuExit::IoIn(port, data)) if Power::PORTS.contains(&port) => {
                    power.read(port, data);
                }
                Ok(VcpuExit::IoOut(port, &[byte])) if SERIAL.contains(&port) => {
                    if port == *SERIAL.start() && std::mem::take(&mut first) {
                        time.say("the guest's first byte on the console");
                    }
                    let written = serial.write((port - SERIAL.start()) as u8, byte);
                    written.map_err(|error| format!("the console: {error:?}"))?;
                }
                Ok(VcpuExit::IoIn(port, data)) if SERIAL.contains(&port) => {
                    data.fill(serial.read((port - SERIAL.start()) as u8));
                }
                // No clock, and a keyboard controller that is ready.
                Ok(VcpuExit::IoIn(KEYBOARD | 0x71, data)) => data.fill(0),
                Ok(VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data)) => data.fill(0xff),
                Ok(VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..)) => {}
                Ok(exit) => {
                    let exit = format!("{exit:?}");
                    let rip = vcpu.get_regs()?.rip;
                    return Err(format!("the guest ended with {exit} at {rip:#x}").into());
                }
                Err(error) if error.errno() == libc::EINTR => {
                    let rip = vcpu.get_regs()?.rip;
                    return Err(
                        format!("the guest has not ended in time, it is at {rip:#x}").into()
                    );
                }
                Err(error) => return Err(format!("KVM_RUN: {error}").into()),
            }
        }
        unreachable!("no guest has that many exits")
    }

    extern "C" fn nothing(_: libc::c_int) {}

    pub(super) fn main() -> Result<()> {
        let mut args = std::env::args_os().skip(1);
        let Some(kernel) = args.next() else {
            println!("SKIPPED boot-linux: no kernel. Usage: boot-linux KERNEL [INITRD [WORD...]]");
            return Ok(());
        };
        if !has_kvm("boot-linux") {
            return Ok(());
        }
        let time = Timeline(Instant::now());
        let initrd = match args.next() {
            Some(file) if file != "-" => std::fs::read(file)?,
            _ => initrd(),
        };
        let mut line = "console=ttyS0 reboot=k panic=-1".to_owned();
        for word in args {
            line.extend([" ", &word.to_string_lossy()]);
        }
        let kvm = Kvm::new()?;
        let fd = kvm.create_vm()?;
        // On Intel KVM takes three pages for itself, where the guest sees none.
        fd.set_tss_address(0xfffb_d000)?;
        let vm = Vm::builder().own_routes(Route::x86_defaults()).open(vm_fd(&fd))?;
        time.say("a VM");

        let ram = memory(0, RAM)?;
        let entry = linux::load(&ram, &mut File::open(kernel)?, &initrd, &line)?;
        power::describe(&ram)?;
        time.say("kernel, initrd and tables in memory");
        let spec = RegionSpec::vm_memory(&ram).ok_or("memory without a host address")?;
        let mut changes = Changes::new();
        changes.map(spec.permanent().label("RAM"));
        let memory = vm.apply(changes)?;
        time.say(&format!("memory: {memory}"));
        fd.create_irq_chip()?;
        fd.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() })?;
        time.say("interrupt controllers and timer");
        let line = Arc::new(eventfd()?);
        let mut changes = Changes::new();
        changes.attach(Device::new("serial").line(SERIAL_GSI, None, Arc::clone(&line), None));
        let devices = vm.apply(changes)?;
        time.say(&format!("devices: {devices}"));
        let mut vcpu = long_mode(&kvm, &fd, &ram, entry)?;
        vcpu.set_regs(&kvm_regs { rsi: linux::ZERO_PAGE.0, ..vcpu.get_regs()? })?;
        let calls = memory.calls() + devices.calls();
        let waits = memory.waits() + devices.waits();
        time.say(&format!(
            "set up: {calls} calls of the library's, {waits} waits; the vCPU goes in"
        ));

        // A guest that hangs does not come out by itself.
        let handler: extern "C" fn(libc::c_int) = nothing;
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGALRM, handler as libc::sighandler_t) };
        // SAFETY: takes a number.
        unsafe { libc::alarm(PATIENCE) };
        let mut serial = Serial::new(Line(line), std::io::stdout());
        let (end, exits) = run(&mut vcpu, &mut serial, time)?;
        time.say(&format!("the guest {end}, after {exits} exits"));
        Ok(())
    }
}
