//! What KVM has of a VM's events, and what it allows.

use std::ffi::{c_int, c_void};

use kvm_bindings::kvm_irq_routing_entry;
use kvm_memslots::Vm;
use kvm_memslots::backend::{EventPart, EventState};
use kvm_memslots::device::{Bus, Ioeventfd, Irqfd, Zone, ZoneWrite};

use super::flag;
use crate::constants::{
    KVM_MEMSLOTS_DOORBELL_PIO, KVM_MEMSLOTS_DOORBELL_VALUE, KVM_MEMSLOTS_HAS_MSI_DEVID,
    KVM_MEMSLOTS_HAS_NO_IRQBYPASS, KVM_MEMSLOTS_HAS_PIO_ZONES, KVM_MEMSLOTS_HAS_ZONES,
    KVM_MEMSLOTS_IRQFD_NO_IRQBYPASS, KVM_MEMSLOTS_IRQFD_RESAMPLE, KVM_MEMSLOTS_ZONE_PIO,
};
use crate::record::record;

record! {
    "kvm_memslots_event_limits" pub struct CEventLimits {
        pub size: usize,
        pub routes: u32,
        pub flags: u32,
    }
}

impl From<&Vm> for CEventLimits {
    fn from(vm: &Vm) -> Self {
        let events = vm.event_limits();
        Self {
            size: size_of::<Self>(),
            routes: events.routes,
            flags: flag(events.no_irqbypass, KVM_MEMSLOTS_HAS_NO_IRQBYPASS)
                | flag(events.devid, KVM_MEMSLOTS_HAS_MSI_DEVID)
                | flag(events.zones.ring_page.is_some(), KVM_MEMSLOTS_HAS_ZONES)
                | flag(events.zones.pio, KVM_MEMSLOTS_HAS_PIO_ZONES),
        }
    }
}

record! {
    "kvm_memslots_irqfd" pub struct CIrqfd {
        pub size: usize,
        pub gsi: u32,
        pub flags: u32,
        pub eventfd: c_int,
        pub resample: c_int,
    }
}

impl From<&Irqfd> for CIrqfd {
    fn from(irqfd: &Irqfd) -> Self {
        Self {
            size: size_of::<Self>(),
            gsi: irqfd.gsi,
            flags: flag(irqfd.resample.is_some(), KVM_MEMSLOTS_IRQFD_RESAMPLE)
                | flag(irqfd.no_irqbypass, KVM_MEMSLOTS_IRQFD_NO_IRQBYPASS),
            eventfd: irqfd.fd,
            resample: irqfd.resample.unwrap_or(-1),
        }
    }
}

record! {
    "kvm_memslots_ioeventfd" pub struct CIoeventfd {
        pub size: usize,
        pub addr: u64,
        pub value: u64,
        pub flags: u64,
        pub len: u32,
        pub eventfd: c_int,
    }
}

impl From<&Ioeventfd> for CIoeventfd {
    fn from(at: &Ioeventfd) -> Self {
        Self {
            size: size_of::<Self>(),
            addr: at.addr,
            value: at.datamatch.unwrap_or(0),
            flags: (flag(at.bus == Bus::Pio, KVM_MEMSLOTS_DOORBELL_PIO)
                | flag(at.datamatch.is_some(), KVM_MEMSLOTS_DOORBELL_VALUE))
            .into(),
            len: at.len,
            eventfd: at.fd,
        }
    }
}

record! {
    "kvm_memslots_zone" pub struct CZone {
        pub size: usize,
        pub region: u64,
        pub addr: u64,
        pub len: u32,
        pub flags: u32,
    }
}

impl From<&Zone> for CZone {
    fn from(zone: &Zone) -> Self {
        Self {
            size: size_of::<Self>(),
            region: 0,
            addr: zone.addr,
            len: zone.len,
            flags: flag(zone.bus == Bus::Pio, KVM_MEMSLOTS_ZONE_PIO),
        }
    }
}

record! {
    "kvm_memslots_zone_write" pub struct CZoneWrite {
        pub size: usize,
        pub addr: u64,
        pub data: [u8; 8],
        pub len: u32,
        pub flags: u32,
    }
}

impl From<&ZoneWrite> for CZoneWrite {
    fn from(write: &ZoneWrite) -> Self {
        Self {
            size: size_of::<Self>(),
            addr: write.addr,
            data: write.value.to_le_bytes(),
            len: write.len,
            flags: flag(write.bus == Bus::Pio, KVM_MEMSLOTS_ZONE_PIO),
        }
    }
}

type EachPart<T> = unsafe extern "C" fn(*mut c_void, *const T);

record! {
    "kvm_memslots_event_state" pub struct CEventState {
        pub size: usize,
        pub route: Option<EachPart<kvm_irq_routing_entry>>,
        pub irqfd: Option<EachPart<CIrqfd>>,
        pub ioeventfd: Option<EachPart<CIoeventfd>>,
        pub zone: Option<EachPart<CZone>>,
        pub opaque: *mut c_void,
    }
}

impl CEventState {
    /// Hands it all out.
    pub(crate) fn hand_out(&self, state: &EventState) {
        for route in &state.routes {
            tell(self.route, self.opaque, &route.to_kvm());
        }
        for part in &state.assigned {
            match part {
                EventPart::Irqfd(irqfd) => tell(self.irqfd, self.opaque, &irqfd.into()),
                EventPart::Ioeventfd(at) => tell(self.ioeventfd, self.opaque, &at.into()),
                EventPart::Zone(zone) => tell(self.zone, self.opaque, &zone.into()),
            }
        }
    }
}

fn tell<T>(each: Option<EachPart<T>>, opaque: *mut c_void, part: &T) {
    if let Some(each) = each {
        // SAFETY: C gave the function to be called with these.
        unsafe { each(opaque, part) }
    }
}
