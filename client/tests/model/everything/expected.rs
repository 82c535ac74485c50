//! What there is, to somebody who knows what was asked for and not the library.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;

use kvm_memslots::device::{DeviceId, Msi, RouteTarget};
use kvm_memslots::{MemFlags, RegionId};

use super::world::Place;
use crate::common::PAGE;

/// Pages of an address space that regions are put into.
pub(super) const SPACE: u64 = 96;
/// Bytes of a doorbell, and of a coalesced zone.
pub(super) const BELL: u32 = 2;
pub(super) const ZONE: u32 = 32;

#[derive(Clone, Debug)]
pub(super) struct Reg {
    pub(super) space: u16,
    pub(super) page: u64,
    pub(super) pages: u64,
    pub(super) hva: u64,
    /// How many pages it can grow to.
    pub(super) reach: u64,
    pub(super) flags: MemFlags,
    pub(super) alone: bool,
    pub(super) deferrable: bool,
    /// The pages that have to be in its dirty log.
    pub(super) owed: BTreeSet<u64>,
}

impl Reg {
    pub(super) fn is_logged(&self) -> bool {
        self.flags.contains(MemFlags::LOG_DIRTY_PAGES)
    }

    /// Cuts it; what comes behind.
    pub(super) fn split_off(&mut self, at: u64) -> Self {
        let mut upper = self.clone();
        upper.page += at;
        upper.pages -= at;
        upper.hva += at * PAGE;
        upper.reach -= at;
        upper.owed = self.owed.split_off(&at).into_iter().map(|page| page - at).collect();
        (self.pages, self.reach) = (at, at);
        upper
    }

    /// What is cut off is gone, also for one that grows again.
    pub(super) fn resize(&mut self, pages: u64) {
        if pages < self.pages {
            self.split_off(pages);
        }
        self.pages = pages;
    }
}

/// Where a doorbell or a zone is.
#[derive(Clone, Copy, Debug)]
pub(super) enum At {
    Gpa(u64),
    In(RegionId, u64),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Dev {
    pub(super) regions: Vec<RegionId>,
    /// With descriptors; the value is their number.
    pub(super) bells: Vec<(At, u16)>,
    pub(super) zones: Vec<At>,
    pub(super) vectors: Vec<(u16, Option<Msi>)>,
    /// GSIs and descriptors; the pin follows from the GSI.
    pub(super) lines: Vec<(u32, u16)>,
    /// Its doorbells and zones are not assigned yet.
    pub(super) defers: bool,
}

pub(super) const fn pin(gsi: u32) -> (u32, u32) {
    (2, gsi % 24)
}

#[derive(Clone, Default)]
pub(super) struct Expected {
    pub(super) regions: BTreeMap<RegionId, Reg>,
    pub(super) devices: BTreeMap<DeviceId, Dev>,
    /// The regions that this set unmaps, and what it has to report of their logs.
    pub(super) gone: Vec<(RegionId, BTreeSet<u64>)>,
    numbers: u16,
}

/// What is to be seen of it.
#[derive(Debug, PartialEq)]
pub(super) struct Wanted {
    pub(super) regions: BTreeMap<RegionId, (Place, MemFlags)>,
    pub(super) devices: BTreeSet<DeviceId>,
    pub(super) bells: BTreeSet<(u64, u32, Option<u64>, RawFd)>,
    pub(super) zones: BTreeSet<(u64, u32)>,
    /// What the descriptors signal; with a GSI where it is not the library's choice.
    pub(super) irqs: BTreeMap<RawFd, (Option<u32>, Vec<RouteTarget>)>,
}

impl Expected {
    /// A number that nothing else has: of a descriptor, a GSI, an address.
    pub(super) fn number(&mut self) -> u16 {
        self.numbers += 1;
        1000 + self.numbers
    }

    pub(super) fn is_free(&self, space: u16, page: u64, pages: u64, but: Option<RegionId>) -> bool {
        let beside =
            |r: &Reg| r.space != space || r.page + r.pages <= page || page + pages <= r.page;
        let mut others = self.regions.iter().filter(|(id, _)| Some(**id) != but);
        page + pages <= SPACE && others.all(|(_, other)| beside(other))
    }

    pub(super) fn unmap(&mut self, id: RegionId) {
        let region = self.regions.remove(&id);
        self.gone.extend(region.map(|region| (id, region.owed)));
    }

    pub(super) fn detach(&mut self, id: DeviceId) {
        let regions = self.devices.remove(&id).unwrap().regions;
        for id in regions {
            self.unmap(id);
        }
    }

    /// What is in a region that is gone has no address.
    fn address(&self, at: At) -> Option<u64> {
        match at {
            At::Gpa(gpa) => Some(gpa),
            At::In(id, offset) => Some(self.regions.get(&id)?.page * PAGE + offset),
        }
    }

    pub(super) fn wanted(&self) -> Wanted {
        let place = |r: &Reg| ((r.space, r.page * PAGE, r.pages * PAGE, r.hva), r.flags);
        let mut irqs = BTreeMap::new();
        for device in self.devices.values() {
            for (fd, msi) in &device.vectors {
                irqs.extend(msi.map(|msi| (RawFd::from(*fd), (None, vec![RouteTarget::Msi(msi)]))));
            }
            for (gsi, fd) in &device.lines {
                let (chip, pin) = pin(*gsi);
                irqs.insert((*fd).into(), (Some(*gsi), vec![RouteTarget::Irqchip { chip, pin }]));
            }
        }
        let assigned = || self.devices.values().filter(|device| !device.defers);
        let bells = assigned().flat_map(|device| &device.bells);
        let zones = assigned().flat_map(|device| &device.zones);
        let bell = |(at, fd): &(At, u16)| {
            Some((self.address(*at)?, BELL, Some((*fd).into()), (*fd).into()))
        };
        Wanted {
            regions: self.regions.iter().map(|(id, region)| (*id, place(region))).collect(),
            devices: self.devices.keys().copied().collect(),
            bells: bells.filter_map(bell).collect(),
            zones: zones.filter_map(|at| Some((self.address(*at)?, ZONE))).collect(),
            irqs,
        }
    }
}
