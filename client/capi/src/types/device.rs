//! What a device is made of.

use std::ffi::c_int;

use kvm_memslots::RegionId;
use kvm_memslots::device::{Bus, Coalesced, Device, Doorbell, Event, Msi};

use super::{CZone, descriptor, known};
use crate::constants::{
    KVM_MEMSLOTS_DOORBELL_PIO, KVM_MEMSLOTS_DOORBELL_VALUE, KVM_MEMSLOTS_LINE_PIN,
    KVM_MEMSLOTS_LINE_RESAMPLE, KVM_MEMSLOTS_MSI_DEVID, KVM_MEMSLOTS_ZONE_PIO,
};
use crate::failure::Failure;
use crate::record::{invalid, record};

record! {
    "kvm_memslots_doorbell" pub struct CDoorbell {
        pub size: usize,
        pub region: u64,
        pub addr: u64,
        pub value: u64,
        pub len: u32,
        pub flags: u32,
    }
}

impl CDoorbell {
    pub(crate) fn doorbell(&self) -> Result<Doorbell, Failure> {
        known(
            self.flags.into(),
            (KVM_MEMSLOTS_DOORBELL_PIO | KVM_MEMSLOTS_DOORBELL_VALUE).into(),
            "a doorbell",
        )?;
        let place = match (self.region, self.flags & KVM_MEMSLOTS_DOORBELL_PIO != 0) {
            (0, false) => Doorbell::at(Bus::Mmio, self.addr),
            (0, true) => Doorbell::at(Bus::Pio, self.addr),
            (region, false) => Doorbell::in_region(RegionId::from_raw(region), self.addr),
            (_, true) => return Err(invalid("a doorbell in a region is not at a port")),
        };
        let doorbell = place.len(self.len);
        Ok(if self.flags & KVM_MEMSLOTS_DOORBELL_VALUE == 0 {
            doorbell
        } else {
            doorbell.value(self.value)
        })
    }
}

impl CZone {
    pub(crate) fn zone(&self) -> Result<Coalesced, Failure> {
        known(self.flags.into(), KVM_MEMSLOTS_ZONE_PIO.into(), "a zone")?;
        match (self.region, self.flags & KVM_MEMSLOTS_ZONE_PIO != 0) {
            (0, false) => Ok(Coalesced::at(Bus::Mmio, self.addr, self.len)),
            (0, true) => Ok(Coalesced::at(Bus::Pio, self.addr, self.len)),
            (id, false) => Ok(Coalesced::in_region(RegionId::from_raw(id), self.addr, self.len)),
            (_, true) => Err(invalid("a zone in a region is not at a port")),
        }
    }
}

record! {
    "kvm_memslots_msi" pub struct CMsi {
        pub size: usize,
        pub address: u64,
        pub data: u32,
        pub devid: u32,
        pub flags: u64,
    }
}

impl CMsi {
    pub(crate) fn msi(&self) -> Result<Msi, Failure> {
        known(self.flags, KVM_MEMSLOTS_MSI_DEVID, "a message")?;
        let devid = (self.flags & KVM_MEMSLOTS_MSI_DEVID != 0).then_some(self.devid);
        Ok(Msi { address: self.address, data: self.data, devid })
    }
}

record! {
    "kvm_memslots_line" pub struct CLine {
        pub size: usize,
        pub gsi: u32,
        pub irqchip: u32,
        pub pin: u32,
        pub flags: u32,
        pub eventfd: c_int,
        pub resample: c_int,
    }
}

impl CLine {
    /// What adds it to a device.
    pub(crate) fn line(&self) -> Result<impl FnOnce(Device) -> Device + use<>, Failure> {
        known(
            self.flags.into(),
            (KVM_MEMSLOTS_LINE_PIN | KVM_MEMSLOTS_LINE_RESAMPLE).into(),
            "a line",
        )?;
        let gsi = self.gsi;
        let pin = (self.flags & KVM_MEMSLOTS_LINE_PIN != 0).then_some((self.irqchip, self.pin));
        let eventfd = descriptor(self.eventfd, "eventfd")?;
        let resample = (self.flags & KVM_MEMSLOTS_LINE_RESAMPLE != 0)
            .then(|| descriptor(self.resample, "resample"));
        let resample = resample.transpose()?.map(Event::new);
        Ok(move |device: Device| device.line(gsi, pin, eventfd, resample))
    }
}
