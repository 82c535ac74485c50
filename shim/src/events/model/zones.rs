//! Coalesced zones and their ring (`virt/kvm/coalesced_mmio.c`).

use std::os::fd::RawFd;

use super::{Call, Model, Vm};
use crate::errno::Errno;
use crate::events::bus::What;
use crate::events::op::Op;
use crate::events::types::Bus;
use crate::events::zone::{Zone, ZoneWrite};
use crate::limits::ZoneLimits;

/// `KVM_COALESCED_MMIO_MAX` with pages of 4 KiB, less the one that stays free.
const RING: usize = 169;

impl Model {
    /// The same, of a kernel that allows this of zones.
    #[must_use]
    pub fn with_zone_limits(self, limits: ZoneLimits) -> Self {
        self.with(|vm| vm.zones = limits);
        self
    }

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
                What::Own => None,
                What::Ioeventfd(ioeventfd) => Some(ioeventfd.fd),
                What::Zone(_) => {
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
        self.enter(Call::RegisterZone)?;
        self.check_zone(zone)?;
        if self.bus(zone.bus).is_full() {
            return Err(Errno::ENOSPC);
        }
        self.bus(zone.bus).register(What::Zone(*zone));
        self.done(&Op::RegisterZone(*zone));
        Ok(())
    }

    /// `kvm_vm_ioctl_unregister_coalesced_mmio()`.
    pub(super) fn unregister_zone(&mut self, zone: &Zone) -> Result<(), Errno> {
        self.enter(Call::UnregisterZone)?;
        self.check_zone(zone)?;
        let is_in = |there: &&Zone| there.bus == zone.bus && there.has(zone.addr, zone.len);
        let gone: Vec<Zone> = self.state.zones.iter().filter(is_in).copied().collect();
        for zone in gone {
            self.bus(zone.bus).unregister(What::Zone(zone));
            self.done(&Op::UnregisterZone(zone));
        }
        Ok(())
    }

    const fn check_zone(&self, zone: &Zone) -> Result<(), Errno> {
        match (self.zones.ring_page, zone.bus) {
            (None, _) => Err(Errno::ENOTTY),
            (Some(_), Bus::Pio) if !self.zones.pio => Err(Errno::EINVAL),
            _ => Ok(()),
        }
    }
}
