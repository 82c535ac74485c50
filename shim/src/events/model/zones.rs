//! Coalesced zones and their ring (`virt/kvm/coalesced_mmio.c`).

use std::os::fd::RawFd;

use super::{Model, Vm};
use crate::errno::Errno;
use crate::events::op::Op;
use crate::events::part::Part;
use crate::events::types::Bus;
use crate::events::zone::{Zone, ZoneWrite};

/// `KVM_COALESCED_MMIO_MAX` with pages of 4 KiB, less the one that stays free.
const RING: usize = 169;

impl Model {
    /// What is in the ring, which is empty then.
    #[must_use]
    pub fn take_ring(&self) -> Vec<ZoneWrite> {
        self.with(|vm| std::mem::take(&mut vm.ring))
    }

    /// The eventfd that a guest's write of `len` bytes signals; `None` where
    /// it comes out as an exit, or is in the ring.
    #[must_use]
    pub fn guest_writes(&self, bus: Bus, addr: u64, len: u32, value: u64) -> Option<RawFd> {
        self.with(|vm| {
            let room = vm.ring.len() < RING;
            match vm.bus(bus).write(addr, len, value, room)? {
                Part::Ioeventfd(ioeventfd) => Some(ioeventfd.fd),
                Part::Zone(_) | Part::Irqfd(_) => {
                    vm.ring.push(ZoneWrite { bus, addr, len, value });
                    None
                }
            }
        })
    }
}

impl Vm {
    /// `kvm_vm_ioctl_register_coalesced_mmio()`.
    pub(super) fn register_zone(&mut self, zone: &Zone) -> Result<(), Errno> {
        self.check_zone(zone)?;
        if self.bus(zone.bus).is_full() {
            return Err(Errno::ENOSPC);
        }
        self.done(&Op::Assign(Part::Zone(*zone)));
        Ok(())
    }

    /// `kvm_vm_ioctl_unregister_coalesced_mmio()`.
    pub(super) fn unregister_zone(&mut self, zone: &Zone) -> Result<(), Errno> {
        self.check_zone(zone)?;
        let is_in = |there: &Zone| there.bus == zone.bus && there.has(zone.addr, zone.len);
        let gone: Vec<Zone> = self.state.zones().filter(is_in).collect();
        for zone in gone {
            self.done(&Op::Deassign(Part::Zone(zone)));
        }
        Ok(())
    }

    const fn check_zone(&self, zone: &Zone) -> Result<(), Errno> {
        match (self.limits.zones.ring_page, zone.bus) {
            (None, _) => Err(Errno::ENOTTY),
            (Some(_), Bus::Pio) if !self.limits.zones.pio => Err(Errno::EINVAL),
            _ => Ok(()),
        }
    }
}
