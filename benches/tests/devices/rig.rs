//! A VM with an interrupt controller, and what a test holds of it.

use std::io;
use std::time::Duration;

use kvm_ioctls::VmFd;
use kvm_memslots::device::Msi;
use kvm_memslots_kit::guest::interrupted::MSI_ADDRESS;
use kvm_memslots_kit::machine::split_irqchip;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::common::{skip, vm_or_skip};

/// Longer than an interrupt takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_mins(2);
/// The slot of the guest's code.
pub const OWN_SLOT: u16 = 500;

/// A VM with local APICs in the kernel, or a line on stderr that says why not.
pub fn split_vm(test: &str) -> Option<VmFd> {
    let vm = vm_or_skip(test)?;
    split_irqchip(&vm).inspect_err(|error| skip(test, error)).ok().map(|()| vm)
}

/// A VM with all interrupt controllers in the kernel.
pub fn full_vm(test: &str) -> Option<VmFd> {
    let vm = vm_or_skip(test)?;
    match vm.create_irq_chip() {
        Ok(()) => Some(vm),
        Err(error) => {
            skip(test, format_args!("KVM_CREATE_IRQCHIP: {error}"));
            None
        }
    }
}

pub fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

pub fn msi(vector: u8) -> Msi {
    Msi { address: MSI_ADDRESS, data: vector.into(), devid: None }
}

/// What was signalled since it was last asked.
pub fn signalled(eventfd: &EventFd) -> u64 {
    match eventfd.read() {
        Ok(count) => count,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => panic!("{error}"),
    }
}
