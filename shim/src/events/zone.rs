//! Zones of coalesced MMIO and PIO.

use std::fmt;

use super::types::{Bus, Ioeventfd};

/// Addresses where the guest's writes are kept in the VM's ring instead of
/// exiting (`KVM_REGISTER_COALESCED_MMIO`). Reads exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Zone {
    /// Memory or ports.
    pub bus: Bus,
    /// The first address.
    pub addr: u64,
    /// Bytes: 1 to [`MAX_LEN`](Self::MAX_LEN).
    pub len: u32,
}

impl Zone {
    /// The most bytes: KVM keeps the length in an `int`, and never unregisters a
    /// zone that is larger (`coalesced_mmio_in_range()`).
    pub const MAX_LEN: u32 = i32::MAX as u32;

    /// Whether all these bytes are in the zone, as KVM sees it
    /// (`coalesced_mmio_in_range()`).
    #[must_use]
    pub fn has(&self, addr: u64, len: u32) -> bool {
        let Some(end) = addr.checked_add(len.into()) else { return false };
        let len_is_kvms = len <= Self::MAX_LEN;
        len_is_kvms && addr >= self.addr && end <= self.addr.wrapping_add(self.len.into())
    }

    /// Whether they have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.bus == other.bus && self.meets(other.addr, other.len)
    }

    /// Whether there is a write that both would take. KVM gives it to the one
    /// that it finds first (`__kvm_io_bus_write()`).
    #[must_use]
    pub fn takes_from(&self, ioeventfd: &Ioeventfd) -> bool {
        // One of any length is for the writes that begin there.
        self.bus == ioeventfd.bus && self.meets(ioeventfd.addr, ioeventfd.len.max(1))
    }

    fn meets(&self, addr: u64, len: u32) -> bool {
        let end = |addr: u64, len: u32| u128::from(addr) + u128::from(len);
        u128::from(self.addr) < end(addr, len) && u128::from(addr) < end(self.addr, self.len)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bus = match self.bus {
            Bus::Mmio => "GPA",
            Bus::Pio => "port",
        };
        write!(f, "coalesced zone at {bus} {:#x}, {:#x} bytes", self.addr, self.len)
    }
}

/// A write of the guest's that a ring has kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ZoneWrite {
    /// Memory or ports.
    pub bus: Bus,
    /// The address.
    pub addr: u64,
    /// Bytes: 1 to 8.
    pub len: u32,
    /// What was written.
    pub value: u64,
}
