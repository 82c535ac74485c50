//! A VM with an interrupt controller in the kernel, and nothing else.

use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context as _, Result};
use kvm_ioctls::{Kvm, VmFd};
use kvm_memslots::backend::{self, EventCalls, EventOp, KvmOptions};
use kvm_memslots::device::Irqfd;
use kvm_memslots::vm_fd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Flag;

/// The first GSI with an irqfd: behind the pins that have one meaning or
/// another on x86, an SPI on arm64.
const FIRST_GSI: u32 = 24;

/// A VM whose irqfds can be assigned. What it keeps open belongs to the VM.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) events: backend::Kvm,
    eventfds: Vec<EventFd>,
    _controller: Controller,
    _vm: VmFd,
}

/// Descriptors of a machine beside its eventfds: the VM, a duplicate of it,
/// and on arm64 a vCPU and the vGIC; some to spare.
pub(super) const DESCRIPTORS: u64 = 5;

impl Machine {
    pub(super) fn new() -> Result<Self> {
        let kvm = Kvm::new().map_err(io::Error::from).context("/dev/kvm")?;
        let vm = kvm.create_vm().map_err(io::Error::from).context("KVM_CREATE_VM")?;
        let controller = Controller::new(&vm).map_err(io::Error::from);
        let controller = controller.context("an interrupt controller")?;
        let events = backend::Kvm::open(vm_fd(&vm), KvmOptions::default()).context("the VM")?;
        Ok(Self { events, eventfds: Vec::new(), _controller: controller, _vm: vm })
    }

    /// Makes the eventfds for irqfds to come.
    pub(super) fn prepare(&mut self, count: u32) -> Result<()> {
        for _ in 0..count {
            self.eventfds.push(EventFd::new(EFD_NONBLOCK).context("eventfd")?);
        }
        Ok(())
    }

    pub(super) fn count(&self) -> usize {
        self.eventfds.len()
    }

    /// Assigns the irqfd of this index.
    pub(super) fn assign(&mut self, index: usize, flag: Flag) -> Result<()> {
        let irqfd = Irqfd {
            gsi: FIRST_GSI + index as u32,
            fd: self.eventfds[index].as_raw_fd(),
            resample: None,
            no_irqbypass: flag == Flag::NoBypass,
        };
        self.events.change(&EventOp::Assign(irqfd.into())).context("KVM_IRQFD")
    }
}

#[cfg(target_arch = "x86_64")]
#[derive(Debug)]
struct Controller;

#[cfg(target_arch = "x86_64")]
impl Controller {
    fn new(vm: &VmFd) -> Result<Self, kvm_ioctls::Error> {
        vm.create_irq_chip()?;
        Ok(Self)
    }
}

/// A vGICv3, which is set up when it has a vCPU and its addresses.
#[cfg(target_arch = "aarch64")]
#[derive(Debug)]
struct Controller {
    _vgic: kvm_ioctls::DeviceFd,
    _vcpu: kvm_ioctls::VcpuFd,
}

#[cfg(target_arch = "aarch64")]
impl Controller {
    fn new(vm: &VmFd) -> Result<Self, kvm_ioctls::Error> {
        use kvm_bindings::{
            KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
            KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device,
            kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_vcpu_init,
        };
        let vcpu = vm.create_vcpu(0)?;
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init)?;
        vcpu.vcpu_init(&init)?;
        let mut device = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
            ..Default::default()
        };
        let vgic = vm.create_device(&mut device)?;
        let set = |group: u32, attr: u32, value: &u64| {
            let addr =
                if group == KVM_DEV_ARM_VGIC_GRP_CTRL { 0 } else { &raw const *value as u64 };
            let attr = kvm_device_attr { group, attr: attr.into(), addr, flags: 0 };
            vgic.set_device_attr(&attr)
        };
        // The distributor takes 64 KiB, a redistributor 128.
        set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &0x0800_0000)?;
        set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, &0x080a_0000)?;
        set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, &0)?;
        Ok(Self { _vgic: vgic, _vcpu: vcpu })
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[derive(Debug)]
struct Controller;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
impl Controller {
    fn new(_: &VmFd) -> Result<Self, kvm_ioctls::Error> {
        Err(kvm_ioctls::Error::new(libc::EOPNOTSUPP))
    }
}
