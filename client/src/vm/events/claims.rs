//! Where doorbells are.

use std::collections::BTreeMap;

use kvm_memslots_shim::events::{Ioeventfd, Zone};

use crate::device::DeviceId;

/// Doorbells of devices, with their index: no two for the same write.
#[derive(Debug, Default)]
pub(super) struct Claims(BTreeMap<Ioeventfd, (DeviceId, usize)>);

impl Claims {
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

    pub(super) fn insert(&mut self, ioeventfd: Ioeventfd, id: DeviceId, index: usize) {
        self.0.insert(ioeventfd, (id, index));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Ioeventfd, &(DeviceId, usize))> {
        self.0.iter()
    }

    pub(super) fn contains(&self, ioeventfd: &Ioeventfd) -> bool {
        self.0.contains_key(ioeventfd)
    }

    pub(super) fn follow(&mut self, gone: &Self, come: &Self) {
        gone.0.keys().for_each(|ioeventfd| _ = self.0.remove(ioeventfd));
        self.0.extend(&come.0);
    }
}
