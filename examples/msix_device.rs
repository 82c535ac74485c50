//! A device with memory, a doorbell and MSI-X vectors, attached as one.
//!
//! What to look at: `Device` says all that the device has in KVM, and one set of
//! changes attaches it; a vector whose events go through a `Trigger` is masked
//! without a call.

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("SKIPPED msix-device: its guest is for x86");
}

#[cfg(target_arch = "x86_64")]
fn main() -> kvm_memslots_examples::Result<()> {
    x86::main()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::io::Read as _;
    use std::sync::Arc;

    use kvm_ioctls::VcpuExit;
    use kvm_memslots::device::{Bus, Device, Doorbell, Msi, Route, Trigger};
    use kvm_memslots::{Changes, RegionId, RegionSpec, Vm, vm_fd};
    use kvm_memslots_examples::{Result, eventfd, has_kvm, memory, real_mode};
    use vm_memory::{Bytes as _, MemoryRegionAddress};

    const CODE: u64 = 0x1000;
    const BAR: u64 = 0xe000_0000;
    const VECTORS: u32 = 16;
    /// The doorbell's port.
    const PORT: u64 = 0x90;

    /// `out 0x90, al; out 0x80, al`: rings, then exits.
    const PROGRAM: [u8; 4] = [0xe6, 0x90, 0xe6, 0x80];

    fn message(vector: u32) -> Msi {
        Msi { address: 0xfee0_0000, data: 0x40 + vector, devid: None }
    }

    pub(super) fn main() -> Result<()> {
        if !has_kvm("msix-device") {
            return Ok(());
        }
        let fd = kvm_ioctls::Kvm::new()?.create_vm()?;
        // Routes that KVM makes with its interrupt controllers are the VMM's own.
        let vm = Vm::builder().own_routes(Route::x86_defaults()).open(vm_fd(&fd))?;

        // Memory first: what the interrupt controllers leave in flight would make
        // it wait.
        let ram = memory(0, 0x4000)?;
        ram.write_slice(&PROGRAM, MemoryRegionAddress(CODE))?;
        let mut boot = Changes::new();
        boot.map(RegionSpec::vm_memory(&ram).ok_or("memory without a host address")?);
        vm.apply(boot)?;
        fd.create_irq_chip()?;

        let shared = memory(BAR, 0x4000)?;
        let spec = RegionSpec::vm_memory(&shared).ok_or("memory without a host address")?;
        let kick = Arc::new(eventfd()?);
        let triggers: Vec<_> =
            (0..VECTORS).map(|_| Ok(Arc::new(Trigger::new(eventfd()?)))).collect::<Result<_>>()?;
        let doorbell = Doorbell::at(Bus::Pio, PORT).len(1);
        let mut device = Device::new("net0")
            .region(RegionId::new(), spec.label("net0 BAR 0"))
            .ioeventfd(doorbell, Arc::clone(&kick));
        for (vector, trigger) in (0..).zip(&triggers) {
            device = device.triggered_vector(Arc::clone(trigger), Some(message(vector)));
        }
        let mut attach = Changes::new();
        let net = attach.attach(device);
        let report = vm.apply(attach)?;
        println!(
            "attached: {} memslot call, {} routing call; {report}",
            report.ioctls, report.events.routing_calls
        );

        let mut vcpu = real_mode(&fd, CODE, 0)?;
        match vcpu.run()? {
            VcpuExit::IoOut(0x80, _) => {}
            exit => return Err(format!("the guest ended with {exit:?}").into()),
        }
        let mut count = [0; 8];
        std::fs::File::from(kick.try_clone()?).read_exact(&mut count)?;
        if u64::from_ne_bytes(count) != 1 {
            return Err("the doorbell rang more than once".into());
        }
        println!("the guest rang the doorbell, without an exit");

        let mut calls = 0;
        for msi in [None, Some(message(0))] {
            let mut changes = Changes::new();
            changes.set_vector(net, 0, msi);
            calls += vm.apply(changes)?.calls();
            triggers[0].signal()?;
            println!("vector 0 {}: pending {}", mask(msi), triggers[0].is_pending());
        }
        println!("masked and unmasked: {calls} calls");

        let mut detach = Changes::new();
        detach.detach(net);
        vm.apply(detach)?;
        println!("{} devices are left", vm.devices().len());
        Ok(())
    }

    fn mask(msi: Option<Msi>) -> &'static str {
        if msi.is_some() { "unmasked" } else { "masked" }
    }
}
