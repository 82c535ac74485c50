//! Memory of devices that is in windows: placed and removed by the sets of changes
//! that attach, detach and move the devices.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::draft::Draft;
use crate::RegionId;
use crate::changes::Change;
use crate::device::{Device, DeviceId, DevicePart};
use crate::error::{Error, ErrorKind};
use crate::window::{Astray, Steps, WindowError, WindowPart};

/// What a device has in windows.
#[derive(Debug, Clone)]
struct Parts {
    device: Arc<str>,
    parts: Vec<(RegionId, WindowPart)>,
}

/// What the devices have in windows.
#[derive(Debug, Default)]
pub(super) struct Placed {
    devices: BTreeMap<DeviceId, Arc<Parts>>,
    /// What a set that could not be undone left to be done.
    astray: Astray<Whose>,
}

/// Which part of which device, and the change that is about it.
#[derive(Debug, Clone)]
struct Whose {
    device: Arc<str>,
    index: usize,
    change: usize,
}

/// What a set of changes comes to.
#[derive(Debug, Default)]
pub(super) struct PlacedChange {
    steps: Steps<Whose>,
    edits: BTreeMap<DeviceId, Option<Arc<Parts>>>,
}

/// A change that was refused, and what could not be taken back then.
pub(super) struct Refused {
    pub(super) error: Error,
    pub(super) undone: Vec<WindowError>,
}

impl Whose {
    fn blamed(&self, error: WindowError) -> Error {
        let part = DevicePart::InWindow { index: self.index };
        let error = Error::from(ErrorKind::Window(error)).of_device(&self.device, Some(part));
        error.in_change(self.change)
    }
}

impl Placed {
    /// Whether windows have something else than they should.
    pub(super) fn is_astray(&self) -> bool {
        !self.astray.is_empty()
    }

    /// Puts right what could not be undone.
    pub(super) fn repair(&mut self) -> Result<(), Error> {
        self.astray.repair().map_err(|(whose, error)| whose.blamed(error))
    }

    /// Makes the calls of a change, all or none.
    pub(super) fn execute(&mut self, change: &PlacedChange) -> Result<(), Refused> {
        change.steps.take(&mut self.astray).map_err(|refused| {
            let error = refused.whose.blamed(refused.error);
            Refused { error, undone: refused.undone }
        })
    }

    /// Takes a change back that was made; what was refused.
    pub(super) fn undo(&mut self, change: &PlacedChange) -> Vec<WindowError> {
        change.steps.take_back(&mut self.astray)
    }

    /// A change was made, and is to stay.
    pub(super) fn follow(&mut self, change: &mut PlacedChange) {
        for (id, parts) in std::mem::take(&mut change.edits) {
            match parts {
                Some(parts) => _ = self.devices.insert(id, parts),
                None => _ = self.devices.remove(&id),
            }
        }
    }
}

/// What devices will have in windows. Pure: nothing is changed.
pub(super) struct PlacedDraft<'t> {
    placed: &'t Placed,
    /// With the change that did it last.
    edits: BTreeMap<DeviceId, (usize, Option<Arc<Parts>>)>,
}

impl<'t> PlacedDraft<'t> {
    pub(super) const fn new(placed: &'t Placed) -> Self {
        Self { placed, edits: BTreeMap::new() }
    }

    /// Takes a change in, behind those who look after the rest of it.
    pub(super) fn take(
        &mut self,
        number: usize,
        change: &Change,
        regions: &Draft<'_>,
    ) -> Result<(), Error> {
        match change {
            Change::Attach(id, device) if !device.parts.is_empty() => {
                self.attach(number, *id, device, regions)
            }
            Change::Detach(id) if self.of(*id).is_some() => {
                self.edits.insert(*id, (number, None));
                Ok(())
            }
            Change::MoveInWindow(name, offset) => self.move_to(number, *name, *offset),
            _ => Ok(()),
        }
        .map_err(|error| error.in_change(number))
    }

    fn attach(
        &mut self,
        number: usize,
        id: DeviceId,
        device: &Device,
        regions: &Draft<'_>,
    ) -> Result<(), Error> {
        for (index, (name, part)) in device.parts.iter().enumerate() {
            let wrong = |kind: ErrorKind| {
                let part = DevicePart::InWindow { index };
                Error::from(kind).of_device(&device.name, Some(part))
            };
            part.check().map_err(|error| wrong(ErrorKind::Window(error)))?;
            let before = device.parts[..index].iter().any(|(other, _)| other == name);
            if before || self.find(*name).is_some() || regions.record(*name).is_some() {
                return Err(wrong(ErrorKind::Twice(name.to_string().into())));
            }
        }
        let (device, parts) = (Arc::clone(&device.name), device.parts.clone());
        self.edits.insert(id, (number, Some(Arc::new(Parts { device, parts }))));
        Ok(())
    }

    fn move_to(&mut self, number: usize, name: RegionId, offset: u64) -> Result<(), Error> {
        let found = self.find(name).and_then(|(id, index)| Some((id, index, self.of(id)?)));
        let (id, index, parts) = found.ok_or(ErrorKind::UnknownRegion(name))?;
        let mut parts = Parts::clone(parts);
        let part = parts.parts[index].1.moved_to(offset);
        part.check().map_err(|error| {
            let part = DevicePart::InWindow { index };
            Error::from(ErrorKind::Window(error)).of_device(&parts.device, Some(part))
        })?;
        parts.parts[index].1 = part;
        self.edits.insert(id, (number, Some(Arc::new(parts))));
        Ok(())
    }

    /// What a device has, as it will be.
    fn of(&self, id: DeviceId) -> Option<&Arc<Parts>> {
        match self.edits.get(&id) {
            Some((_, parts)) => parts.as_ref(),
            None => self.placed.devices.get(&id),
        }
    }

    fn find(&self, name: RegionId) -> Option<(DeviceId, usize)> {
        let there = self.placed.devices.iter().filter(|(id, _)| !self.edits.contains_key(*id));
        let edited = self.edits.iter().filter_map(|(id, (_, parts))| Some((id, parts.as_ref()?)));
        let mut all = there.chain(edited);
        all.find_map(|(id, parts)| {
            Some((*id, parts.parts.iter().position(|(other, _)| *other == name)?))
        })
    }

    /// What it all comes to.
    pub(super) fn finish(self) -> Result<PlacedChange, Error> {
        if self.edits.is_empty() {
            return Ok(PlacedChange::default());
        }
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        for (id, (change, now)) in &self.edits {
            let (before, now) = (self.placed.devices.get(id), now.as_ref());
            gone.extend(before.into_iter().flat_map(|all| all.but_for(now, *change)));
            come.extend(now.into_iter().flat_map(|all| all.but_for(before, *change)));
        }
        // Of two that overlap the one that came last is to blame.
        come.sort_by_key(|(whose, _): &(Whose, _)| whose.change);
        let steps = Steps::new(gone, come).map_err(|(whose, error)| whose.blamed(error))?;
        let edits = self.edits.into_iter().map(|(id, (_, parts))| (id, parts)).collect();
        Ok(PlacedChange { steps, edits })
    }
}

impl Parts {
    /// Those that `other` has not, or not there.
    fn but_for(&self, other: Option<&Arc<Self>>, change: usize) -> Vec<(Whose, WindowPart)> {
        let has = |name: RegionId, part: &WindowPart| {
            let mut there = other.into_iter().flat_map(|other| &other.parts);
            there.any(|(other, there)| *other == name && there.is(part))
        };
        let all = self.parts.iter().enumerate().filter(|(_, (name, part))| !has(*name, part));
        all.map(|(index, (_, part))| {
            (Whose { device: Arc::clone(&self.device), index, change }, part.clone())
        })
        .collect()
    }
}
