//! The events of a real VM.

use std::os::fd::RawFd;

use kvm_bindings::{
    KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE, kvm_coalesced_mmio_zone,
    kvm_coalesced_mmio_zone__bindgen_ty_1, kvm_ioeventfd, kvm_irqfd,
};
use kvm_memslots_uapi::irqfd::KVM_IRQFD_FLAG_NO_IRQBYPASS;

use super::calls::EventCalls;
use super::op::Op;
use super::part::Part;
use super::types::{Bus, Ioeventfd, Irqfd, Route};
use super::zone::Zone;
use crate::errno::Errno;
use crate::kvm::Kvm;
use crate::kvm::requests::{
    KVM_IOEVENTFD, KVM_IRQFD, KVM_REGISTER_COALESCED_MMIO, KVM_SET_GSI_ROUTING,
    KVM_UNREGISTER_COALESCED_MMIO,
};
use crate::limits::EventLimits;

/// `1 << kvm_ioeventfd_flag_nr_*` (`linux/kvm.h`).
const IOEVENTFD_DATAMATCH: u32 = 1 << 0;
const IOEVENTFD_PIO: u32 = 1 << 1;
const IOEVENTFD_DEASSIGN: u32 = 1 << 2;

impl Kvm {
    fn set_routes(&self, routes: &[Route]) -> Result<(), Errno> {
        let nr = u32::try_from(routes.len()).map_err(|_| Errno::EINVAL)?;
        // `struct kvm_irq_routing`, and the entries behind it.
        let mut table: Vec<[u32; 2]> = Vec::with_capacity(1 + routes.len() * 6);
        table.push([nr, 0]);
        for route in routes {
            let (kind, flags, words) = route.target.to_raw();
            let pair = |at: usize| [words[at], words[at + 1]];
            let head = [[route.gsi, kind], [flags, 0]];
            table.extend_from_slice(&[head[0], head[1], pair(0), pair(2), pair(4), pair(6)]);
        }
        // SAFETY: the header and the `nr` entries behind it are there, wherever
        // they are aligned to.
        unsafe { self.calls.tell(KVM_SET_GSI_ROUTING, table.as_ptr()) }
    }

    fn change_irqfd(&self, irqfd: &Irqfd, assign: bool) -> Result<(), Errno> {
        let flag = |on, flag| if on { flag } else { 0 };
        let flags = if assign {
            flag(irqfd.resample.is_some(), KVM_IRQFD_FLAG_RESAMPLE)
                | flag(irqfd.no_irqbypass, KVM_IRQFD_FLAG_NO_IRQBYPASS)
        } else {
            KVM_IRQFD_FLAG_DEASSIGN
        };
        let argument = kvm_irqfd {
            fd: word(irqfd.fd),
            gsi: irqfd.gsi,
            flags,
            resamplefd: word(irqfd.resample.unwrap_or(0)),
            ..Default::default()
        };
        // SAFETY: there is no pointer in it.
        unsafe { self.calls.tell(KVM_IRQFD, &raw const argument) }
    }

    fn change_ioeventfd(&self, ioeventfd: &Ioeventfd, assign: bool) -> Result<(), Errno> {
        let flag = |on, flag| if on { flag } else { 0 };
        let argument = kvm_ioeventfd {
            datamatch: ioeventfd.datamatch.unwrap_or(0),
            addr: ioeventfd.addr,
            len: ioeventfd.len,
            fd: ioeventfd.fd,
            flags: flag(!assign, IOEVENTFD_DEASSIGN)
                | flag(ioeventfd.bus == Bus::Pio, IOEVENTFD_PIO)
                | flag(ioeventfd.datamatch.is_some(), IOEVENTFD_DATAMATCH),
            ..Default::default()
        };
        // SAFETY: as above.
        unsafe { self.calls.tell(KVM_IOEVENTFD, &raw const argument) }
    }

    fn change_zone(&self, zone: &Zone, assign: bool) -> Result<(), Errno> {
        let request =
            if assign { KVM_REGISTER_COALESCED_MMIO } else { KVM_UNREGISTER_COALESCED_MMIO };
        let pio = u32::from(zone.bus == Bus::Pio);
        let argument = kvm_coalesced_mmio_zone {
            addr: zone.addr,
            size: zone.len,
            __bindgen_anon_1: kvm_coalesced_mmio_zone__bindgen_ty_1 { pio },
        };
        // SAFETY: as above.
        unsafe { self.calls.tell(request, &raw const argument) }
    }
}

impl EventCalls for Kvm {
    fn limits(&self) -> EventLimits {
        self.allowed.events
    }

    fn name(&self) -> &'static str {
        "kvm"
    }

    fn change(&self, op: &Op) -> Result<(), Errno> {
        let (part, assign) = match op {
            Op::Routes { to, .. } => return self.set_routes(to),
            Op::Assign(part) => (part, true),
            Op::Deassign(part) => (part, false),
        };
        match part {
            Part::Irqfd(irqfd) => self.change_irqfd(irqfd, assign),
            Part::Ioeventfd(ioeventfd) => self.change_ioeventfd(ioeventfd, assign),
            Part::Zone(zone) => self.change_zone(zone, assign),
        }
    }

    fn has_irqchip(&self) -> Option<bool> {
        #[cfg(target_arch = "x86_64")]
        {
            use crate::kvm::requests::KVM_GET_IRQCHIP;
            let mut chip = kvm_bindings::kvm_irqchip::default();
            // SAFETY: the kernel writes the structure: the state of the first PIC.
            let answer = unsafe { self.calls.tell(KVM_GET_IRQCHIP, &raw mut chip) };
            match answer {
                Ok(()) => Some(true),
                Err(Errno::ENXIO) => Some(false),
                Err(_) => None,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        None
    }
}

/// A descriptor as `struct kvm_irqfd` has it: no descriptor is negative, and
/// what is no descriptor stays none.
fn word(fd: RawFd) -> u32 {
    u32::from_ne_bytes(fd.to_ne_bytes())
}
