//! Where doorbells and coalesced zones are.

use std::collections::BTreeMap;

use kvm_memslots_shim::events::{Ioeventfd, Part, Parts, Route, Zone};

use crate::device::{DeviceId, DevicePart};

/// [`Parts`] while they come together: hundreds are sorted at once for less than one
/// by one.
#[derive(Debug, Default)]
pub(super) struct Lists {
    pub(super) routes: Vec<Route>,
    pub(super) assigned: Vec<Part>,
}

impl From<Lists> for Parts {
    fn from(Lists { routes, assigned }: Lists) -> Self {
        Self { routes: routes.into_iter().collect(), assigned: assigned.into_iter().collect() }
    }
}

/// Whose it is.
pub(super) type Owner = (DeviceId, DevicePart);

/// Doorbells and zones of devices. No two doorbells are for the same write; no two
/// zones overlap, as KVM unregisters all that the one it is told is in; and no zone
/// takes writes from a doorbell.
#[derive(Debug, Default)]
pub(super) struct Claims(BTreeMap<Part, Owner>);

impl Claims {
    pub(super) fn iter(&self) -> impl Iterator<Item = (Part, Owner)> + '_ {
        self.0.iter().map(|(part, owner)| (*part, *owner))
    }

    pub(super) fn insert(&mut self, part: Part, owner: Owner) {
        self.0.insert(part, owner);
    }

    pub(super) fn contains(&self, part: &Part) -> bool {
        self.0.contains_key(part)
    }

    /// Whose this is.
    pub(super) fn owner(&self, part: &Part) -> Option<Owner> {
        self.0.get(part).copied()
    }

    pub(super) fn follow(&mut self, gone: &Self, come: &Self) {
        gone.0.keys().for_each(|part| _ = self.0.remove(part));
        self.0.extend(&come.0);
    }

    /// Those that this one can't be beside.
    pub(super) fn in_the_way(&self, part: Part) -> impl Iterator<Item = (Part, Owner)> + '_ {
        let (zone, bell) = match part {
            // A zone that is there would take some of its writes.
            Part::Ioeventfd(bell) => {
                (Some(Zone { bus: bell.bus, addr: bell.addr, len: bell.len.max(1) }), Some(bell))
            }
            Part::Zone(zone) => (Some(zone), None),
            Part::Irqfd(_) => (None, None),
        };
        let overlapping = zone.into_iter().flat_map(|zone| self.overlapping(zone));
        let colliding = bell.into_iter().flat_map(|bell| self.colliding(bell));
        let inside = zone.filter(|_| bell.is_none()).map(|zone| self.inside(zone));
        overlapping.chain(colliding).chain(inside.into_iter().flatten())
    }

    /// Doorbells from this one on.
    fn bells(&self, from: Ioeventfd) -> impl Iterator<Item = (Ioeventfd, Owner)> + '_ {
        self.0.range(Part::Ioeventfd(from)..).map_while(|(part, owner)| match part {
            Part::Ioeventfd(bell) => Some((*bell, *owner)),
            _ => None,
        })
    }

    /// Those that would fire for some of the same writes.
    fn colliding(&self, with: Ioeventfd) -> impl Iterator<Item = (Part, Owner)> + '_ {
        let first = Ioeventfd { len: 0, datamatch: None, fd: i32::MIN, ..with };
        let here = self
            .bells(first)
            .take_while(move |(other, _)| (other.bus, other.addr) == (with.bus, with.addr));
        let colliding = here.filter(move |(other, _)| other.collides_with(&with));
        colliding.map(|(bell, owner)| (bell.into(), owner))
    }

    /// Those that a zone would take writes from.
    fn inside(&self, zone: Zone) -> impl Iterator<Item = (Part, Owner)> + '_ {
        let (bus, addr) = (zone.bus, zone.addr.saturating_sub(7));
        let first = Ioeventfd { bus, addr, len: 0, datamatch: None, fd: i32::MIN };
        let end = zone.addr.saturating_add(zone.len.into());
        let near =
            self.bells(first).take_while(move |(bell, _)| bell.bus == bus && bell.addr < end);
        let inside = near.filter(move |(bell, _)| zone.takes_from(bell));
        inside.map(|(bell, owner)| (bell.into(), owner))
    }

    /// Zones that have an address in common with this one.
    fn overlapping(&self, with: Zone) -> impl Iterator<Item = (Part, Owner)> + '_ {
        let last = with.addr.saturating_add(u64::from(with.len).saturating_sub(1));
        let last = Zone { addr: last, len: u32::MAX, ..with };
        let before = self.0.range(..=Part::Zone(last)).rev().map(|(part, owner)| (*part, *owner));
        before.take_while(move |(part, _)| match part {
            Part::Zone(zone) => zone.overlaps(&with),
            _ => false,
        })
    }
}
