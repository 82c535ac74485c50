//! The devices of a VM: what KVM is to have of their interrupts and doorbells.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_memslots_shim::events::{
    self, Bus, EventLimits, Gsis, Ioeventfd, Irqfd, Msi, Op, Plan, Route, RouteTarget, State,
};

use super::draft::Draft;
use crate::RegionId;
use crate::changes::Change;
use crate::device::{Device, DeviceId, DevicePart, Event, Kick, Line, Place, Vector};
use crate::error::{Error, ErrorKind};

/// A device that is attached.
#[derive(Debug, Clone)]
pub(crate) struct Attached {
    pub(crate) name: Arc<str>,
    pub(crate) regions: Vec<RegionId>,
    pub(crate) kicks: Vec<Kick>,
    pub(crate) vectors: Vec<Vector>,
    pub(crate) lines: Vec<Line>,
    may_bypass: bool,
    /// Its ioeventfds are left to a later set.
    defers: bool,
}

pub(crate) type Devices = BTreeMap<DeviceId, Arc<Attached>>;

impl Attached {
    fn new(device: &Device) -> Self {
        Self {
            name: Arc::clone(&device.name),
            regions: device.regions.iter().map(|(id, _)| *id).collect(),
            kicks: device.kicks.clone(),
            vectors: device.vectors.clone(),
            lines: device.lines.clone(),
            may_bypass: device.may_bypass,
            defers: device.defers,
        }
    }

    /// Its ioeventfds that have an address, by their index.
    fn ioeventfds<'a>(
        &'a self,
        gpa_of: &'a dyn Fn(RegionId) -> Option<u64>,
    ) -> impl Iterator<Item = (usize, Ioeventfd)> + 'a {
        self.kicks.iter().enumerate().filter_map(move |(index, kick)| {
            let (bus, addr) = match kick.doorbell.place {
                Place::At(bus, addr) => (bus, addr),
                Place::In(region, offset) => (Bus::Mmio, gpa_of(region)?.checked_add(offset)?),
            };
            let (len, datamatch) = (kick.doorbell.len, kick.doorbell.value);
            let fd = kick.event.as_raw_fd();
            Some((index, Ioeventfd { bus, addr, len, datamatch, fd }))
        })
    }

    /// Adds what KVM is to have of this device.
    fn add_to(
        &self,
        state: &mut State,
        no_irqbypass: bool,
        gpa_of: &dyn Fn(RegionId) -> Option<u64>,
    ) {
        let no_irqbypass = no_irqbypass && !self.may_bypass;
        for vector in &self.vectors {
            if let (Some(msi), Some(gsi)) = (vector.msi, vector.gsi) {
                state.routes.insert(Route::msi(gsi, msi));
                let fd = vector.event.as_raw_fd();
                state.irqfds.insert(Irqfd { gsi, fd, resample: None, no_irqbypass });
            }
        }
        for line in &self.lines {
            if let Some((chip, pin)) = line.pin {
                state.routes.insert(Route::irqchip(line.gsi, chip, pin));
            }
            let resample = line.resample.as_ref().map(AsRawFd::as_raw_fd);
            let fd = line.event.as_raw_fd();
            state.irqfds.insert(Irqfd { gsi: line.gsi, fd, resample, no_irqbypass });
        }
        if !self.defers {
            state.ioeventfds.extend(self.ioeventfds(gpa_of).map(|(_, ioeventfd)| ioeventfd));
        }
    }

    /// The part that `op` is about, if it is this device's.
    fn part_of(&self, op: &Op, gpa_of: &dyn Fn(RegionId) -> Option<u64>) -> Option<DevicePart> {
        match op {
            Op::AssignIrqfd(irqfd) | Op::DeassignIrqfd(irqfd) => {
                let vector = |v: &Vector| v.gsi == Some(irqfd.gsi);
                let line =
                    |line: &&Line| line.gsi == irqfd.gsi && line.event.as_raw_fd() == irqfd.fd;
                let index = self.vectors.iter().position(vector);
                let vector = index.map(|index| DevicePart::Vector { index });
                vector.or_else(|| {
                    self.lines.iter().find(line).map(|line| DevicePart::Line { gsi: line.gsi })
                })
            }
            Op::AssignIoeventfd(wanted) | Op::DeassignIoeventfd(wanted) => {
                let mut all = self.ioeventfds(gpa_of);
                let (index, _) = all.find(|(_, ioeventfd)| ioeventfd == wanted)?;
                Some(DevicePart::Ioeventfd { index })
            }
            Op::Routes { from, to } => {
                let gsis = self.vectors.iter().filter_map(|vector| vector.gsi);
                let mut gsis = gsis.chain(self.lines.iter().map(|line| line.gsi));
                let of = |table: &[Route], gsi| -> Vec<Route> {
                    table.iter().filter(|route| route.gsi == gsi).copied().collect()
                };
                gsis.any(|gsi| of(from, gsi) != of(to, gsi)).then_some(DevicePart::Routes)
            }
        }
    }

    /// All its eventfds.
    pub(super) fn fds(&self) -> impl Iterator<Item = Event> + '_ {
        let vectors = self.vectors.iter().map(|vector| &vector.event);
        let lines = self.lines.iter().flat_map(|line| [Some(&line.event), line.resample.as_ref()]);
        let kicks = self.kicks.iter().map(|kick| &kick.event);
        vectors.chain(lines.flatten()).chain(kicks).cloned()
    }

    pub(super) fn follows_regions(&self) -> bool {
        self.kicks.iter().any(|kick| matches!(kick.doorbell.place, Place::In(..)))
    }
}

/// What is known of a VM's routes, irqfds and ioeventfds.
#[derive(Debug)]
pub(super) struct EventState {
    pub(super) limits: EventLimits,
    pub(super) no_irqbypass: bool,
    /// What KVM has.
    pub(super) live: State,
    own_routes: BTreeSet<Route>,
    reserved: Vec<RangeInclusive<u32>>,
    gsis: Gsis,
    /// Whether a doorbell is in a region, and so moves with it.
    pub(super) follows_regions: bool,
    /// What KVM has may not be what it should have.
    pub(super) unsettled: bool,
    /// Eventfds of devices that are not attached, and that KVM may still have.
    pub(super) limbo: Vec<Event>,
    /// What makes sure of calls of which nobody knows whether they were carried
    /// out.
    pub(super) unsure: Vec<Op>,
}

impl EventState {
    pub(super) fn new(
        limits: EventLimits,
        no_irqbypass: bool,
        routes: impl IntoIterator<Item = Route>,
        reserved: Vec<RangeInclusive<u32>>,
        first: u32,
    ) -> Result<Self, Error> {
        let own_routes: BTreeSet<Route> = routes.into_iter().collect();
        let limit = limits.routes;
        check_routes(&own_routes, limit)?;
        let mut gsis = Gsis::new(first, limit);
        for gsi in own_routes.iter().map(|route| route.gsi) {
            gsis.reserve(gsi..=gsi);
        }
        for range in &reserved {
            gsis.reserve(range.clone());
        }
        Ok(Self {
            limits,
            no_irqbypass: no_irqbypass && limits.no_irqbypass,
            live: State { routes: own_routes.clone(), ..State::default() },
            own_routes,
            reserved,
            gsis,
            follows_regions: false,
            unsettled: false,
            limbo: Vec::new(),
            unsure: Vec::new(),
        })
    }

    fn is_reserved(&self, gsi: u32) -> bool {
        self.reserved.iter().any(|range| range.contains(&gsi))
    }

    /// Takes over what a set of changes came to.
    pub(super) fn settle(&mut self, change: &mut EventChange) {
        self.live = std::mem::take(&mut change.wanted);
        self.gsis = change.gsis.clone();
        self.own_routes = std::mem::take(&mut change.own_routes);
        self.unsettled = !self.unsure.is_empty();
    }
}

/// What a set of changes comes to.
#[derive(Debug)]
pub(super) struct EventChange {
    pub(super) plan: Plan,
    /// What KVM has before.
    pub(super) before: State,
    wanted: State,
    gsis: Gsis,
    own_routes: BTreeSet<Route>,
    /// The devices that change; none where one goes.
    pub(super) devices: BTreeMap<DeviceId, Option<Arc<Attached>>>,
    /// Whom each call is about, to explain a refusal.
    pub(super) blame: Vec<(Arc<str>, DevicePart, Option<usize>)>,
}

/// The devices as they will be. Pure: nothing is changed.
pub(super) struct EventDraft<'t> {
    devices: &'t Devices,
    state: &'t EventState,
    changed: BTreeMap<DeviceId, (usize, Option<Arc<Attached>>)>,
    own_routes: Option<(usize, BTreeSet<Route>)>,
    gsis: Option<Gsis>,
}

impl<'t> EventDraft<'t> {
    pub(super) const fn new(devices: &'t Devices, state: &'t EventState) -> Self {
        let changed = BTreeMap::new();
        Self { devices, state, changed, own_routes: None, gsis: None }
    }

    /// Takes a change of devices in.
    pub(super) fn take(
        &mut self,
        number: usize,
        change: &Change,
        draft: &mut Draft<'_>,
    ) -> Result<(), Error> {
        match change {
            Change::Attach(id, device) => self.attach(number, *id, device),
            Change::Detach(id) => {
                let device = self.device(*id)?;
                for region in &device.regions {
                    // The VMM may have unmapped it itself.
                    draft.unmap_if_there(*region);
                }
                self.changed.insert(*id, (number, None));
                self.free_gsis(&device);
                Ok(())
            }
            Change::Vector(id, vector, msi) => self.set_vector(number, *id, *vector, *msi),
            Change::AssignDeferred => {
                let defer: Vec<_> = self.all().filter(|(_, device)| device.defers).collect();
                for (id, device) in defer {
                    let device = Attached { defers: false, ..(*device).clone() };
                    self.changed.insert(id, (number, Some(Arc::new(device))));
                }
                Ok(())
            }
            Change::OwnRoutes(routes) => self.set_own_routes(number, routes),
            Change::Map(..)
            | Change::Unmap(_)
            | Change::Resize(..)
            | Change::Split(..)
            | Change::Flags(..)
            | Change::Move(..)
            | Change::Replace(..)
            | Change::Join(_) => Ok(()),
        }
        .map_err(|error| error.in_change(number))
    }

    fn attach(&mut self, number: usize, id: DeviceId, device: &Device) -> Result<(), Error> {
        if self.devices.contains_key(&id) || self.changed.contains_key(&id) {
            let what = format!("device \"{}\"", device.name).into();
            return Err(ErrorKind::Twice { what }.into());
        }
        let of = |error: Error, part| error.of_device(&device.name, Some(part));
        for (index, kick) in device.kicks.iter().enumerate() {
            check_kick(kick).map_err(|kind| of(kind.into(), DevicePart::Ioeventfd { index }))?;
        }
        for (index, line) in device.lines.iter().enumerate() {
            self.check_line(&device.lines[..index], line)
                .map_err(|kind| of(kind.into(), DevicePart::Line { gsi: line.gsi }))?;
        }
        let mut attached = Attached::new(device);
        let limit = self.state.limits.routes;
        let routes = self.state.limits;
        let gsis = self.gsis.get_or_insert_with(|| self.state.gsis.clone());
        for line in &device.lines {
            // Lines share GSIs, and the VMM's own routes have reserved some.
            gsis.take_this(line.gsi);
        }
        for (index, vector) in attached.vectors.iter_mut().enumerate() {
            let part = DevicePart::Vector { index };
            if vector.msi.is_some_and(|msi| msi.devid.is_some()) && !routes.devid {
                return Err(of(ErrorKind::NoDevid.into(), part));
            }
            if vector.msi.is_some() {
                vector.gsi = gsis.take();
                if vector.gsi.is_none() {
                    return Err(of(ErrorKind::NoGsiLeft { limit }.into(), part));
                }
            }
        }
        self.changed.insert(id, (number, Some(Arc::new(attached))));
        Ok(())
    }

    fn set_vector(
        &mut self,
        number: usize,
        id: DeviceId,
        index: usize,
        msi: Option<Msi>,
    ) -> Result<(), Error> {
        let mut device = (*self.device(id)?).clone();
        let part = DevicePart::Vector { index };
        let refused = |kind: ErrorKind| Err(Error::from(kind).of_device(&device.name, Some(part)));
        let Some(vector) = device.vectors.get(index) else {
            return refused(ErrorKind::NoSuchVector { vectors: device.vectors.len() });
        };
        if msi.is_some_and(|msi| msi.devid.is_some()) && !self.state.limits.devid {
            return refused(ErrorKind::NoDevid);
        }
        let mut gsi = vector.gsi;
        if msi.is_some() && gsi.is_none() {
            gsi = self.gsis.get_or_insert_with(|| self.state.gsis.clone()).take();
            if gsi.is_none() {
                return refused(ErrorKind::NoGsiLeft { limit: self.state.limits.routes });
            }
        }
        if let Some(vector) = device.vectors.get_mut(index) {
            (vector.msi, vector.gsi) = (msi, gsi);
        }
        self.changed.insert(id, (number, Some(Arc::new(device))));
        Ok(())
    }

    fn set_own_routes(&mut self, number: usize, routes: &[Route]) -> Result<(), Error> {
        let routes: BTreeSet<Route> = routes.iter().copied().collect();
        check_routes(&routes, self.state.limits.routes)?;
        for gsi in routes.iter().map(|route| route.gsi) {
            let uses = |device: &Attached| device.vectors.iter().any(|v| v.gsi == Some(gsi));
            if let Some((_, device)) = self.all().find(|(_, device)| uses(device)) {
                let by = format!("a vector of device \"{}\"", device.name).into();
                return Err(ErrorKind::GsiTaken { gsi, by }.into());
            }
        }
        let old = match &self.own_routes {
            Some((_, routes)) => routes,
            None => &self.state.own_routes,
        };
        let gsis = self.gsis.get_or_insert_with(|| self.state.gsis.clone());
        for gsi in old.iter().map(|route| route.gsi) {
            if !self.state.is_reserved(gsi) {
                gsis.give_back(gsi);
            }
        }
        for gsi in routes.iter().map(|route| route.gsi) {
            gsis.reserve(gsi..=gsi);
        }
        self.own_routes = Some((number, routes));
        Ok(())
    }

    fn check_line(&self, before: &[Line], line: &Line) -> Result<(), ErrorKind> {
        let (gsi, limit) = (line.gsi, self.state.limits.routes);
        if gsi >= limit {
            return Err(ErrorKind::GsiBeyondLimit { gsi, limit });
        }
        if self.state.is_reserved(gsi) {
            return Err(ErrorKind::GsiTaken { gsi, by: "the VMM, which reserved it".into() });
        }
        let shares = |other: &Line| {
            let both = other.resample.is_some() && line.resample.is_some();
            both && (line.pin.is_none() || line.pin == other.pin)
        };
        let clash = |other: &&Line| other.gsi == gsi && !shares(other);
        if before.iter().any(|other| clash(&other)) {
            let by = "another line of the device".into();
            return Err(ErrorKind::GsiTaken { gsi, by });
        }
        for (_, device) in self.all() {
            let by = if device.vectors.iter().any(|vector| vector.gsi == Some(gsi)) {
                format!("a vector of device \"{}\"", device.name)
            } else if device.lines.iter().any(|other| clash(&other)) {
                format!("a line of device \"{}\"", device.name)
            } else {
                continue;
            };
            return Err(ErrorKind::GsiTaken { gsi, by: by.into() });
        }
        let own = self.own_routes().iter().filter(|route| route.gsi == gsi);
        let mut targets = own.map(|route| route.target);
        let clashes = line.pin.is_some_and(|(chip, pin)| {
            targets.any(|target| match target {
                RouteTarget::Irqchip { chip: other, pin: there } => other == chip && there != pin,
                _ => true,
            })
        });
        if clashes { Err(ErrorKind::RouteTaken { gsi }) } else { Ok(()) }
    }

    /// Gives the GSIs of a device back that goes.
    fn free_gsis(&mut self, device: &Attached) {
        let mut free: Vec<u32> = device.vectors.iter().filter_map(|vector| vector.gsi).collect();
        for gsi in device.lines.iter().map(|line| line.gsi) {
            let own = self.own_routes().iter().any(|route| route.gsi == gsi);
            let shared = self.all().any(|(_, d)| d.lines.iter().any(|line| line.gsi == gsi));
            if !own && !shared {
                free.push(gsi);
            }
        }
        let gsis = self.gsis.get_or_insert_with(|| self.state.gsis.clone());
        for gsi in free {
            gsis.give_back(gsi);
        }
    }

    fn own_routes(&self) -> &BTreeSet<Route> {
        self.own_routes.as_ref().map_or(&self.state.own_routes, |(_, routes)| routes)
    }

    fn device(&self, id: DeviceId) -> Result<Arc<Attached>, Error> {
        let device = match self.changed.get(&id) {
            Some((_, device)) => device.as_ref(),
            None => self.devices.get(&id),
        };
        device.cloned().ok_or_else(|| ErrorKind::UnknownDevice { id }.into())
    }

    /// The devices as they will be.
    fn all(&self) -> impl Iterator<Item = (DeviceId, Arc<Attached>)> + '_ {
        let kept = self.devices.iter().filter(|(id, _)| !self.changed.contains_key(id));
        let changed =
            self.changed.iter().filter_map(|(id, (_, device))| Some((id, device.as_ref()?)));
        kept.chain(changed).map(|(id, device)| (*id, Arc::clone(device)))
    }

    /// What it all comes to; nothing where nothing changes.
    pub(super) fn finish(&mut self, draft: &Draft<'_>) -> Result<Option<EventChange>, Error> {
        let idle = self.changed.is_empty() && self.own_routes.is_none() && !self.state.unsettled;
        let moves = !draft.edits.is_empty() && self.state.follows_regions;
        if idle && !moves {
            return Ok(None);
        }
        let gpa_of = |id| draft.record(id).map(|record| record.range().gpa());
        let all: Vec<(DeviceId, Arc<Attached>)> = self.all().collect();
        self.check_ioeventfds(&all, &gpa_of)?;
        let mut wanted = State { routes: self.own_routes().clone(), ..State::default() };
        let limit = self.state.limits.routes;
        for (id, device) in &all {
            device.add_to(&mut wanted, self.state.no_irqbypass, &gpa_of);
            let routes = wanted.routes.len();
            if routes > limit as usize {
                let error = Error::from(ErrorKind::TooManyRoutes { routes, limit });
                let error = error.of_device(&device.name, Some(DevicePart::Routes));
                return Err(self.at(*id, error));
            }
        }
        let plan = events::plan(&self.state.live, &wanted);
        let changed = std::mem::take(&mut self.changed);
        let gone = changed.iter().filter(|(_, (_, device))| device.is_none());
        let gone = gone.filter_map(|(id, _)| Some((*id, Arc::clone(self.devices.get(id)?))));
        let everybody: Vec<_> = all.iter().cloned().chain(gone).collect();
        let blame = plan.ops.iter().map(|op| {
            let found = everybody.iter().find_map(|(id, device)| {
                let part = device.part_of(op, &gpa_of)?;
                let number = changed.get(id).map(|(number, _)| *number);
                Some((Arc::clone(&device.name), part, number))
            });
            found.unwrap_or_else(|| {
                let number = self.own_routes.as_ref().map(|(number, _)| *number);
                ("".into(), DevicePart::Routes, number)
            })
        });
        Ok(Some(EventChange {
            blame: blame.collect(),
            before: self.state.live.clone(),
            plan,
            wanted,
            own_routes: self.own_routes().clone(),
            gsis: self.gsis.take().unwrap_or_else(|| self.state.gsis.clone()),
            devices: changed.into_iter().map(|(id, (_, device))| (id, device)).collect(),
        }))
    }

    fn at(&self, id: DeviceId, error: Error) -> Error {
        match self.changed.get(&id) {
            Some((number, _)) => error.in_change(*number),
            None => error,
        }
    }

    fn check_ioeventfds(
        &self,
        all: &[(DeviceId, Arc<Attached>)],
        gpa_of: &dyn Fn(RegionId) -> Option<u64>,
    ) -> Result<(), Error> {
        let mut taken = BTreeMap::<(Bus, u64), Vec<(&Arc<str>, usize, Ioeventfd)>>::new();
        for (id, device) in all {
            for (index, ioeventfd) in device.ioeventfds(gpa_of) {
                let here = taken.entry((ioeventfd.bus, ioeventfd.addr)).or_default();
                let there = here.iter().find(|(_, _, other)| other.collides_with(&ioeventfd));
                if let Some((other, other_index, _)) = there {
                    let other = Arc::clone(other);
                    let other_part = DevicePart::Ioeventfd { index: *other_index };
                    let kind = ErrorKind::IoeventfdTaken { ioeventfd, other, other_part };
                    let part = DevicePart::Ioeventfd { index };
                    return Err(self.at(*id, Error::from(kind).of_device(&device.name, Some(part))));
                }
                here.push((&device.name, index, ioeventfd));
            }
        }
        Ok(())
    }
}

fn check_routes(routes: &BTreeSet<Route>, limit: u32) -> Result<(), ErrorKind> {
    if let Some(route) = routes.iter().find(|route| route.gsi >= limit) {
        return Err(ErrorKind::GsiBeyondLimit { gsi: route.gsi, limit });
    }
    if routes.len() > limit as usize {
        return Err(ErrorKind::TooManyRoutes { routes: routes.len(), limit });
    }
    Ok(())
}

fn check_kick(kick: &Kick) -> Result<(), ErrorKind> {
    let (len, value) = (kick.doorbell.len, kick.doorbell.value);
    if !matches!(len, 0 | 1 | 2 | 4 | 8) {
        return Err(ErrorKind::IoeventfdLength { len });
    }
    let (Place::At(_, start) | Place::In(_, start)) = kick.doorbell.place;
    if start.checked_add(len.into()).is_none() {
        return Err(ErrorKind::IoeventfdWraps { len });
    }
    // A value that does not fit never matches.
    let fits = |data| len == 8 || (len != 0 && data >> (len * 8) == 0);
    match value.filter(|data| !fits(*data)) {
        Some(data) => Err(ErrorKind::IoeventfdValue { len, data }),
        None => Ok(()),
    }
}
