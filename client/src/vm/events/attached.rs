//! A device that is attached, and what KVM is to have of it.

use std::sync::Arc;

use kvm_memslots_shim::events::{Ioeventfd, Irqfd, Part, Route, Zone};

use crate::RegionId;
use crate::device::{Coalesced, Device, DevicePart, Event, Kick, Line, Place, Vector};

/// Where a region is, if it is mapped.
pub(super) type GpaOf<'a> = &'a dyn Fn(RegionId) -> Option<u64>;

/// A device that is attached.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) name: Arc<str>,
    pub(crate) regions: Vec<RegionId>,
    pub(crate) kicks: Vec<Kick>,
    pub(super) zones: Vec<Coalesced>,
    pub(crate) vectors: Vec<Vector>,
    pub(crate) lines: Vec<Line>,
    pub(super) may_bypass: bool,
    /// Its ioeventfds and zones are left to a later set.
    pub(super) defers: bool,
}

impl Attached {
    pub(super) fn new(device: &Device) -> Self {
        Self {
            name: Arc::clone(&device.name),
            regions: device.regions.iter().map(|(id, _)| *id).collect(),
            kicks: device.kicks.clone(),
            zones: device.zones.clone(),
            vectors: device.vectors.clone(),
            lines: device.lines.clone(),
            may_bypass: device.may_bypass,
            defers: device.defers,
        }
    }

    /// What it has on a bus that has an address: all, or what is in a region; `None`
    /// for what would end beyond the last address.
    pub(super) fn on_bus<'a>(
        &'a self,
        of: Option<RegionId>,
        gpa_of: GpaOf<'a>,
    ) -> impl Iterator<Item = (DevicePart, Option<Part>)> + 'a {
        let doorbells = self.kicks.iter().enumerate().filter_map(move |(index, kick)| {
            let (len, datamatch) = (kick.doorbell.len, kick.doorbell.value);
            let (bus, addr) = kick.doorbell.place.of(of, len, gpa_of)?;
            let fd = event_fd(&kick.event);
            let bell = addr.map(|addr| Ioeventfd { bus, addr, len, datamatch, fd }.into());
            Some((DevicePart::Ioeventfd { index }, bell))
        });
        let zones = self.zones.iter().enumerate().filter_map(move |(index, zone)| {
            let len = zone.len;
            let (bus, addr) = zone.place.of(of, len, gpa_of)?;
            let zone = addr.map(|addr| Zone { bus, addr, len }.into());
            Some((DevicePart::Zone { index }, zone))
        });
        doorbells.chain(zones)
    }

    /// Where one of its doorbells or zones is, and how long it is.
    pub(super) fn place_of(&self, part: DevicePart) -> Option<(Place, u32)> {
        match part {
            DevicePart::Ioeventfd { index } => {
                self.kicks.get(index).map(|kick| (kick.doorbell.place, kick.doorbell.len))
            }
            DevicePart::Zone { index } => self.zones.get(index).map(|zone| (zone.place, zone.len)),
            _ => None,
        }
    }

    /// The regions that its doorbells and zones are in.
    pub(super) fn follows(&self) -> impl Iterator<Item = RegionId> + '_ {
        let places = self.kicks.iter().map(|kick| kick.doorbell.place);
        places.chain(self.zones.iter().map(|zone| zone.place)).filter_map(|place| match place {
            Place::In(region, _) => Some(region),
            Place::At(..) => None,
        })
    }

    /// The route and the irqfd of one of its vectors.
    pub(super) fn of_vector(
        &self,
        vector: &Vector,
        no_irqbypass: bool,
    ) -> (Option<Route>, Option<Irqfd>) {
        let Some((gsi, msi)) = vector.routed else { return (None, None) };
        // A trigger holds its events back itself.
        let raises = vector.msi.is_some() || vector.trigger.is_some();
        let irqfd = Irqfd {
            gsi,
            fd: event_fd(&vector.event),
            resample: None,
            no_irqbypass: no_irqbypass && !self.may_bypass,
        };
        (Some(Route::msi(gsi, msi)), raises.then_some(irqfd))
    }

    /// The same of a line.
    pub(super) fn of_line(&self, line: &Line, no_irqbypass: bool) -> (Option<Route>, Irqfd) {
        let irqfd = Irqfd {
            gsi: line.gsi,
            fd: event_fd(&line.event),
            resample: line.resample.as_ref().map(event_fd),
            no_irqbypass: no_irqbypass && !self.may_bypass,
        };
        (line.pin.map(|(chip, pin)| Route::irqchip(line.gsi, chip, pin)), irqfd)
    }

    /// All its eventfds.
    pub(crate) fn fds(&self) -> impl Iterator<Item = Event> + '_ {
        let vectors = self.vectors.iter().map(|vector| &vector.event);
        let lines = self.lines.iter().flat_map(|line| [Some(&line.event), line.resample.as_ref()]);
        let kicks = self.kicks.iter().map(|kick| &kick.event);
        vectors.chain(lines.flatten()).chain(kicks).cloned()
    }
}

fn event_fd(event: &Event) -> std::os::fd::RawFd {
    std::os::fd::AsRawFd::as_raw_fd(event)
}
