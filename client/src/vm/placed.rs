//! Memory of devices that is in windows: placed and removed by the sets of changes
//! that attach, detach and move the devices.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use kvm_memslots_shim::Errno;

use super::draft::Draft;
use crate::RegionId;
use crate::changes::Change;
use crate::device::{Device, DeviceId, DevicePart};
use crate::error::{Error, ErrorKind};
use crate::window::{Placement, WindowError, WindowErrorKind, WindowPart};

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
    astray: Vec<Step>,
}

/// One call, or the few of one place.
#[derive(Debug, Clone)]
struct Step {
    gone: Option<WindowPart>,
    come: Option<WindowPart>,
    device: Arc<str>,
    /// Which of the device's.
    index: usize,
    change: Option<usize>,
}

/// What a set of changes comes to.
#[derive(Debug, Default)]
pub(super) struct PlacedChange {
    steps: Vec<Step>,
    edits: BTreeMap<DeviceId, Option<Arc<Parts>>>,
}

/// A change that was refused, and what could not be taken back then.
pub(super) struct Refused {
    pub(super) error: Error,
    pub(super) undone: Vec<WindowError>,
}

impl Step {
    fn make(&self) -> Result<(), WindowError> {
        match (&self.gone, &self.come) {
            (None, None) => Ok(()),
            (Some(gone), None) => gone.remove(),
            (None, Some(come)) => come.place(),
            (Some(_), Some(come)) => come.replace(),
        }
    }

    /// The step that takes it back.
    fn inverse(&self) -> Self {
        Self { gone: self.come.clone(), come: self.gone.clone(), ..self.clone() }
    }

    /// The same, as far as it is still to be done.
    fn repair(&self) -> Result<(), WindowError> {
        if let Some(gone) = self.gone.as_ref().filter(|gone| gone.is_there()) {
            gone.remove()?;
        }
        match self.come.as_ref().filter(|come| !come.is_there()).map(WindowPart::place) {
            // Somebody else has put something there.
            Some(Err(error)) if error.errno() == Errno::EEXIST => Ok(()),
            Some(placed) => placed,
            None => Ok(()),
        }
    }

    fn blamed(&self, error: WindowError) -> Error {
        let part = DevicePart::InWindow { index: self.index };
        let error = Error::from(ErrorKind::Window(error)).of_device(&self.device, Some(part));
        match self.change {
            Some(change) => error.in_change(change),
            None => error,
        }
    }
}

impl Placed {
    /// Whether windows have something else than they should.
    pub(super) fn is_astray(&self) -> bool {
        !self.astray.is_empty()
    }

    /// Puts right what could not be undone.
    pub(super) fn repair(&mut self) -> Result<(), Error> {
        while let Some(step) = self.astray.last() {
            step.repair().map_err(|error| step.blamed(error))?;
            self.astray.pop();
        }
        Ok(())
    }

    /// Makes the calls of a change, all or none.
    pub(super) fn execute(&mut self, change: &PlacedChange) -> Result<(), Refused> {
        for (done, step) in change.steps.iter().enumerate() {
            let Err(error) = step.make() else { continue };
            let mut undone = Vec::new();
            if let WindowErrorKind::Stuck { .. } = error.kind() {
                undone.push(error.clone());
                self.astray.push(step.inverse());
            }
            undone.extend(self.take_back(&change.steps[..done]));
            return Err(Refused { error: step.blamed(error), undone });
        }
        Ok(())
    }

    /// Takes a change back that was made; what was refused.
    pub(super) fn undo(&mut self, change: &PlacedChange) -> Vec<WindowError> {
        self.take_back(&change.steps)
    }

    fn take_back(&mut self, steps: &[Step]) -> Vec<WindowError> {
        let mut refused = Vec::new();
        for step in steps.iter().rev().map(Step::inverse) {
            if let Err(error) = step.make() {
                refused.push(error);
                self.astray.push(step);
            }
        }
        refused
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
                return Err(wrong(ErrorKind::Twice { what: name.to_string().into() }));
            }
        }
        let (device, parts) = (Arc::clone(&device.name), device.parts.clone());
        self.edits.insert(id, (number, Some(Arc::new(Parts { device, parts }))));
        Ok(())
    }

    fn move_to(&mut self, number: usize, name: RegionId, offset: u64) -> Result<(), Error> {
        let found = self.find(name).and_then(|(id, index)| Some((id, index, self.of(id)?)));
        let (id, index, parts) = found.ok_or(ErrorKind::UnknownRegion { id: name })?;
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

    /// What it all comes to: what goes, what takes the place of something, what
    /// comes.
    pub(super) fn finish(self) -> Result<PlacedChange, Error> {
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        for (id, (change, now)) in &self.edits {
            let (before, now) = (self.placed.devices.get(id), now.as_ref());
            let goes = |part| (Some(part), None);
            let comes = |part| (None, Some(part));
            gone.extend(before.into_iter().flat_map(|all| all.but_for(now, *change, goes)));
            come.extend(now.into_iter().flat_map(|all| all.but_for(before, *change, comes)));
        }
        // The VMM may have removed it itself.
        gone.retain(|step: &Step| step.gone.as_ref().is_some_and(WindowPart::is_there));
        let leaving: Leaving = gone
            .iter()
            .filter_map(|step| step.gone.as_ref().map(|part| (part.key(), part.clone())))
            .collect();
        check(&come, &leaving)?;
        for step in &mut come {
            let Some(part) = &step.come else { continue };
            step.gone = leaving.get(&part.key()).filter(|gone| gone.covers(part)).cloned();
        }
        let taken_over: HashSet<_> =
            come.iter().filter_map(|step| step.gone.as_ref().map(WindowPart::key)).collect();
        gone.retain(|step| !step.gone.as_ref().is_some_and(|p| taken_over.contains(&p.key())));
        come.sort_by_key(|step| step.gone.is_none());
        gone.append(&mut come);
        let edits = self.edits.into_iter().map(|(id, (_, parts))| (id, parts)).collect();
        Ok(PlacedChange { steps: gone, edits })
    }
}

/// What goes, by window and offset.
type Leaving = HashMap<(usize, u64), WindowPart>;

impl Parts {
    /// A step for each that `other` has not, or not there.
    fn but_for(
        &self,
        other: Option<&Arc<Self>>,
        change: usize,
        step: impl Fn(WindowPart) -> (Option<WindowPart>, Option<WindowPart>),
    ) -> Vec<Step> {
        let has = |name: RegionId, part: &WindowPart| {
            let mut there = other.into_iter().flat_map(|other| &other.parts);
            there.any(|(other, there)| *other == name && there.is(part))
        };
        let all = self.parts.iter().enumerate().filter(|(_, (name, part))| !has(*name, part));
        all.map(|(index, (_, part))| {
            let (gone, come) = step(part.clone());
            Step { gone, come, device: Arc::clone(&self.device), index, change: Some(change) }
        })
        .collect()
    }
}

/// Whether what comes has room, once what goes has gone.
fn check(come: &[Step], leaving: &Leaving) -> Result<(), Error> {
    let mut sorted: Vec<(&Step, &WindowPart)> =
        come.iter().filter_map(|step| Some((step, step.come.as_ref()?))).collect();
    let taken = |step: &Step, part: &WindowPart, by: Placement| {
        Err(step.blamed(part.wrong(WindowErrorKind::Taken { by })))
    };
    for (step, part) in &sorted {
        let (window, _) = part.key();
        let leaves = |there: &Placement| {
            let gone = leaving.get(&(window, there.offset));
            gone.is_some_and(|gone| gone.placement() == *there)
        };
        if let Some(by) = part.in_the_way(leaves) {
            return taken(step, part, by);
        }
    }
    sorted.sort_by_key(|(_, part)| part.key());
    for pair in sorted.windows(2) {
        let [(one, low), (other, high)] = pair else { continue };
        let (window, offset) = high.key();
        if low.key().0 == window && low.placement().end() > offset {
            // The one that came last is to blame.
            return if one.change > other.change {
                taken(one, low, high.placement())
            } else {
                taken(other, high, low.placement())
            };
        }
    }
    Ok(())
}
