//! What a set of changes comes to: the calls, and what is true when they are
//! made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kvm_memslots_shim::events::{
    Delta, Gsis, Ioeventfd, Irqfd, Op, Parts, Plan, Route, Routes, State, plan_delta,
};

use super::Attached;
use super::claims::Claims;
use super::draft::{Edit, Edited, EventDraft};
use crate::RegionId;
use crate::device::{DeviceId, DevicePart, Event, Trigger, Vector};
use crate::error::{Error, ErrorKind};
use crate::vm::draft::Draft;

/// Whom a call is about: the name of a device, its part, and the change that is
/// to blame.
pub(in crate::vm) type Blame = (Arc<str>, DevicePart, Option<usize>);

#[derive(Debug, PartialEq, Eq)]
enum Subject {
    Route(Route),
    Irqfd(Irqfd),
    Ioeventfd(Ioeventfd),
}

/// What a set of changes comes to.
#[derive(Debug)]
pub(in crate::vm) struct EventChange {
    pub(in crate::vm) plan: Plan,
    /// What KVM has before.
    pub(in crate::vm) routes_before: Routes,
    pub(super) edits: BTreeMap<DeviceId, Edit>,
    pub(super) own_routes: Option<BTreeSet<Route>>,
    pub(super) gsis: Option<Gsis>,
    pub(super) clock: u64,
    pub(super) claims_gone: Claims,
    pub(super) claims_come: Claims,
    /// Triggers of vectors that are masked, and that are no longer.
    holds: Vec<Arc<Trigger>>,
    releases: Vec<Arc<Trigger>>,
    subjects: Vec<(Subject, Blame)>,
    /// Of the VMM's own routes.
    own_routes_change: Option<usize>,
}

impl EventChange {
    /// Whom a call is about, to explain a refusal.
    pub(in crate::vm) fn blame(&self, op: &Op) -> Blame {
        let is = |(subject, _): &&(Subject, Blame)| match (op, subject) {
            (Op::AssignIrqfd(a) | Op::DeassignIrqfd(a), Subject::Irqfd(b)) => a == b,
            (Op::AssignIoeventfd(a) | Op::DeassignIoeventfd(a), Subject::Ioeventfd(b)) => a == b,
            (Op::Routes { from, to }, Subject::Route(route)) => {
                from.contains(route) != to.contains(route)
            }
            _ => false,
        };
        match (self.subjects.iter().find(is), op) {
            (Some((_, (name, _, number))), Op::Routes { .. }) => {
                (Arc::clone(name), DevicePart::Routes, *number)
            }
            (Some((_, blame)), _) => blame.clone(),
            (None, _) => ("".into(), DevicePart::Routes, self.own_routes_change),
        }
    }

    /// Eventfds of devices and vectors that come.
    pub(in crate::vm) fn new_events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for edit in self.edits.values() {
            match &edit.what {
                Edited::New(device) => events.extend(device.fds()),
                Edited::Gone => {}
                Edited::Altered { vectors, .. } => {
                    events.extend(vectors.values().map(|vector| vector.event.clone()));
                }
            }
        }
        events
    }

    /// What KVM has and had not, and what it had and has not, of what the plan is
    /// about.
    pub(in crate::vm) fn astray(&self, live: &State) -> (State, State) {
        let (mut surplus, mut missing) = (State::default(), State::default());
        for op in &self.plan.ops {
            match op {
                Op::Routes { .. } => {
                    surplus.routes = live.routes.without(&self.routes_before);
                    missing.routes = self.routes_before.without(&live.routes);
                }
                Op::AssignIrqfd(at) if live.irqfds.contains(at) => _ = surplus.irqfds.insert(*at),
                Op::DeassignIrqfd(at) if !live.irqfds.contains(at) => {
                    missing.irqfds.insert(*at);
                }
                Op::AssignIoeventfd(at) if live.ioeventfds.contains(at) => {
                    surplus.ioeventfds.insert(*at);
                }
                Op::DeassignIoeventfd(at) if !live.ioeventfds.contains(at) => {
                    missing.ioeventfds.insert(*at);
                }
                _ => {}
            }
        }
        (surplus, missing)
    }

    /// Before the first call: what is masked raises nothing from here on.
    pub(in crate::vm) fn hold(&self) {
        for trigger in &self.holds {
            trigger.mask();
        }
    }

    /// Behind the last call: what is no longer masked raises what it has held.
    /// With `undone`, what was held is let go.
    pub(in crate::vm) fn release(&self, undone: bool) {
        let which = if undone { &self.holds } else { &self.releases };
        for trigger in which {
            trigger.unmask();
        }
    }
}

/// A change while it is worked out.
struct Work<'d, 't> {
    draft: &'d EventDraft<'t>,
    delta: Delta,
    /// What goes, unless somebody else has it as well.
    shared: Parts,
    claims_gone: Claims,
    claims_come: Claims,
    holds: Vec<Arc<Trigger>>,
    releases: Vec<Arc<Trigger>>,
    subjects: Vec<(Subject, Blame)>,
}

impl EventDraft<'_> {
    /// What it all comes to; nothing where nothing changes.
    pub(in crate::vm) fn finish(mut self, draft: &Draft<'_>) -> Result<Option<EventChange>, Error> {
        let followed: Vec<RegionId> = if self.state.followers.is_empty() {
            Vec::new()
        } else {
            draft.edits.iter().map(|edit| edit.id).filter(|id| self.state.follows(*id)).collect()
        };
        let idle = self.edits.is_empty() && self.own_routes.is_none();
        if idle && followed.is_empty() && !self.state.unsettled {
            return Ok(None);
        }
        let limit = self.state.limits.routes;
        let work = loop {
            let work = Work::of(&self, draft, &followed)?;
            let routes = work.delta.routes_after(&self.state.live.routes);
            if routes <= limit as usize {
                break work;
            }
            // A masked vector does without its route.
            if let Some(gsi) = self.reclaim(0) {
                if let Some(gsis) = &mut self.gsis {
                    gsis.give_back(gsi);
                }
                continue;
            }
            let error = Error::from(ErrorKind::TooManyRoutes { routes, limit });
            return Err(match self.edits.last_key_value() {
                Some((id, edit)) => error
                    .of_device(&self.name(*id), Some(DevicePart::Routes))
                    .in_change(edit.number),
                None => error,
            });
        };
        let Work { delta, claims_gone, claims_come, holds, releases, subjects, .. } = work;
        let own_routes_change = self.own_routes.as_ref().map(|(number, _)| *number);
        Ok(Some(EventChange {
            plan: plan_delta(&self.state.live.routes, &delta),
            routes_before: self.state.live.routes.clone(),
            edits: self.edits,
            own_routes: self.own_routes.map(|(_, routes)| routes),
            gsis: self.gsis,
            clock: self.clock,
            claims_gone,
            claims_come,
            holds,
            releases,
            subjects,
            own_routes_change,
        }))
    }
}

impl<'d, 't> Work<'d, 't> {
    fn of(
        draft: &'d EventDraft<'t>,
        memory: &Draft<'_>,
        followed: &[RegionId],
    ) -> Result<Self, Error> {
        let mut work = Self {
            draft,
            delta: Delta::default(),
            shared: Parts::default(),
            claims_gone: Claims::default(),
            claims_come: Claims::default(),
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
                    work.doorbells(*id, device, None, number, &after, true)?;
                }
                (Edited::Gone, Some(device)) => {
                    work.whole(device, number, false);
                    work.doorbells(*id, device, None, number, &before, false)?;
                }
                (Edited::Altered { vectors, assigned }, Some(device)) => {
                    for (index, vector) in vectors {
                        let Some(old) = device.vectors.get(*index) else { continue };
                        work.vector(device, *index, old, number, false);
                        work.vector(device, *index, vector, number, true);
                        work.switch(Some(old), Some(vector));
                    }
                    if *assigned && device.defers {
                        for (index, ioeventfd) in device.ioeventfds(None, after) {
                            work.delta.come.ioeventfds.insert(ioeventfd);
                            work.note_ioeventfd(device, index, ioeventfd, number);
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
                work.doorbells(*id, device, Some(*region), number, &before, false)?;
                work.doorbells(*id, device, Some(*region), number, &after, true)?;
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
            parts.irqfds.insert(irqfd);
            self.note(Subject::Irqfd(irqfd), device, part, number);
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
        parts.irqfds.extend(irqfd);
        if let Some(route) = route {
            self.note(Subject::Route(route), device, part, number);
        }
        if let Some(irqfd) = irqfd {
            self.note(Subject::Irqfd(irqfd), device, part, number);
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

    /// Doorbells of a device, or of those only that are in one region.
    fn doorbells(
        &mut self,
        id: DeviceId,
        device: &Attached,
        of: Option<RegionId>,
        number: Option<usize>,
        gpa_of: &dyn Fn(RegionId) -> Option<u64>,
        comes: bool,
    ) -> Result<(), Error> {
        for (index, ioeventfd) in device.ioeventfds(of, gpa_of) {
            if comes {
                let other = self.claims_come.colliding(ioeventfd).next();
                if let Some((_, other, at)) = other {
                    return Err(self.taken((id, index, ioeventfd), (other, at)));
                }
                self.claims_come.insert(ioeventfd, id, index);
            } else {
                self.claims_gone.insert(ioeventfd, id, index);
            }
            if !device.defers {
                let parts = if comes { &mut self.delta.come } else { &mut self.delta.gone };
                parts.ioeventfds.insert(ioeventfd);
                self.note_ioeventfd(device, index, ioeventfd, number);
            }
        }
        Ok(())
    }

    /// Whether what comes would fire for writes that are somebody else's.
    fn check_claims(&self) -> Result<(), Error> {
        for (ioeventfd, (id, index)) in self.claims_come.iter() {
            let there = self.draft.state.claims.colliding(*ioeventfd);
            let mut there = there.filter(|(other, ..)| !self.claims_gone.contains(other));
            if let Some((_, other, at)) = there.next() {
                return Err(self.taken((*id, *index, *ioeventfd), (other, at)));
            }
        }
        Ok(())
    }

    fn taken(
        &self,
        (id, index, ioeventfd): (DeviceId, usize, Ioeventfd),
        (other, other_index): (DeviceId, usize),
    ) -> Error {
        let other = self.draft.name(other);
        let other_part = DevicePart::Ioeventfd { index: other_index };
        let error = Error::from(ErrorKind::IoeventfdTaken { ioeventfd, other, other_part });
        let part = DevicePart::Ioeventfd { index };
        let error = error.of_device(&self.draft.name(id), Some(part));
        match self.draft.edits.get(&id) {
            Some(edit) => error.in_change(edit.number),
            None => error,
        }
    }

    /// Leaves out what others have as well, and what KVM has already.
    fn finish(&mut self, gpa_of: &dyn Fn(RegionId) -> Option<u64>) {
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
                    shared.irqfds.remove(&irqfd);
                }
            }
            self.delta.gone.routes.append(&mut shared.routes);
            self.delta.gone.irqfds.append(&mut shared.irqfds);
        }
        self.delta.cancel();
        let Delta { come, .. } = &mut self.delta;
        come.routes.retain(|route| !state.live.routes.contains(route));
        come.irqfds.retain(|irqfd| !state.live.irqfds.contains(irqfd));
    }

    /// All that KVM is to have.
    fn wanted(&mut self, gpa_of: &dyn Fn(RegionId) -> Option<u64>) -> State {
        let draft = self.draft;
        let mut routes: BTreeSet<Route> = draft.own_routes().clone();
        let mut wanted = State::default();
        for (id, device, altered) in draft.views() {
            let edit = draft.edits.get(&id);
            let number = edit.map(|edit| edit.number);
            for (index, vector) in super::draft::vectors(device, altered).enumerate() {
                let (route, irqfd) = device.of_vector(vector, draft.state.no_irqbypass);
                routes.extend(route);
                wanted.irqfds.extend(irqfd);
                if let Some(irqfd) = irqfd {
                    let part = DevicePart::Vector { index };
                    self.note(Subject::Irqfd(irqfd), device, part, number);
                }
            }
            for line in &device.lines {
                let (route, irqfd) = device.of_line(line, draft.state.no_irqbypass);
                routes.extend(route);
                wanted.irqfds.insert(irqfd);
                let part = DevicePart::Line { gsi: line.gsi };
                self.note(Subject::Irqfd(irqfd), device, part, number);
            }
            let assigned =
                edit.is_some_and(|e| matches!(e.what, Edited::Altered { assigned: true, .. }));
            if assigned || !device.defers {
                for (index, ioeventfd) in device.ioeventfds(None, gpa_of) {
                    wanted.ioeventfds.insert(ioeventfd);
                    self.note_ioeventfd(device, index, ioeventfd, number);
                }
            }
        }
        wanted.routes = routes.into_iter().collect();
        wanted
    }

    fn note_ioeventfd(
        &mut self,
        device: &Attached,
        index: usize,
        ioeventfd: Ioeventfd,
        number: Option<usize>,
    ) {
        let part = DevicePart::Ioeventfd { index };
        self.note(Subject::Ioeventfd(ioeventfd), device, part, number);
    }

    fn note(&mut self, what: Subject, device: &Attached, part: DevicePart, number: Option<usize>) {
        self.subjects.push((what, (Arc::clone(&device.name), part, number)));
    }
}
