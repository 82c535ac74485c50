//! The changes that are made. None of them is wrong by itself.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use kvm_memslots::device::{Bus, Coalesced, Device, DeviceId, Doorbell, Msi};
use kvm_memslots::{Changes, MemFlags, RegionId, RegionSpec, at};

use super::expected::{At, BELL, Dev, Expected, Reg, SPACE, ZONE, pin};
use super::world::{MEMFD, MEMFD_EACH, World, hva, memory};
use crate::common::PAGE;
use crate::common::numbers::Numbers;

fn pick<K: Copy, V>(n: &mut Numbers, of: &BTreeMap<K, V>) -> Option<K> {
    let nth = (!of.is_empty()).then(|| n.below(of.len() as u64))?;
    of.keys().nth(nth as usize).copied()
}

/// Adds a change to the set; what it is.
pub(super) fn change(
    n: &mut Numbers,
    world: &World,
    c: &mut Changes,
    next: &mut Expected,
) -> Option<String> {
    match n.below(16) {
        0 | 1 => {
            let (region, spec) = region(n, world, next)?;
            let id = c.map(spec);
            let told = format!("map {id} {region:?}");
            next.regions.insert(id, region);
            Some(told)
        }
        2 | 3 => {
            let id = pick(n, &next.regions)?;
            c.unmap(id);
            next.unmap(id);
            Some(format!("unmap {id}"))
        }
        4..=6 => place(n, c, next),
        7..=9 => flag(n, world, c, next),
        10 => {
            let id = pick(n, &next.regions)?;
            let region = next.regions.get_mut(&id)?;
            (region.hva, region.reach) = (hva(4000 + n.below(500)), region.pages);
            region.owed.clear();
            // Private memory does not come along.
            region.flags.remove(MemFlags::GUEST_MEMFD);
            c.replace(id, memory(region.hva, region.pages));
            Some(format!("replace {id}"))
        }
        11 => {
            let ids: Vec<_> = (0..3).filter_map(|_| pick(n, &next.regions)).collect();
            for id in &ids {
                c.join(*id);
            }
            Some(format!("join {ids:?}"))
        }
        12 | 13 => Some(attach(n, world, c, next)),
        14 => {
            let id = pick(n, &next.devices)?;
            c.detach(id);
            next.detach(id);
            Some(format!("detach {id}"))
        }
        _ => {
            let id = pick(n, &next.devices)?;
            of_device(n, c, id, next.devices.get_mut(&id)?)
        }
    }
}

/// A region where there is room, if that is found.
fn region(n: &mut Numbers, world: &World, next: &mut Expected) -> Option<(Reg, RegionSpec)> {
    let limits = world.vm.limits();
    let space = n.below(limits.address_spaces.into()) as u16;
    let mut places = (0..8).map(|_| (n.below(SPACE), 1 + n.below(9)));
    let (page, pages) = places.find(|(page, pages)| next.is_free(space, *page, *pages, None))?;
    // Mostly, host memory carries on from one region to the next.
    let hva = hva(if n.chance(4) { 1000 + n.below(2000) } else { page });
    let reach = pages + n.below(6);
    let (span, mut memory) = (at(page * PAGE, pages * PAGE), memory(hva, reach));
    let private = limits.guest_memfd && n.chance(4);
    if private {
        // No two regions have the same of it, however they grow.
        memory = memory.with_guest_memfd(MEMFD, u64::from(next.number()) * MEMFD_EACH);
    }
    let spec = match n.below(if private { 2 } else { 3 }) {
        0 => RegionSpec::ram(span, memory),
        1 => RegionSpec::device(span, memory),
        _ => RegionSpec::rom(span, memory),
    };
    let mut spec = spec.address_space(space);
    let alone = n.chance(4);
    let trapped = alone && limits.trap && !private && n.chance(2);
    let deferrable = n.chance(4) && !trapped && !private;
    if alone {
        spec = spec.alone();
    }
    if trapped {
        spec = spec.trapped();
    }
    if deferrable {
        spec = spec.deferrable();
    }
    if n.chance(4) {
        spec = spec.permanent();
    }
    if !private && n.chance(3) {
        spec = spec.log_dirty();
    }
    let flags = spec.flags();
    let owed = [].into();
    Some((Reg { space, page, pages, hva, reach, flags, alone, deferrable, owed }, spec))
}

/// Another extent of a region, or another place.
fn place(n: &mut Numbers, c: &mut Changes, next: &mut Expected) -> Option<String> {
    let id = pick(n, &next.regions)?;
    let old = &next.regions[&id];
    let (kind, to) = match n.below(3) {
        0 if old.pages > 1 => (0, 1 + n.below(old.pages - 1)),
        1 => (1, 1 + n.below(old.reach)),
        _ => (2, n.below(SPACE)),
    };
    let (page, pages) = match kind {
        0 => (old.page, old.pages),
        1 => (old.page, to),
        _ => (to, old.pages),
    };
    if !next.is_free(old.space, page, pages, Some(id)) {
        return None;
    }
    let region = next.regions.get_mut(&id)?;
    Some(match kind {
        0 => {
            let upper = c.split(id, to * PAGE);
            let part = region.split_off(to);
            next.regions.insert(upper, part);
            format!("split {id} at {to}: {upper}")
        }
        1 => {
            c.resize(id, to * PAGE);
            region.resize(to);
            format!("resize {id} to {to}")
        }
        _ => {
            c.move_to(id, to * PAGE);
            region.page = to;
            format!("move {id} to {to}")
        }
    })
}

/// A flag of a region, which may have it already.
fn flag(n: &mut Numbers, world: &World, c: &mut Changes, next: &mut Expected) -> Option<String> {
    let id = pick(n, &next.regions)?;
    let region = next.regions.get_mut(&id)?;
    // Slots with private memory have no other flag.
    let on = n.chance(2) && !region.flags.contains(MemFlags::GUEST_MEMFD);
    let flag = match n.below(3) {
        0 => {
            c.set_log_dirty(id, on);
            if !on {
                region.owed.clear();
            }
            MemFlags::LOG_DIRTY_PAGES
        }
        1 if world.vm.limits().trap && region.alone && !region.deferrable => {
            c.set_trap(id, on);
            MemFlags::TRAP
        }
        _ => {
            c.set_read_only(id, on);
            MemFlags::READONLY
        }
    };
    region.flags.set(flag, on);
    Some(format!("{flag:?} of {id}: {on}"))
}

fn attach(n: &mut Numbers, world: &World, c: &mut Changes, next: &mut Expected) -> String {
    let (mut device, mut dev) = (Device::new("device"), Dev::default());
    if n.chance(5) {
        dev.defers = true;
        device = device.defer_ioeventfds();
    }
    for _ in 0..n.below(3) {
        let Some((region, spec)) = region(n, world, next) else { continue };
        let id = RegionId::new();
        device = device.region(id, spec);
        next.regions.insert(id, region);
        dev.regions.push(id);
    }
    for _ in 0..n.below(4) {
        let (fd, offset) = (next.number(), n.below(64) * 8);
        let (at, bell) = match pick(n, &next.regions).filter(|_| !n.chance(3)) {
            Some(id) => (At::In(id, offset), Doorbell::in_region(id, offset)),
            None => (At::Gpa(BELLS + offset), Doorbell::at(Bus::Mmio, BELLS + offset)),
        };
        device = device.ioeventfd(bell.len(BELL).value(fd.into()), RawFd::from(fd));
        dev.bells.push((at, fd));
    }
    if n.chance(4) {
        let gpa = ZONES + u64::from(next.number()) * 64;
        device = device.coalesced(Coalesced::at(Bus::Mmio, gpa, ZONE));
        dev.zones.push(At::Gpa(gpa));
    }
    if let Some(id) = pick(n, &next.regions).filter(|_| n.chance(4)) {
        // Wherever the region goes, no other zone is there.
        let offset = ZONES_IN_REGIONS + u64::from(next.number()) * SPACE * PAGE;
        device = device.coalesced(Coalesced::in_region(id, offset, ZONE));
        dev.zones.push(At::In(id, offset));
    }
    for _ in 0..n.below(4) {
        let fd = next.number();
        let msi = (!n.chance(3)).then(|| msi(fd.into()));
        device = device.vector(RawFd::from(fd), msi);
        dev.vectors.push((fd, msi));
    }
    if n.chance(4) {
        let (fd, gsi) = (next.number(), next.number().into());
        device = device.line(gsi, Some(pin(gsi)), RawFd::from(fd), None);
        dev.lines.push((gsi, fd));
    }
    let regions: Vec<_> = dev.regions.iter().map(|id| &next.regions[id]).collect();
    let id = c.attach(device);
    let told = format!("attach {id} {dev:?} {regions:?}");
    next.devices.insert(id, dev);
    told
}

const BELLS: u64 = 0x1000_0000;
const ZONES: u64 = 0x2000_0000;
const ZONES_IN_REGIONS: u64 = 0x4_0000_0000;

fn msi(data: u32) -> Msi {
    Msi { address: 0xfee0_0000, data, devid: None }
}

fn of_device(n: &mut Numbers, c: &mut Changes, id: DeviceId, dev: &mut Dev) -> Option<String> {
    if n.chance(3) {
        c.assign_deferred_of(id);
        dev.defers = false;
        return Some(format!("assign what {id} defers"));
    }
    let nth = (!dev.vectors.is_empty()).then(|| n.below(dev.vectors.len() as u64))? as usize;
    let msi = (!n.chance(2)).then(|| msi(n.below(100) as u32));
    c.set_vector(id, nth, msi);
    dev.vectors[nth].1 = msi;
    Some(format!("vector {nth} of {id}: {msi:?}"))
}
