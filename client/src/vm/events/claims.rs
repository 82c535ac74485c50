//! Where doorbells and coalesced zones are.

use std::collections::BTreeMap;

use kvm_memslots_shim::events::{Ioeventfd, Parts, Zone};

use crate::device::{DeviceId, DevicePart};

/// What a device has on a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnBus {
    Doorbell(Ioeventfd),
    Zone(Zone),
}

impl OnBus {
    pub(super) fn insert_into(self, parts: &mut Parts) {
        match self {
            Self::Doorbell(bell) => parts.ioeventfds.insert(bell),
            Self::Zone(zone) => parts.zones.insert(zone),
        };
    }
}

/// Whose it is.
pub(super) type Owner = (DeviceId, DevicePart);

/// Doorbells and zones of devices. No two doorbells are for the same write; no two
/// zones overlap, as KVM unregisters all that the one it is told is in; and no zone
/// takes writes from a doorbell.
#[derive(Debug, Default)]
pub(super) struct Claims {
    doorbells: BTreeMap<Ioeventfd, Owner>,
    zones: BTreeMap<Zone, Owner>,
}

impl Claims {
    pub(super) fn iter(&self) -> impl Iterator<Item = (OnBus, Owner)> + '_ {
        let doorbells = self.doorbells.iter().map(|(bell, owner)| (OnBus::Doorbell(*bell), *owner));
        doorbells.chain(self.zones.iter().map(|(zone, owner)| (OnBus::Zone(*zone), *owner)))
    }

    pub(super) fn insert(&mut self, what: OnBus, owner: Owner) {
        match what {
            OnBus::Doorbell(bell) => self.doorbells.insert(bell, owner),
            OnBus::Zone(zone) => self.zones.insert(zone, owner),
        };
    }

    pub(super) fn contains(&self, what: &OnBus) -> bool {
        match what {
            OnBus::Doorbell(bell) => self.doorbells.contains_key(bell),
            OnBus::Zone(zone) => self.zones.contains_key(zone),
        }
    }

    pub(super) fn follow(&mut self, gone: &Self, come: &Self) {
        gone.doorbells.keys().for_each(|bell| _ = self.doorbells.remove(bell));
        gone.zones.keys().for_each(|zone| _ = self.zones.remove(zone));
        self.doorbells.extend(&come.doorbells);
        self.zones.extend(&come.zones);
    }

    /// Those that this one can't be beside.
    pub(super) fn in_the_way(&self, what: OnBus) -> impl Iterator<Item = (OnBus, Owner)> + '_ {
        let (zone, bell) = match what {
            // A zone that is there would take some of its writes.
            OnBus::Doorbell(bell) => {
                (Zone { bus: bell.bus, addr: bell.addr, len: bell.len.max(1) }, Some(bell))
            }
            OnBus::Zone(zone) => (zone, None),
        };
        let colliding = bell.into_iter().flat_map(|bell| self.colliding(bell));
        let inside = bell.is_none().then(|| self.inside(zone)).into_iter().flatten();
        self.overlapping(zone).chain(colliding).chain(inside)
    }

    /// Those that would fire for some of the same writes.
    fn colliding(&self, with: Ioeventfd) -> impl Iterator<Item = (OnBus, Owner)> + '_ {
        let first = Ioeventfd { len: 0, datamatch: None, fd: i32::MIN, ..with };
        let here = self.doorbells.range(first..);
        let here =
            here.take_while(move |(other, _)| (other.bus, other.addr) == (with.bus, with.addr));
        let colliding = here.filter(move |(other, _)| other.collides_with(&with));
        colliding.map(|(bell, owner)| (OnBus::Doorbell(*bell), *owner))
    }

    /// Those that a zone would take writes from.
    fn inside(&self, zone: Zone) -> impl Iterator<Item = (OnBus, Owner)> + '_ {
        let (bus, addr) = (zone.bus, zone.addr.saturating_sub(7));
        let first = Ioeventfd { bus, addr, len: 0, datamatch: None, fd: i32::MIN };
        let end = zone.addr.saturating_add(zone.len.into());
        let near = self.doorbells.range(first..);
        let near = near.take_while(move |(bell, _)| bell.bus == bus && bell.addr < end);
        let inside = near.filter(move |(bell, _)| zone.takes_from(bell));
        inside.map(|(bell, owner)| (OnBus::Doorbell(*bell), *owner))
    }

    /// Zones that have an address in common with this one.
    fn overlapping(&self, with: Zone) -> impl Iterator<Item = (OnBus, Owner)> + '_ {
        let last = with.addr.saturating_add(u64::from(with.len).saturating_sub(1));
        let before = self.zones.range(..=Zone { addr: last, len: u32::MAX, ..with }).rev();
        let overlapping = before.take_while(move |(zone, _)| zone.overlaps(&with));
        overlapping.map(|(zone, owner)| (OnBus::Zone(*zone), *owner))
    }
}
