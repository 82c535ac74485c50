//! Where doorbells and coalesced zones are.

use std::collections::BTreeMap;

use kvm_memslots_shim::events::{Ioeventfd, Zone};

use crate::device::DeviceId;

/// Doorbells, or zones, of devices, with their index. No two doorbells are for the
/// same write; no two zones overlap, as KVM unregisters all that the one it is told
/// is in.
#[derive(Debug)]
pub(super) struct Claims<T>(BTreeMap<T, (DeviceId, usize)>);

impl<T> Default for Claims<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Copy + Ord> Claims<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&T, &(DeviceId, usize))> {
        self.0.iter()
    }

    pub(super) fn insert(&mut self, what: T, id: DeviceId, index: usize) {
        self.0.insert(what, (id, index));
    }

    pub(super) fn contains(&self, what: &T) -> bool {
        self.0.contains_key(what)
    }

    pub(super) fn follow(&mut self, gone: &Self, come: &Self) {
        gone.0.keys().for_each(|what| _ = self.0.remove(what));
        self.0.extend(&come.0);
    }
}

impl Claims<Ioeventfd> {
    /// Those that would fire for some of the same writes.
    pub(super) fn colliding(
        &self,
        with: Ioeventfd,
    ) -> impl Iterator<Item = (&Ioeventfd, DeviceId, usize)> {
        let first = Ioeventfd { len: 0, datamatch: None, fd: i32::MIN, ..with };
        let here = self.0.range(first..);
        let here =
            here.take_while(move |(other, _)| (other.bus, other.addr) == (with.bus, with.addr));
        let colliding = here.filter(move |(other, _)| other.collides_with(&with));
        colliding.map(|(ioeventfd, (id, index))| (ioeventfd, *id, *index))
    }

    /// Those that a zone would take writes from.
    pub(super) fn inside(
        &self,
        zone: Zone,
    ) -> impl Iterator<Item = (&Ioeventfd, DeviceId, usize)> + '_ {
        let (bus, addr) = (zone.bus, zone.addr.saturating_sub(7));
        let first = Ioeventfd { bus, addr, len: 0, datamatch: None, fd: i32::MIN };
        let end = zone.addr.saturating_add(zone.len.into());
        let near = self.0.range(first..);
        let near = near.take_while(move |(bell, _)| bell.bus == bus && bell.addr < end);
        let inside = near.filter(move |(bell, _)| zone.takes_from(bell));
        inside.map(|(ioeventfd, (id, index))| (ioeventfd, *id, *index))
    }
}

impl Claims<Zone> {
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
}
