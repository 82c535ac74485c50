//! Whether a program can be carried out, and whether it was.

use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::sync::Arc;

use kvm_memslots::device::{Bus, Ioeventfd, Irqfd, Route, RouteTarget, Zone};

use super::{Naive, PAGE, Vector, Where};
use crate::rig::Rig;

impl Naive {
    /// Why this can't be, if it can't.
    pub(crate) fn wrong(&self) -> Option<String> {
        if self.wrong.is_some() {
            return self.wrong.clone();
        }
        let ranges: Vec<(u64, u64)> =
            self.regions.values().map(|(gpa, pages)| (*gpa, gpa + pages * PAGE)).collect();
        if pairs(&ranges).any(|(a, b)| a.0 < b.1 && b.0 < a.1) {
            return Some("memory overlaps".into());
        }
        let (bells, zones) = (self.bells(true), self.zones(true));
        if pairs(&bells).any(|(a, b)| a.collides_with(b)) {
            return Some("doorbells collide".into());
        }
        let beside = |zone: &Zone| bells.iter().any(|bell| zone.takes_from(bell));
        if pairs(&zones).any(|(a, b)| a.overlaps(b)) || zones.iter().any(beside) {
            return Some("a zone is in the way".into());
        }
        let vectors = || self.devices.values().flat_map(|dev| &dev.vectors);
        let lines = || self.devices.values().flat_map(|dev| &dev.lines);
        // A vector that is masked and has a trigger keeps its irqfd.
        let raising = vectors().filter(|v| v.msi.is_some() || (v.trigger.is_some() && v.had));
        let fds: Vec<RawFd> = raising.map(|v| v.fd).chain(lines().map(|line| line.fd)).collect();
        if pairs(&fds).any(|(a, b)| a == b) {
            return Some("an eventfd twice".into());
        }
        if !self.full && lines().any(|line| line.pin.is_some() || line.resample.is_some()) {
            return Some("no pins".into());
        }
        let mut routes: BTreeSet<Route> = self.own.clone();
        let pins =
            lines().filter_map(|line| Some(Route::irqchip(line.gsi, line.pin?.0, line.pin?.1)));
        routes.extend(pins);
        let active = vectors().filter(|v| v.msi.is_some()).count();
        if routes.len() + active > self.limits.routes as usize {
            return Some("too many routes".into());
        }
        if routes.iter().any(|route| route.gsi >= self.limits.routes) {
            return Some("a GSI beyond the limit".into());
        }
        let clash = |a: &Route, b: &Route| match (a.target, b.target) {
            (RouteTarget::Irqchip { chip: a, .. }, RouteTarget::Irqchip { chip: b, .. }) => a == b,
            _ => true,
        };
        let routes: Vec<Route> = routes.into_iter().collect();
        if pairs(&routes).any(|(a, b)| a.gsi == b.gsi && clash(a, b)) {
            return Some("routes that KVM does not take".into());
        }
        None
    }

    /// Whether KVM has what it should.
    pub(crate) fn check(&self, rig: &Rig, what: &str) {
        let state = rig.events.state();
        let bells: BTreeSet<Ioeventfd> = self.bells(false).into_iter().collect();
        assert_eq!(state.ioeventfds().collect::<BTreeSet<_>>(), bells, "{what}");
        let zones: BTreeSet<Zone> = self.zones(false).into_iter().collect();
        assert_eq!(state.zones().collect::<BTreeSet<_>>(), zones, "{what}");
        let mut routes: BTreeSet<Route> = state.routes.iter().copied().collect();
        let mut irqfds: BTreeSet<_> = state.irqfds().collect();
        let mut lines = BTreeSet::new();
        for line in self.devices.values().flat_map(|dev| &dev.lines) {
            let is = |i: &&Irqfd| i.fd == line.fd;
            let irqfd = irqfds.iter().find(is).copied();
            let irqfd = irqfd.unwrap_or_else(|| panic!("{what}: no irqfd of {line:?}"));
            assert_eq!((irqfd.gsi, irqfd.resample), (line.gsi, line.resample), "{what}");
            irqfds.remove(&irqfd);
            lines.insert(irqfd.gsi);
        }
        for line in self.devices.values().flat_map(|dev| &dev.lines) {
            if let Some((chip, pin)) = line.pin {
                routes.remove(&Route::irqchip(line.gsi, chip, pin));
                let there = state.routes.contains(&Route::irqchip(line.gsi, chip, pin));
                assert!(there, "{what}: no route of {line:?}");
            }
        }
        for route in &self.own {
            assert!(state.routes.contains(route), "{what}: no {route}");
            routes.remove(route);
        }
        let shared = irqfds.iter().find(|irqfd| lines.contains(&irqfd.gsi));
        assert!(shared.is_none(), "{what}: {shared:?} of a vector is a line's");
        for vector in self.devices.values().flat_map(|dev| &dev.vectors) {
            let raised = rig.events.signalled(vector.fd);
            if let Some(msi) = vector.msi {
                assert_eq!(raised, [RouteTarget::Msi(msi)], "{what}: {vector:?}");
            }
            let irqfd = irqfds.iter().find(|i| i.fd == vector.fd).copied();
            match (irqfd, vector.msi) {
                (Some(irqfd), Some(msi)) => {
                    irqfds.remove(&irqfd);
                    assert!(
                        routes.remove(&Route::msi(irqfd.gsi, msi)),
                        "{what}: {vector:?} shares"
                    );
                }
                (Some(irqfd), None) if vector.trigger.is_some() && vector.had => {
                    irqfds.remove(&irqfd);
                }
                _ => {}
            }
        }
        assert!(irqfds.is_empty(), "{what}: {irqfds:?} are nobody's");
        let vectors = || self.devices.values().flat_map(|dev| &dev.vectors);
        let masked = vectors().filter(|v| v.had && v.msi.is_none()).count();
        assert!(routes.len() <= masked, "{what}: {routes:?} are nobody's");
        for trigger in &self.triggers {
            let of = |v: &&Vector| v.trigger.as_ref().is_some_and(|t| Arc::ptr_eq(t, trigger));
            let open = vectors().filter(of).any(|v| v.msi.is_some());
            assert_eq!(trigger.is_masked(), !open, "{what}: {trigger:?}");
        }
        for (id, (gpa, pages)) in &self.regions {
            let range = rig.vm.region(*id).unwrap_or_else(|e| panic!("{what}: {e}")).range;
            assert_eq!((range.gpa(), range.size()), (*gpa, pages * PAGE), "{what}: {id}");
        }
        assert_eq!(rig.vm.regions().len(), self.regions.len(), "{what}");
    }

    fn on_bus(&self, at: Where) -> Option<(Bus, u64)> {
        match at {
            Where::At(bus, addr) => Some((bus, addr)),
            Where::In(region, offset) => Some((Bus::Mmio, self.regions.get(&region)?.0 + offset)),
        }
    }

    /// Of all devices, or of those only that don't leave theirs to later.
    fn bells(&self, all: bool) -> Vec<Ioeventfd> {
        let devices = self.devices.values().filter(|dev| all || !dev.defers);
        let bells = devices.flat_map(|dev| &dev.bells);
        let bells = bells.filter_map(|(at, len, datamatch, fd)| {
            let (bus, addr) = self.on_bus(*at)?;
            Some(Ioeventfd { bus, addr, len: *len, datamatch: *datamatch, fd: *fd })
        });
        bells.collect()
    }

    fn zones(&self, all: bool) -> Vec<Zone> {
        let devices = self.devices.values().filter(|dev| all || !dev.defers);
        let zones = devices.flat_map(|dev| &dev.zones).filter_map(|(at, len)| {
            let (bus, addr) = self.on_bus(*at)?;
            Some(Zone { bus, addr, len: *len })
        });
        zones.collect()
    }
}

fn pairs<T>(of: &[T]) -> impl Iterator<Item = (&T, &T)> {
    of.iter().enumerate().flat_map(|(k, one)| of[..k].iter().map(move |other| (one, other)))
}
