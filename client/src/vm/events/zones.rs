//! What becomes of coalesced zones, and what would be in their way.

use kvm_memslots_shim::events::{State, Zone};

use super::Attached;
use super::work::{Subject, Work};
use crate::RegionId;
use crate::device::{DeviceId, DevicePart};
use crate::error::{Error, ErrorKind};

impl Attached {
    /// Its zones that have an address, by their index: all, or those in a region.
    fn zones<'a>(
        &'a self,
        of: Option<RegionId>,
        gpa_of: impl Fn(RegionId) -> Option<u64> + 'a,
    ) -> impl Iterator<Item = (usize, Zone)> + 'a {
        self.zones.iter().enumerate().filter_map(move |(index, zone)| {
            let (bus, addr) = zone.place.of(of, &gpa_of)?;
            addr.checked_add(zone.len.into())?;
            Some((index, Zone { bus, addr, len: zone.len }))
        })
    }
}

impl Work<'_, '_> {
    /// Zones of a device, or of those only that are in one region.
    pub(super) fn zones(
        &mut self,
        id: DeviceId,
        device: &Attached,
        of: Option<RegionId>,
        number: Option<usize>,
        gpa_of: &dyn Fn(RegionId) -> Option<u64>,
        comes: bool,
    ) -> Result<(), Error> {
        for (index, zone) in device.zones(of, gpa_of) {
            if comes {
                let other = self.zones_come.overlapping(zone).next();
                if let Some((_, other, at)) = other {
                    let other = (other, DevicePart::Zone { index: at });
                    return Err(self.zone_taken((id, index, zone), other));
                }
                self.zones_come.insert(zone, id, index);
            } else {
                self.zones_gone.insert(zone, id, index);
            }
            if !device.defers {
                let parts = if comes { &mut self.delta.come } else { &mut self.delta.gone };
                parts.zones.insert(zone);
                self.note_zone(device, index, zone, number);
            }
        }
        Ok(())
    }

    /// The zones that were left to later.
    pub(super) fn assign_zones(
        &mut self,
        device: &Attached,
        number: Option<usize>,
        gpa_of: &dyn Fn(RegionId) -> Option<u64>,
    ) {
        for (index, zone) in device.zones(None, gpa_of) {
            self.delta.come.zones.insert(zone);
            self.note_zone(device, index, zone, number);
        }
    }

    /// The zones that KVM is to have of a device.
    pub(super) fn wanted_zones(
        &mut self,
        device: &Attached,
        number: Option<usize>,
        gpa_of: &dyn Fn(RegionId) -> Option<u64>,
        wanted: &mut State,
    ) {
        for (index, zone) in device.zones(None, gpa_of) {
            wanted.zones.insert(zone);
            self.note_zone(device, index, zone, number);
        }
    }

    fn note_zone(&mut self, device: &Attached, index: usize, zone: Zone, number: Option<usize>) {
        self.note(Subject::Zone(zone), device, DevicePart::Zone { index }, number);
    }

    /// Whether zones that come overlap with others, or would take what is a
    /// doorbell's; and doorbells that come, what is a zone's.
    pub(super) fn check_zones(&self) -> Result<(), Error> {
        let state = self.draft.state;
        for (zone, (id, index)) in self.zones_come.iter() {
            let mut there = state.zones.overlapping(*zone);
            let other = there.find(|(other, ..)| !self.zones_gone.contains(other));
            if let Some((_, other, at)) = other {
                let other = (other, DevicePart::Zone { index: at });
                return Err(self.zone_taken((*id, *index, *zone), other));
            }
            let stays = state.claims.inside(*zone);
            let mut stays = stays.filter(|(bell, ..)| !self.claims_gone.contains(bell));
            let bell = stays.next().or_else(|| self.claims_come.inside(*zone).next());
            if let Some((_, other, at)) = bell {
                let other = (other, DevicePart::Ioeventfd { index: at });
                return Err(self.zone_taken((*id, *index, *zone), other));
            }
        }
        if state.zones.is_empty() {
            return Ok(());
        }
        for (bell, (id, index)) in self.claims_come.iter() {
            let zone = Zone { bus: bell.bus, addr: bell.addr, len: bell.len.max(1) };
            let mut there = state.zones.overlapping(zone);
            let zone = there.find(|(zone, ..)| !self.zones_gone.contains(zone));
            if let Some((_, other, at)) = zone {
                let other = (other, DevicePart::Zone { index: at });
                return Err(self.taken((*id, *index, *bell), other));
            }
        }
        Ok(())
    }

    fn zone_taken(
        &self,
        (id, index, zone): (DeviceId, usize, Zone),
        (other, other_part): (DeviceId, DevicePart),
    ) -> Error {
        let other = self.draft.name(other);
        let error = Error::from(ErrorKind::ZoneTaken { zone, other, other_part });
        self.blamed(error, id, DevicePart::Zone { index })
    }
}
