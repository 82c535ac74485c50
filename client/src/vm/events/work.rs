//! How a change is worked out, from the devices and vectors that it names.

use std::collections::BTreeSet;
use std::sync::Arc;

use kvm_memslots_shim::events::{Delta, Part, Parts, Route, State};

use super::attached::{Attached, GpaOf};
use super::claims::{Claims, Owner};
use super::draft::{Edit, Edited, EventDraft};
use crate::RegionId;
use crate::device::{DeviceId, DevicePart, Trigger, Vector};
use crate::error::{Error, ErrorKind};
use crate::vm::draft::Draft;

/// Whom a call is about: the name of a device, its part, and the change that is
/// to blame.
pub(in crate::vm) type Blame = (Arc<str>, DevicePart, Option<usize>);

/// What a call is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Route(Route),
    Part(Part),
}

/// A change while it is worked out.
pub(super) struct Work<'d, 't> {
    pub(super) draft: &'d EventDraft<'t>,
    pub(super) delta: Delta,
    /// What goes, unless somebody else has it as well.
    shared: Parts,
    /// What goes and comes on a bus, also of devices whose calls are left to later.
    pub(super) gone: Claims,
    pub(super) come: Claims,
    pub(super) holds: Vec<Arc<Trigger>>,
    pub(super) releases: Vec<Arc<Trigger>>,
    pub(super) subjects: Vec<(Subject, Blame)>,
}

impl<'d, 't> Work<'d, 't> {
    pub(super) fn of(
        draft: &'d EventDraft<'t>,
        memory: &Draft<'_>,
        followed: &[RegionId],
    ) -> Result<Self, Error> {
        let mut work = Self {
            draft,
            delta: Delta::default(),
            shared: Parts::default(),
            gone: Claims::default(),
            come: Claims::default(),
            holds: Vec::new(),
            releases: Vec::new(),
            subjects: Vec::new(),
        };
        let before = |id| memory.regions.find(id).map(|index| memory.regions.range(index).gpa());
        let after = |id| memory.record(id).map(|record| record.range().gpa());
        for (id, edit) in &draft.edits {
            let number = Some(edit.number);
            let applied = draft.devices.get(id);
            match (&edit.what, applied) {
                (Edited::New(device), _) => {
                    work.whole(device, number, true);
                    work.on_bus(*id, device, None, number, &after, true)?;
                }
                (Edited::Gone, Some(device)) => {
                    work.whole(device, number, false);
                    work.on_bus(*id, device, None, number, &before, false)?;
                }
                (Edited::Altered { vectors, assigned }, Some(device)) => {
                    for (index, vector) in vectors {
                        let Some(old) = device.vectors.get(*index) else { continue };
                        work.vector(device, *index, old, number, false);
                        work.vector(device, *index, vector, number, true);
                        work.switch(Some(old), Some(vector));
                    }
                    if *assigned && device.defers {
                        for (part, what) in device.on_bus(None, &after) {
                            work.delta.come.assigned.insert(what);
                            work.note(Subject::Part(what), device, part, number);
                        }
                    }
                }
                _ => {}
            }
        }
        for region in followed.iter().filter(|region| before(**region) != after(**region)) {
            let followers = draft.state.followers.get(region).into_iter().flatten();
            for id in followers {
                let Some(device) = draft.devices.get(id) else { continue };
                let number = match draft.edits.get(id) {
                    Some(Edit { what: Edited::New(_) | Edited::Gone, .. }) => continue,
                    edit => edit.map(|edit| edit.number),
                };
                let of = Some(*region);
                work.on_bus(*id, device, of, number, &before, false)?;
                work.on_bus(*id, device, of, number, &after, true)?;
            }
        }
        if let Some((_, new)) = &draft.own_routes {
            work.shared.routes.extend(draft.state.own_routes.difference(new));
            work.delta.come.routes.extend(new);
        }
        work.check_claims()?;
        work.finish(&after);
        Ok(work)
    }

    /// The vectors and lines of a device that comes or goes.
    fn whole(&mut self, device: &Attached, number: Option<usize>, comes: bool) {
        for (index, vector) in device.vectors.iter().enumerate() {
            self.vector(device, index, vector, number, comes);
            let (old, new) = if comes { (None, Some(vector)) } else { (Some(vector), None) };
            self.switch(old, new);
        }
        for line in &device.lines {
            let part = DevicePart::Line { gsi: line.gsi };
            let (route, irqfd) = device.of_line(line, self.draft.state.no_irqbypass);
            let parts = if comes { &mut self.delta.come } else { &mut self.shared };
            parts.routes.extend(route);
            parts.assigned.insert(irqfd.into());
            self.note(Subject::Part(irqfd.into()), device, part, number);
            if let Some(route) = route {
                self.note(Subject::Route(route), device, part, number);
            }
        }
    }

    fn vector(
        &mut self,
        device: &Attached,
        index: usize,
        vector: &Vector,
        number: Option<usize>,
        comes: bool,
    ) {
        let part = DevicePart::Vector { index };
        let (route, irqfd) = device.of_vector(vector, self.draft.state.no_irqbypass);
        let parts = if comes { &mut self.delta.come } else { &mut self.delta.gone };
        parts.routes.extend(route);
        parts.assigned.extend(irqfd.map(Part::from));
        if let Some(route) = route {
            self.note(Subject::Route(route), device, part, number);
        }
        if let Some(irqfd) = irqfd {
            self.note(Subject::Part(irqfd.into()), device, part, number);
        }
    }

    /// What becomes of a vector's trigger.
    fn switch(&mut self, old: Option<&Vector>, new: Option<&Vector>) {
        let open = |vector: Option<&Vector>| {
            vector.filter(|vector| vector.msi.is_some()).and_then(|vector| vector.trigger.clone())
        };
        let (old, new) = (open(old), open(new));
        if let (Some(old), Some(new)) = (&old, &new) {
            if Arc::ptr_eq(old, new) {
                return;
            }
        }
        self.holds.extend(old);
        self.releases.extend(new);
    }

    /// What a device has on a bus comes or goes: all, or what is in one region.
    fn on_bus(
        &mut self,
        id: DeviceId,
        device: &Attached,
        of: Option<RegionId>,
        number: Option<usize>,
        gpa_of: GpaOf<'_>,
        comes: bool,
    ) -> Result<(), Error> {
        for (part, what) in device.on_bus(of, gpa_of) {
            let claims = if comes { &mut self.come } else { &mut self.gone };
            let other = if comes { claims.in_the_way(what).next() } else { None };
            if let Some((_, other)) = other {
                return Err(self.taken(what, (id, part), other));
            }
            claims.insert(what, (id, part));
            if !device.defers {
                let parts = if comes { &mut self.delta.come } else { &mut self.delta.gone };
                parts.assigned.insert(what);
                self.note(Subject::Part(what), device, part, number);
            }
        }
        Ok(())
    }

    /// Whether what comes would take writes that are somebody else's, or the other
    /// way round.
    fn check_claims(&self) -> Result<(), Error> {
        for (what, owner) in self.come.iter() {
            let mut there = self.draft.state.claims.in_the_way(what);
            if let Some((_, other)) = there.find(|(other, _)| !self.gone.contains(other)) {
                return Err(self.taken(what, owner, other));
            }
        }
        Ok(())
    }

    fn taken(&self, what: Part, (id, part): Owner, (other, other_part): Owner) -> Error {
        let kind = ErrorKind::EventTaken { what, other: self.draft.name(other), other_part };
        let error = Error::from(kind).of_device(&self.draft.name(id), Some(part));
        match self.draft.edits.get(&id) {
            Some(edit) => error.in_change(edit.number),
            None => error,
        }
    }

    /// Leaves out what others have as well, and what KVM has already.
    fn finish(&mut self, gpa_of: GpaOf<'_>) {
        let state = self.draft.state;
        if state.unsettled {
            let wanted = self.wanted(gpa_of);
            self.delta = Delta::between(&state.live, &wanted);
            return;
        }
        if !self.shared.is_empty() {
            let mut shared = std::mem::take(&mut self.shared);
            shared.routes.retain(|route| !self.draft.own_routes().contains(route));
            for (_, device, _) in self.draft.views() {
                for line in &device.lines {
                    let (route, irqfd) = device.of_line(line, state.no_irqbypass);
                    if let Some(route) = route {
                        shared.routes.remove(&route);
                    }
                    shared.assigned.remove(&irqfd.into());
                }
            }
            self.delta.gone.routes.append(&mut shared.routes);
            self.delta.gone.assigned.append(&mut shared.assigned);
        }
        self.delta.cancel();
        let Delta { come, .. } = &mut self.delta;
        come.routes.retain(|route| !state.live.routes.contains(route));
        let is_there = |part: &Part| state.live.assigned.contains(part);
        come.assigned.retain(|part| !matches!(part, Part::Irqfd(_)) || !is_there(part));
    }

    /// All that KVM is to have.
    fn wanted(&mut self, gpa_of: GpaOf<'_>) -> State {
        let draft = self.draft;
        let mut routes: BTreeSet<Route> = draft.own_routes().clone();
        let mut wanted = State::default();
        for (id, device, altered) in draft.views() {
            let edit = draft.edits.get(&id);
            let number = edit.map(|edit| edit.number);
            for (index, vector) in super::draft::vectors(device, altered).enumerate() {
                let (route, irqfd) = device.of_vector(vector, draft.state.no_irqbypass);
                routes.extend(route);
                if let Some(irqfd) = irqfd.map(Part::from) {
                    wanted.assigned.insert(irqfd);
                    let part = DevicePart::Vector { index };
                    self.note(Subject::Part(irqfd), device, part, number);
                }
            }
            for line in &device.lines {
                let (route, irqfd) = device.of_line(line, draft.state.no_irqbypass);
                routes.extend(route);
                wanted.assigned.insert(irqfd.into());
                let part = DevicePart::Line { gsi: line.gsi };
                self.note(Subject::Part(irqfd.into()), device, part, number);
            }
            let assigned =
                edit.is_some_and(|e| matches!(e.what, Edited::Altered { assigned: true, .. }));
            if assigned || !device.defers {
                for (part, what) in device.on_bus(None, gpa_of) {
                    wanted.assigned.insert(what);
                    self.note(Subject::Part(what), device, part, number);
                }
            }
        }
        wanted.routes = routes.into_iter().collect();
        wanted
    }

    fn note(&mut self, what: Subject, device: &Attached, part: DevicePart, number: Option<usize>) {
        self.subjects.push((what, (Arc::clone(&device.name), part, number)));
    }
}
