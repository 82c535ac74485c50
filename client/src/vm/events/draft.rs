//! The devices as they will be: a set of changes, held against what is applied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kvm_memslots_shim::events::{Gsis, Msi, Route, RouteTarget};

use super::check::{check_coalesced, check_kick, check_routes};
use super::{Attached, Devices, EventState};
use crate::changes::Change;
use crate::device::{Device, DeviceId, DevicePart, Line, Vector};
use crate::error::{Error, ErrorKind};
use crate::vm::draft::Draft;

/// What a set of changes does to a device.
#[derive(Debug)]
pub(super) struct Edit {
    /// The change that did it last.
    pub(super) number: usize,
    pub(super) what: Edited,
}

/// Vectors that are others, by their number.
pub(super) type Altered = BTreeMap<usize, Vector>;

#[derive(Debug)]
pub(super) enum Edited {
    New(Box<Attached>),
    Gone,
    Altered {
        vectors: Altered,
        /// Its ioeventfds and zones are left no longer.
        assigned: bool,
    },
}

/// The devices as they will be. Pure: nothing is changed.
pub(in crate::vm) struct EventDraft<'t> {
    pub(super) devices: &'t Devices,
    pub(super) state: &'t EventState,
    pub(super) edits: BTreeMap<DeviceId, Edit>,
    pub(super) own_routes: Option<(usize, BTreeSet<Route>)>,
    pub(super) gsis: Option<Gsis>,
    pub(super) clock: u64,
}

impl<'t> EventDraft<'t> {
    pub(in crate::vm) const fn new(devices: &'t Devices, state: &'t EventState) -> Self {
        let clock = state.clock;
        Self { devices, state, edits: BTreeMap::new(), own_routes: None, gsis: None, clock }
    }

    /// Takes a change of devices in.
    pub(in crate::vm) fn take(
        &mut self,
        number: usize,
        change: &Change,
        draft: &mut Draft<'_>,
    ) -> Result<(), Error> {
        match change {
            Change::Attach(id, device) => self.attach(number, *id, device),
            Change::Detach(id) => self.detach(number, *id, draft),
            Change::Vector(id, vector, msi) => self.set_vector(number, *id, *vector, *msi),
            Change::VectorFd(id, index, event) => {
                self.vector(*id, *index).cloned().map(|mut vector| {
                    (vector.event, vector.trigger) = (event.clone(), None);
                    self.alter(number, *id, *index, vector);
                })
            }
            Change::AssignDeferred(only) => self.assign_deferred(number, *only),
            Change::OwnRoutes(routes) => self.set_own_routes(number, routes),
            Change::Map(..)
            | Change::Unmap(_)
            | Change::Resize(..)
            | Change::Split(..)
            | Change::Flags(..)
            | Change::Move(..)
            | Change::Replace(..)
            | Change::MoveInWindow(..)
            | Change::Join(_) => Ok(()),
        }
        .map_err(|error| error.in_change(number))
    }

    fn attach(&mut self, number: usize, id: DeviceId, device: &Device) -> Result<(), Error> {
        if self.devices.contains_key(&id) || self.edits.contains_key(&id) {
            let what = format!("device \"{}\"", device.name).into();
            return Err(ErrorKind::Twice(what).into());
        }
        let of = |error: ErrorKind, part| Error::from(error).of_device(&device.name, Some(part));
        for (index, kick) in device.kicks.iter().enumerate() {
            check_kick(kick).map_err(|kind| of(kind, DevicePart::Ioeventfd { index }))?;
        }
        for (index, zone) in device.zones.iter().enumerate() {
            check_coalesced(zone, self.state.limits.zones)
                .map_err(|kind| of(kind, DevicePart::Zone { index }))?;
        }
        for (index, line) in device.lines.iter().enumerate() {
            self.free_if_idle(number, line.gsi);
            self.check_line(&device.lines[..index], line)
                .map_err(|kind| of(kind, DevicePart::Line { gsi: line.gsi }))?;
        }
        for line in &device.lines {
            // Lines share GSIs, and the VMM's own routes have reserved some.
            self.gsis_mut().take_this(line.gsi);
        }
        let mut attached = Attached::new(device);
        for (index, vector) in attached.vectors.iter_mut().enumerate() {
            let Some(msi) = vector.msi else { continue };
            let part = DevicePart::Vector { index };
            let gsi = self.check_msi(msi).and_then(|()| self.take_gsi(number));
            vector.routed = Some((gsi.map_err(|kind| of(kind, part))?, msi));
        }
        self.edits.insert(id, Edit { number, what: Edited::New(Box::new(attached)) });
        Ok(())
    }

    fn detach(&mut self, number: usize, id: DeviceId, draft: &mut Draft<'_>) -> Result<(), Error> {
        let (device, altered) = self.view(id)?;
        let mut free: Vec<u32> = vectors(device, altered).filter_map(Vector::gsi).collect();
        for region in &device.regions {
            // The VMM may have unmapped it itself.
            draft.unmap_if_there(*region);
        }
        for gsi in device.lines.iter().map(|line| line.gsi) {
            let own = self.own_routes().iter().any(|route| route.gsi == gsi);
            let mut others = self.views().filter(|(other, ..)| *other != id);
            let shared = others.any(|(_, d, _)| d.lines.iter().any(|line| line.gsi == gsi));
            if !own && !shared {
                free.push(gsi);
            }
        }
        for gsi in free {
            self.gsis_mut().give_back(gsi);
        }
        self.edits.insert(id, Edit { number, what: Edited::Gone });
        Ok(())
    }

    fn set_vector(
        &mut self,
        number: usize,
        id: DeviceId,
        index: usize,
        msi: Option<Msi>,
    ) -> Result<(), Error> {
        let mut vector = self.vector(id, index)?.clone();
        if let Some(msi) = msi {
            let gsi = self.check_msi(msi).and_then(|()| match vector.gsi() {
                Some(gsi) => Ok(gsi),
                None => self.take_gsi(number),
            });
            match gsi {
                Ok(gsi) => vector.routed = Some((gsi, msi)),
                Err(kind) => {
                    let (device, _) = self.view(id)?;
                    let part = DevicePart::Vector { index };
                    return Err(Error::from(kind).of_device(&device.name, Some(part)));
                }
            }
        } else if vector.msi.is_some() {
            self.clock += 1;
            vector.masked = self.clock;
        }
        vector.msi = msi;
        self.alter(number, id, index, vector);
        Ok(())
    }

    fn check_msi(&self, msi: Msi) -> Result<(), ErrorKind> {
        if msi.devid.is_some() && !self.state.limits.devid {
            Err(ErrorKind::NoDevid)
        } else {
            Ok(())
        }
    }

    fn assign_deferred(&mut self, number: usize, only: Option<DeviceId>) -> Result<(), Error> {
        if let Some(id) = only {
            self.view(id)?;
        }
        let is_meant = |id: DeviceId| only.is_none_or(|only| only == id);
        let defers = |(id, device): &(&DeviceId, &Attached)| device.defers && is_meant(**id);
        let defer: Vec<DeviceId> = self.devices.iter().filter(defers).map(|(id, _)| *id).collect();
        for id in defer {
            let nothing = Edited::Altered { vectors: BTreeMap::new(), assigned: true };
            let edit = self.edits.entry(id).or_insert(Edit { number, what: nothing });
            if let Edited::Altered { assigned, .. } = &mut edit.what {
                (*assigned, edit.number) = (true, number);
            }
        }
        for (_, edit) in self.edits.iter_mut().filter(|(id, _)| is_meant(**id)) {
            if let Edited::New(device) = &mut edit.what {
                device.defers = false;
            }
        }
        Ok(())
    }

    fn set_own_routes(&mut self, number: usize, routes: &[Route]) -> Result<(), Error> {
        let routes: BTreeSet<Route> = routes.iter().copied().collect();
        check_routes(&routes, self.state.limits.routes)?;
        for gsi in routes.iter().map(|route| route.gsi) {
            self.free_if_idle(number, gsi);
            if let Some(by) = self.vector_at(gsi) {
                return Err(ErrorKind::GsiTaken { gsi, by }.into());
            }
        }
        // A line may go on with one of these.
        let lines: BTreeSet<u32> = self
            .views()
            .flat_map(|(_, device, _)| device.lines.iter().map(|line| line.gsi))
            .collect();
        let old: Vec<u32> = self.own_routes().iter().map(|route| route.gsi).collect();
        for gsi in old {
            if !self.state.is_reserved(gsi) && !lines.contains(&gsi) {
                self.gsis_mut().give_back(gsi);
            }
        }
        for gsi in routes.iter().map(|route| route.gsi) {
            self.gsis_mut().reserve(gsi..=gsi);
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
        let is_msi =
            |route: &&Route| route.gsi == gsi && matches!(route.target, RouteTarget::Msi(_));
        let message = self.own_routes().iter().any(|route| is_msi(&route));
        let shares = |other: &Line| match (&line.resample, &other.resample) {
            (Some(_), Some(_)) => line.pin.is_none() || line.pin == other.pin,
            (None, None) => message,
            _ => false,
        };
        let clash = |other: &&Line| other.gsi == gsi && !shares(other);
        if before.iter().any(|other| clash(&other)) {
            let by = "another line of the device".into();
            return Err(ErrorKind::GsiTaken { gsi, by });
        }
        if let Some(by) = self.vector_at(gsi) {
            return Err(ErrorKind::GsiTaken { gsi, by });
        }
        if let Some((_, device, _)) =
            self.views().find(|(_, device, _)| device.lines.iter().any(|other| clash(&other)))
        {
            let by = format!("a line of device \"{}\"", device.name).into();
            return Err(ErrorKind::GsiTaken { gsi, by });
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

    /// Who has this GSI, of vectors.
    fn vector_at(&self, gsi: u32) -> Option<Box<str>> {
        let has = |(_, device, altered): &(_, &'_ Attached, _)| {
            vectors(device, *altered).any(|vector| vector.gsi() == Some(gsi))
        };
        let (_, device, _) = self.views().find(has)?;
        Some(format!("a vector of device \"{}\"", device.name).into())
    }

    /// The lowest free GSI, or that of the vector that was masked first.
    fn take_gsi(&mut self, number: usize) -> Result<u32, ErrorKind> {
        let limit = self.state.limits.routes;
        let free = self.gsis_mut().take();
        free.or_else(|| self.reclaim(number)).ok_or(ErrorKind::NoGsiLeft { limit })
    }

    /// Takes the GSI of the vector that was masked first.
    pub(super) fn reclaim(&mut self, number: usize) -> Option<u32> {
        let (id, index) = self.idle().next()?;
        self.strip(number, id, index)
    }

    /// Gives a GSI back that a masked vector keeps.
    fn free_if_idle(&mut self, number: usize, gsi: u32) {
        let has = |(id, index): &(DeviceId, usize)| {
            self.vector(*id, *index).is_ok_and(|vector| vector.gsi() == Some(gsi))
        };
        let found = self.idle().find(has);
        if let Some((id, index)) = found {
            self.strip(number, id, index);
            self.gsis_mut().give_back(gsi);
        }
    }

    /// The masked vectors that keep a GSI, by when they were masked.
    fn idle(&self) -> impl Iterator<Item = (DeviceId, usize)> + '_ {
        let before = self.state.idle.iter().filter(|(masked, id, index)| {
            let vector = self.vector(*id, *index);
            vector.is_ok_and(|vector| vector.is_idle() && vector.masked == *masked)
        });
        let before = before.map(|(_, id, index)| (*id, *index));
        let later = (self.state.clock..self.clock).filter_map(|clock| {
            let is = |vector: &Vector| vector.is_idle() && vector.masked == clock + 1;
            self.edits.iter().find_map(|(id, edit)| match &edit.what {
                Edited::New(device) => Some((*id, device.vectors.iter().position(is)?)),
                Edited::Gone => None,
                Edited::Altered { vectors, .. } => {
                    Some((*id, *vectors.iter().find(|(_, vector)| is(vector))?.0))
                }
            })
        });
        before.chain(later)
    }

    /// Takes a vector's GSI away.
    fn strip(&mut self, number: usize, id: DeviceId, index: usize) -> Option<u32> {
        let mut vector = self.vector(id, index).ok()?.clone();
        let (gsi, _) = vector.routed.take()?;
        let number = self.edits.get(&id).map_or(number, |edit| edit.number);
        self.alter(number, id, index, vector);
        Some(gsi)
    }

    fn alter(&mut self, number: usize, id: DeviceId, index: usize, vector: Vector) {
        let nothing = || Edited::Altered { vectors: BTreeMap::new(), assigned: false };
        let edit = self.edits.entry(id).or_insert_with(|| Edit { number, what: nothing() });
        edit.number = number;
        match &mut edit.what {
            Edited::New(device) => device.vectors[index] = vector,
            Edited::Altered { vectors, .. } => _ = vectors.insert(index, vector),
            Edited::Gone => {}
        }
    }

    pub(super) fn own_routes(&self) -> &BTreeSet<Route> {
        self.own_routes.as_ref().map_or(&self.state.own_routes, |(_, routes)| routes)
    }

    fn gsis_mut(&mut self) -> &mut Gsis {
        self.gsis.get_or_insert_with(|| self.state.gsis.clone())
    }

    /// A vector as it will be.
    fn vector(&self, id: DeviceId, index: usize) -> Result<&Vector, Error> {
        let (device, altered) = self.view(id)?;
        let altered = altered.and_then(|altered| altered.get(&index));
        altered.or_else(|| device.vectors.get(index)).ok_or_else(|| {
            let error = Error::from(ErrorKind::NoSuchVector { vectors: device.vectors.len() });
            error.of_device(&device.name, Some(DevicePart::Vector { index }))
        })
    }

    /// A device as it will be.
    fn view(&self, id: DeviceId) -> Result<(&Attached, Option<&Altered>), Error> {
        let unknown = || ErrorKind::UnknownDevice { id }.into();
        let applied = || self.devices.get(&id).ok_or_else(unknown);
        match self.edits.get(&id).map(|edit| &edit.what) {
            Some(Edited::New(device)) => Ok((device, None)),
            Some(Edited::Gone) => Err(unknown()),
            Some(Edited::Altered { vectors, .. }) => Ok((applied()?, Some(vectors))),
            None => Ok((applied()?, None)),
        }
    }

    /// The devices as they will be, with those of their vectors that are others.
    pub(super) fn views(&self) -> impl Iterator<Item = (DeviceId, &Attached, Option<&Altered>)> {
        let new = self.edits.iter().filter(|(_, edit)| matches!(edit.what, Edited::New(_)));
        self.devices.keys().chain(new.map(|(id, _)| id)).filter_map(|id| {
            let (device, altered) = self.view(*id).ok()?;
            Some((*id, device, altered))
        })
    }

    pub(super) fn name(&self, id: DeviceId) -> Arc<str> {
        let name = self.view(id).map(|(device, _)| Arc::clone(&device.name));
        name.or_else(|_| self.devices.get(&id).map(|device| Arc::clone(&device.name)).ok_or(()))
            .unwrap_or_default()
    }
}

/// A device's vectors as they will be.
pub(super) fn vectors<'a>(
    device: &'a Attached,
    altered: Option<&'a Altered>,
) -> impl Iterator<Item = &'a Vector> {
    device.vectors.iter().enumerate().map(move |(index, vector)| {
        altered.and_then(|altered| altered.get(&index)).unwrap_or(vector)
    })
}
