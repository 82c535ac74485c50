//! Where coalesced zones are.

use std::collections::BTreeMap;

use kvm_memslots_shim::events::{Bus, Zone, ZoneLimits};

use crate::device::{Coalesced, DeviceId, Place};
use crate::error::ErrorKind;

/// Zones of devices, with their index: no two overlap. KVM unregisters all zones
/// that the one it is told is in.
#[derive(Debug, Default)]
pub(super) struct ZoneClaims(BTreeMap<Zone, (DeviceId, usize)>);

impl ZoneClaims {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that have an address in common with this one.
    pub(super) fn overlapping(
        &self,
        with: Zone,
    ) -> impl Iterator<Item = (&Zone, DeviceId, usize)> + '_ {
        let last = with.addr.saturating_add(u64::from(with.len).saturating_sub(1));
        let before = self.0.range(..=Zone { addr: last, len: u32::MAX, ..with }).rev();
        let overlapping = before.take_while(move |(zone, _)| zone.overlaps(&with));
        overlapping.map(|(zone, (id, index))| (zone, *id, *index))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Zone, &(DeviceId, usize))> {
        self.0.iter()
    }

    pub(super) fn insert(&mut self, zone: Zone, id: DeviceId, index: usize) {
        self.0.insert(zone, (id, index));
    }

    pub(super) fn contains(&self, zone: &Zone) -> bool {
        self.0.contains_key(zone)
    }

    pub(super) fn follow(&mut self, gone: &Self, come: &Self) {
        gone.0.keys().for_each(|zone| _ = self.0.remove(zone));
        self.0.extend(&come.0);
    }
}

/// What KVM would refuse, or never unregister, wherever it is.
pub(super) fn check_coalesced(what: &Coalesced, limits: ZoneLimits) -> Result<(), ErrorKind> {
    let ports = matches!(what.place, Place::At(Bus::Pio, _));
    if limits.ring_page.is_none() || (ports && !limits.pio) {
        return Err(ErrorKind::NoZones { ports });
    }
    let len = what.len;
    if !(1..=Zone::MAX_LEN).contains(&len) {
        return Err(ErrorKind::ZoneLength { len });
    }
    let (Place::At(_, start) | Place::In(_, start)) = what.place;
    // KVM finds no write in one that ends where addresses do.
    start.checked_add(len.into()).map(drop).ok_or(ErrorKind::ZoneWraps { len })
}
