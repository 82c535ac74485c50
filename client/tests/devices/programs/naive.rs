//! Devices as somebody writes them down.

mod check;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;
use std::sync::Arc;

use kvm_memslots::backend::EventLimits;
use kvm_memslots::device::{
    Bus, Coalesced, Device, DeviceId, Doorbell, Event, Msi, Route, RouteTarget, Trigger,
};
use kvm_memslots::{Changes, RegionId};

use crate::numbers::Numbers;
use crate::rig::{BAR, BAR_SIZE, bar, msi};

/// Where regions are: some overlap.
const PLACES: u64 = 7;
const PAGE: u64 = 0x1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    At(Bus, u64),
    In(RegionId, u64),
}

#[derive(Debug, Clone)]
struct Vector {
    fd: RawFd,
    trigger: Option<Arc<Trigger>>,
    msi: Option<Msi>,
    /// Whether it may have a GSI although it is masked.
    had: bool,
}

#[derive(Debug, Clone)]
struct Line {
    gsi: u32,
    pin: Option<(u32, u32)>,
    fd: RawFd,
    resample: Option<RawFd>,
}

#[derive(Debug, Clone)]
struct Dev {
    regions: Vec<RegionId>,
    bells: Vec<(Where, u32, Option<u64>, RawFd)>,
    zones: Vec<(Where, u32)>,
    vectors: Vec<Vector>,
    lines: Vec<Line>,
    defers: bool,
}

#[derive(Clone)]
pub(super) struct Naive {
    own: BTreeSet<Route>,
    limits: EventLimits,
    full: bool,
    devices: BTreeMap<DeviceId, Dev>,
    /// Where regions are, and how many pages they have.
    regions: BTreeMap<RegionId, (u64, u64)>,
    /// Names that may be used again; those of this set, in the next one.
    free_names: Vec<RegionId>,
    gone_names: Vec<RegionId>,
    next_fd: RawFd,
    /// What was wrong on the way.
    wrong: Option<String>,
    /// Whether a GSI was asked for that a vector may have: which one has it, the
    /// library chooses.
    pub(super) may_clash: bool,
    triggers: Vec<Arc<Trigger>>,
}

impl Naive {
    pub(super) fn new(own: Vec<Route>, limits: EventLimits, full: bool) -> Self {
        Self {
            own: own.into_iter().collect(),
            limits,
            full,
            devices: BTreeMap::new(),
            regions: BTreeMap::new(),
            free_names: Vec::new(),
            gone_names: Vec::new(),
            next_fd: 1000,
            wrong: None,
            may_clash: false,
            triggers: Vec::new(),
        }
    }

    pub(super) fn own_routes(&self) -> Vec<Route> {
        self.own.iter().copied().collect()
    }

    /// The set was applied.
    pub(super) fn settle(&mut self) {
        self.may_clash = false;
        self.free_names.append(&mut self.gone_names);
    }

    fn fd(&mut self) -> RawFd {
        self.next_fd += 1;
        self.next_fd
    }

    fn device(&self, n: &mut Numbers) -> Option<DeviceId> {
        let ids: Vec<DeviceId> = self.devices.keys().copied().collect();
        (!ids.is_empty()).then(|| n.pick(&ids))
    }

    fn region(&self, n: &mut Numbers) -> Option<RegionId> {
        let ids: Vec<RegionId> = self.regions.keys().copied().collect();
        (!ids.is_empty()).then(|| n.pick(&ids))
    }

    fn note(&mut self, why: impl Into<String>) {
        self.wrong.get_or_insert(why.into());
    }

    /// Makes a change, and says which.
    pub(super) fn change(&mut self, n: &mut Numbers, c: &mut Changes) -> String {
        let told = match n.below(16) {
            0..=3 => self.attach(n, c),
            4 | 5 => self.detach(n, c),
            6..=8 => self.vector(n, c),
            9 => self.vector_fd(n, c),
            10 => self.assign(n, c),
            11 => self.own(n, c),
            _ => self.memory(n, c),
        };
        // On the way a GSI is needed for each.
        let free = self.gsis();
        let active = self.devices.values().flat_map(|d| &d.vectors).filter(|v| v.msi.is_some());
        if active.count() > free {
            self.note("too few GSIs");
        }
        told
    }

    /// How many GSIs vectors can have.
    fn gsis(&self) -> usize {
        let mut taken: BTreeSet<u32> = self.own.iter().map(|route| route.gsi).collect();
        taken.extend([30, 31]);
        taken.extend(self.devices.values().flat_map(|d| &d.lines).map(|line| line.gsi));
        (24..self.limits.routes).filter(|gsi| !taken.contains(gsi)).count()
    }

    fn place(&self, n: &mut Numbers, here: &[RegionId]) -> Where {
        let offset = n.pick(&[0_u64, 0, 4, 8, 0x800, 0x2000, 0x3000, 0x3004]);
        if let (Some(region), true) = (here.first(), !n.chance(3)) {
            return Where::In(*region, offset);
        }
        match (n.below(5), self.region(n)) {
            (0, _) => Where::At(Bus::Pio, 0x600 + offset % 16),
            (1, Some(region)) => Where::In(region, offset),
            _ => Where::At(Bus::Mmio, BAR + n.below(PLACES) * BAR_SIZE + offset),
        }
    }

    fn attach(&mut self, n: &mut Numbers, c: &mut Changes) -> String {
        let mut device = Device::new(format!("dev{}", self.next_fd));
        let mut dev = Dev {
            regions: Vec::new(),
            bells: Vec::new(),
            zones: Vec::new(),
            vectors: Vec::new(),
            lines: Vec::new(),
            defers: n.chance(5),
        };
        for _ in 0..n.below(3) {
            let id = RegionId::new();
            let (gpa, pages) = (BAR + n.below(PLACES) * BAR_SIZE, 1 + n.below(3));
            dev.regions.push(id);
            self.regions.insert(id, (gpa, pages));
            device = device.region(id, bar(gpa, pages * PAGE));
        }
        for _ in 0..n.below(4) {
            let at = self.place(n, &dev.regions);
            let (len, value) = n.pick(&[
                (0, None),
                (1, None),
                (2, None),
                (2, Some(0)),
                (2, Some(1)),
                (4, Some(0)),
                (4, None),
                (8, Some(1 << 40)),
            ]);
            let fd = self.fd();
            dev.bells.push((at, len, value, fd));
            let bell = match at {
                Where::At(bus, addr) => Doorbell::at(bus, addr),
                Where::In(region, offset) => Doorbell::in_region(region, offset),
            };
            let bell = value.map_or(bell.len(len), |value| bell.len(len).value(value));
            device = device.ioeventfd(bell, fd);
        }
        for _ in 0..n.below(4).saturating_sub(2) {
            let (at, len) = (self.place(n, &dev.regions), n.pick(&[1_u32, 4, 8, 0x800]));
            dev.zones.push((at, len));
            device = device.coalesced(match at {
                Where::At(bus, addr) => Coalesced::at(bus, addr, len),
                Where::In(region, offset) => Coalesced::in_region(region, offset, len),
            });
        }
        for _ in 0..n.below(4) {
            let (fd, msi) = (self.irq_fd(n), self.msi(n));
            let trigger = n.chance(3).then(|| Arc::new(Trigger::new(fd)));
            self.triggers.extend(trigger.clone());
            device = match &trigger {
                Some(trigger) => device.triggered_vector(Arc::clone(trigger), msi),
                None => device.vector(fd, msi),
            };
            dev.vectors.push(Vector { fd, trigger, msi, had: msi.is_some() });
        }
        for _ in 0..n.below(4).saturating_sub(2) {
            let gsi = n.pick(&[3, 5, 5, 24, 25, 26, 40, 30, 5000]);
            let pin = n.chance(2).then(|| (n.below(3) as u32, gsi % 8));
            let (fd, resample) = (self.irq_fd(n), n.chance(2).then(|| self.fd()));
            let line = Line { gsi, pin, fd, resample };
            self.check_line(&dev.lines, &line);
            device = device.line(gsi, pin, fd, resample.map(Event::new));
            dev.lines.push(line);
        }
        if n.chance(4) {
            device = device.may_bypass();
        }
        if dev.defers {
            device = device.defer_ioeventfds();
        }
        let told = format!("attach {dev:?}");
        let id = c.attach(device);
        self.devices.insert(id, dev);
        format!("{id}: {told}")
    }

    /// Of an irqfd: now and then somebody else's.
    fn irq_fd(&mut self, n: &mut Numbers) -> RawFd {
        // (A masked one with a trigger may have its irqfd still, or not.)
        let plain = self.devices.values().flat_map(|d| &d.vectors).filter(|v| v.trigger.is_none());
        let others: Vec<RawFd> = plain.map(|vector| vector.fd).collect();
        if !others.is_empty() && n.chance(20) { n.pick(&others) } else { self.fd() }
    }

    fn msi(&mut self, n: &mut Numbers) -> Option<Msi> {
        let devid = n.chance(20).then_some(3);
        let msi = (!n.chance(3)).then(|| Msi { devid, ..msi(0x20 + n.below(4) as u32) });
        if msi.is_some() && devid.is_some() && !self.limits.devid {
            self.note("no devid");
        }
        msi
    }

    fn check_line(&mut self, mine: &[Line], line: &Line) {
        let own = self.own.iter().filter(|route| route.gsi == line.gsi);
        let targets: Vec<RouteTarget> = own.map(|route| route.target).collect();
        let message = targets.iter().any(|target| matches!(target, RouteTarget::Msi(_)));
        let others = self.devices.values().flat_map(|d| &d.lines).chain(mine);
        let clash = others.filter(|other| other.gsi == line.gsi).any(|other| {
            match (&line.resample, &other.resample) {
                (Some(_), Some(_)) => line.pin.is_some() && line.pin != other.pin,
                (None, None) => !message,
                _ => true,
            }
        });
        if clash || line.gsi >= self.limits.routes || matches!(line.gsi, 30 | 31) {
            self.note("a line that clashes");
        }
        self.may_clash |= line.gsi >= 24;
        let pin_clash = line.pin.is_some_and(|(chip, pin)| {
            targets.iter().any(|target| match target {
                RouteTarget::Irqchip { chip: other, pin: there } => *other == chip && *there != pin,
                _ => true,
            })
        });
        if pin_clash {
            self.note("a pin that clashes");
        }
    }

    fn detach(&mut self, n: &mut Numbers, c: &mut Changes) -> String {
        let Some(id) = self.device(n) else { return String::new() };
        c.detach(id);
        let Some(dev) = self.devices.remove(&id) else { return String::new() };
        for region in dev.regions {
            if self.regions.remove(&region).is_some() {
                self.gone_names.push(region);
            }
        }
        format!("detach {id}")
    }

    fn vector(&mut self, n: &mut Numbers, c: &mut Changes) -> String {
        let Some(id) = self.device(n) else { return String::new() };
        let msi = self.msi(n);
        let index = n.below(4) as usize;
        c.set_vector(id, index, msi);
        match self.devices.get_mut(&id).and_then(|dev| dev.vectors.get_mut(index)) {
            Some(vector) => {
                vector.msi = msi;
                vector.had |= msi.is_some();
            }
            None => self.note("no such vector"),
        }
        format!("vector {index} of {id}: {msi:?}")
    }

    fn vector_fd(&mut self, n: &mut Numbers, c: &mut Changes) -> String {
        let Some(id) = self.device(n) else { return String::new() };
        let (index, fd) = (n.below(3) as usize, self.irq_fd(n));
        c.set_vector_fd(id, index, fd);
        match self.devices.get_mut(&id).and_then(|dev| dev.vectors.get_mut(index)) {
            Some(vector) => (vector.fd, vector.trigger) = (fd, None),
            None => self.note("no such vector"),
        }
        format!("vector {index} of {id} has fd {fd}")
    }

    fn assign(&mut self, n: &mut Numbers, c: &mut Changes) -> String {
        let only = if n.chance(2) { self.device(n) } else { None };
        match only {
            Some(id) => c.assign_deferred_of(id),
            None => c.assign_deferred(),
        }
        for (id, dev) in &mut self.devices {
            dev.defers &= only.is_some_and(|only| only != *id);
        }
        format!("assign {only:?}")
    }

    fn own(&mut self, n: &mut Numbers, c: &mut Changes) -> String {
        let mut routes: BTreeSet<Route> = self.own.iter().copied().collect();
        let extra = Route::msi(n.pick(&[5, 24, 27, 30, 40, 9999]), msi(0x50));
        if !routes.remove(&extra) {
            routes.insert(extra);
        }
        self.may_clash |= extra.gsi >= 24;
        c.set_own_routes(routes.clone());
        let told = format!("own routes {extra} of {}", routes.len());
        self.own = routes;
        told
    }

    fn memory(&mut self, n: &mut Numbers, c: &mut Changes) -> String {
        let Some(id) = self.region(n) else { return String::new() };
        let (gpa, pages) = self.regions[&id];
        match n.below(8) {
            0 => {
                c.unmap(id);
                self.regions.remove(&id);
                self.gone_names.push(id);
                format!("unmap {id}")
            }
            1 if pages > 1 => {
                let upper = c.split(id, PAGE);
                self.regions.insert(id, (gpa, 1));
                self.regions.insert(upper, (gpa + PAGE, pages - 1));
                format!("split {id}: {upper}")
            }
            2 => {
                c.resize(id, PAGE);
                self.regions.insert(id, (gpa, 1));
                format!("resize {id}")
            }
            3 => {
                c.set_read_only(id, true);
                format!("{id} is read-only")
            }
            4 => match self.region(n) {
                Some(other) if other != id => {
                    let there = self.regions[&other];
                    c.move_to(id, there.0);
                    c.move_to(other, gpa);
                    self.regions.insert(id, (there.0, pages));
                    self.regions.insert(other, (gpa, there.1));
                    format!("{id} and {other} swap")
                }
                _ => String::new(),
            },
            5 if !self.free_names.is_empty() => {
                let again = n.pick(&self.free_names);
                let gpa = BAR + n.below(PLACES) * BAR_SIZE;
                if self.regions.insert(again, (gpa, 1)).is_some() {
                    self.note("a name twice");
                }
                c.map_as(again, bar(gpa, PAGE));
                format!("map {again} again at {gpa:#x}")
            }
            _ => {
                let to = BAR + n.below(PLACES) * BAR_SIZE;
                c.move_to(id, to);
                self.regions.insert(id, (to, pages));
                format!("move {id} to {to:#x}")
            }
        }
    }
}
