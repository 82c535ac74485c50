//! The steps of a VM's start, each by the calls that VMMs make.

use std::io;
use std::os::fd::AsRawFd;

use kvm_ioctls::{VcpuFd, VmFd};
use kvm_memslots::backend::{EventCalls, EventOp};
use kvm_memslots::device::{Bus, Ioeventfd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[cfg(not(target_arch = "x86_64"))]
use crate::way::Way as _;
use kvm_memslots_kit::host::{HostMemory, Pages};
use kvm_memslots_kit::machine::calls_of;
#[cfg(target_arch = "x86_64")]
use kvm_memslots_kit::machine::split_irqchip;
use kvm_memslots_kit::raw::set_slot;

const MIB: u64 = 1 << 20;

/// Guest addresses and sizes of a VM's memory: RAM below and above the hole for
/// devices, and firmware below 4 GiB.
pub(crate) const REGIONS: [(u64, u64); 3] =
    [(0, 16 * MIB), (4096 * MIB, 16 * MIB), (4096 * MIB - 2 * MIB, 2 * MIB)];

/// Where `KVM_SET_IDENTITY_MAP_ADDR` and `KVM_SET_TSS_ADDR` put what a vCPU in
/// real mode needs on some CPUs, three pages and one, clear of the memory above.
#[cfg(target_arch = "x86_64")]
const IDENTITY_MAP: u64 = 0xfeff_c000;
#[cfg(target_arch = "x86_64")]
const TSS: usize = 0xfeff_d000;

/// A doorbell that no memory covers.
const DOORBELL: u64 = 0xd800_0000;

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Step {
    /// `KVM_SET_USER_MEMORY_REGION`, one a region.
    Memory,
    /// `KVM_SET_IDENTITY_MAP_ADDR`, `KVM_SET_TSS_ADDR`.
    #[value(name = "TSS")]
    Tss,
    /// `KVM_CREATE_IRQCHIP`.
    Irqchip,
    /// `KVM_CAP_SPLIT_IRQCHIP`.
    #[value(name = "split irqchip")]
    SplitIrqchip,
    /// `KVM_CREATE_PIT2`.
    #[value(name = "PIT")]
    Pit,
    /// `KVM_CREATE_VCPU`, one a vCPU.
    #[value(name = "vCPUs")]
    Vcpus,
    /// `KVM_IOEVENTFD`, one.
    Ioeventfd,
    /// All devices, in a way's own calls.
    Devices,
}

/// What a VM is made of. Dropped after its VM.
#[derive(Debug)]
pub(crate) struct Parts {
    vcpus: Vec<VcpuFd>,
    wanted_vcpus: u64,
    doorbell: EventFd,
    regions: Vec<(u64, u64, u64)>,
    _memory: HostMemory,
}

impl Parts {
    /// Host memory for the first `regions` of [`REGIONS`].
    pub(crate) fn new(regions: usize, vcpus: u32) -> io::Result<Self> {
        let wanted = &REGIONS[..regions];
        let memory = HostMemory::reserve(wanted.iter().map(|(_, size)| size).sum(), Pages::Small)?;
        let mut hva = memory.hva();
        let place = |(gpa, size): &(u64, u64)| {
            hva += size;
            (*gpa, *size, hva - size)
        };
        Ok(Self {
            vcpus: Vec::new(),
            wanted_vcpus: vcpus.into(),
            doorbell: EventFd::new(EFD_NONBLOCK)?,
            regions: wanted.iter().map(place).collect(),
            _memory: memory,
        })
    }

    /// Guest address, size and host address of each region.
    pub(crate) fn regions(&self) -> &[(u64, u64, u64)] {
        &self.regions
    }

    /// Makes a step on `vm`, and says in how many calls.
    pub(crate) fn make(&mut self, step: Step, vm: &VmFd) -> io::Result<u64> {
        match step {
            Step::Memory => self.map(vm),
            Step::Vcpus => {
                for index in 0..self.wanted_vcpus {
                    self.vcpus.push(vm.create_vcpu(index)?);
                }
                Ok(self.wanted_vcpus)
            }
            Step::Ioeventfd => {
                let fd = self.doorbell.as_raw_fd();
                let (bus, addr) = (Bus::Mmio, DOORBELL);
                let doorbell = Ioeventfd { bus, addr, len: 2, datamatch: None, fd };
                calls_of(vm)?.change(&EventOp::Assign(doorbell.into()))?;
                Ok(1)
            }
            Step::Devices => Ok(0),
            Step::Tss | Step::Irqchip | Step::SplitIrqchip | Step::Pit => platform(step, vm),
        }
    }

    fn map(&self, vm: &VmFd) -> io::Result<u64> {
        for (slot, (gpa, size, hva)) in (0..).zip(&self.regions) {
            // SAFETY: the memory is dropped after the VM, no vCPU of which ever
            // runs, and is accessed atomically only.
            unsafe { set_slot(vm, slot, *gpa, *size, *hva) }?;
        }
        Ok(self.regions.len() as u64)
    }
}

#[cfg(target_arch = "x86_64")]
fn platform(step: Step, vm: &VmFd) -> io::Result<u64> {
    use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
    match step {
        Step::Tss => {
            vm.set_identity_map_address(IDENTITY_MAP)?;
            vm.set_tss_address(TSS)?;
            return Ok(2);
        }
        Step::Irqchip => vm.create_irq_chip()?,
        Step::SplitIrqchip => split_irqchip(vm)?,
        _ => {
            let flags = KVM_PIT_SPEAKER_DUMMY;
            vm.create_pit2(kvm_pit_config { flags, ..Default::default() })?;
        }
    }
    Ok(1)
}

#[cfg(not(target_arch = "x86_64"))]
fn platform(step: Step, _: &VmFd) -> io::Result<u64> {
    let what = format!("{} exists on x86-64 only", step.name());
    Err(io::Error::new(io::ErrorKind::Unsupported, what))
}
