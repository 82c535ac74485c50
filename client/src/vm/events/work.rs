//! How a change is worked out, from the devices and vectors that it names.

use std::sync::Arc;

use kvm_memslots_shim::events::{Delta, Part, Parts, State};

use super::attached::{Attached, GpaOf};
use super::check::wraps;
use super::claims::{Claims, Lists, Owner};
use super::draft::{Edited, EventDraft};
use crate::RegionId;
use crate::device::{DeviceId, Place, Trigger, Vector};
use crate::error::{Error, ErrorKind};
use crate::vm::draft::Draft;

/// A change while it is worked out.
pub(super) struct Work<'d, 't> {
    pub(super) draft: &'d EventDraft<'t>,
    /// What it comes to, once it is [finished](Self::finish).
    pub(super) delta: Delta,
    goes: Lists,
    comes: Lists,
    /// What goes, unless somebody else has it as well.
    shared: Parts,
    /// What goes and comes on a bus, also of devices whose calls are left to later.
    pub(super) gone: Claims,
    pub(super) come: Claims,
    pub(super) holds: Vec<Arc<Trigger>>,
    pub(super) releases: Vec<Arc<Trigger>>,
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
            goes: Lists::default(),
            comes: Lists::default(),
            shared: Parts::default(),
            gone: Claims::default(),
            come: Claims::default(),
            holds: Vec::new(),
            releases: Vec::new(),
        };
        let before = |id| gpa_before(memory, id);
        let after = |id| gpa_after(memory, id);
        for (id, edit) in &draft.edits {
            let applied = draft.devices.get(id);
            match (&edit.what, applied) {
                (Edited::New(device), _) => {
                    work.whole(device, true);
                    work.on_bus(*id, device, None, memory, true)?;
                }
                (Edited::Gone, Some(device)) => {
                    work.whole(device, false);
                    work.on_bus(*id, device, None, memory, false)?;
                }
                (Edited::Altered { vectors, assigned }, Some(device)) => {
                    for (index, vector) in vectors {
                        let Some(old) = device.vectors.get(*index) else { continue };
                        work.vector(device, old, false);
                        work.vector(device, vector, true);
                        work.switch(Some(old), Some(vector));
                    }
                    if *assigned && device.defers {
                        work.comes
                            .assigned
                            .extend(device.on_bus(None, &after).filter_map(|(_, what)| what));
                    }
                }
                _ => {}
            }
        }
        for region in followed.iter().filter(|region| before(**region) != after(**region)) {
            let followers = draft.state.followers.get(region).into_iter().flatten();
            for id in followers {
                let Some(device) = draft.devices.get(id) else { continue };
                let edit = draft.edits.get(id).map(|edit| &edit.what);
                if matches!(edit, Some(Edited::New(_) | Edited::Gone)) {
                    continue;
                }
                work.on_bus(*id, device, Some(*region), memory, false)?;
                work.on_bus(*id, device, Some(*region), memory, true)?;
            }
        }
        if let Some((_, new)) = &draft.own_routes {
            work.shared.routes.extend(draft.state.own_routes.difference(new));
            work.comes.routes.extend(new);
        }
        work.check_claims()?;
        work.finish(&after);
        Ok(work)
    }

    /// The vectors and lines of a device that comes or goes.
    fn whole(&mut self, device: &Attached, comes: bool) {
        for vector in &device.vectors {
            self.vector(device, vector, comes);
            let (old, new) = if comes { (None, Some(vector)) } else { (Some(vector), None) };
            self.switch(old, new);
        }
        self.lines(device, comes);
    }

    fn lines(&mut self, device: &Attached, comes: bool) {
        for line in &device.lines {
            let (route, irqfd) = device.of_line(line, self.draft.state.no_irqbypass);
            if comes {
                self.comes.routes.extend(route);
                self.comes.assigned.push(irqfd.into());
            } else {
                self.shared.routes.extend(route);
                self.shared.assigned.insert(irqfd.into());
            }
        }
    }

    fn vector(&mut self, device: &Attached, vector: &Vector, comes: bool) {
        let (route, irqfd) = device.of_vector(vector, self.draft.state.no_irqbypass);
        let lists = if comes { &mut self.comes } else { &mut self.goes };
        lists.routes.extend(route);
        lists.assigned.extend(irqfd.map(Part::from));
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
        memory: &Draft<'_>,
        comes: bool,
    ) -> Result<(), Error> {
        let gpa_of = if comes { gpa_after } else { gpa_before };
        for (part, what) in device.on_bus(of, &|id| gpa_of(memory, id)) {
            let Some(what) = what else {
                match device.place_of(part).filter(|_| comes) {
                    Some((place, len)) => return Err(self.beyond((id, part), place, len, memory)),
                    None => continue,
                }
            };
            let claims = if comes { &mut self.come } else { &mut self.gone };
            let other = if comes { claims.in_the_way(what).next() } else { None };
            if let Some((_, other)) = other {
                return Err(self.taken(what, (id, part), other));
            }
            claims.insert(what, (id, part));
            if !device.defers {
                let lists = if comes { &mut self.comes } else { &mut self.goes };
                lists.assigned.push(what);
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

    /// What ends beyond the last address.
    fn beyond(&self, owner: Owner, place: Place, len: u32, memory: &Draft<'_>) -> Error {
        let region = match place {
            Place::In(region, _) => memory.record(region).map(|record| record.described(region)),
            Place::At(..) => None,
        };
        self.about(owner, Error::from(wraps(place, len)).of_region(region))
    }

    fn taken(&self, what: Part, owner: Owner, (other, other_part): Owner) -> Error {
        let kind = ErrorKind::EventTaken { what, other: self.draft.name(other), other_part };
        self.about(owner, kind.into())
    }

    fn about(&self, (id, part): Owner, error: Error) -> Error {
        let error = error.of_device(&self.draft.name(id), Some(part));
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
        let [gone, come] =
            [&mut self.goes, &mut self.comes].map(|lists| std::mem::take(lists).into());
        self.delta = Delta { gone, come };
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
        // What is new mostly comes behind what is there.
        if come.routes.first() <= state.live.routes.last() {
            come.routes.retain(|route| !state.live.routes.contains(route));
        }
        let is_irqfd = |part: &&Part| matches!(part, Part::Irqfd(_));
        if come.assigned.iter().find(is_irqfd) <= state.live.assigned.last() {
            let is_there = |part: &Part| state.live.assigned.contains(part);
            come.assigned.retain(|part| !is_irqfd(&part) || !is_there(part));
        }
    }

    /// All that KVM is to have.
    fn wanted(&mut self, gpa_of: GpaOf<'_>) -> State {
        let draft = self.draft;
        self.comes = Lists::default();
        for (id, device, altered) in draft.views() {
            let edit = draft.edits.get(&id);
            for vector in super::draft::vectors(device, altered) {
                self.vector(device, vector, true);
            }
            self.lines(device, true);
            let assigned =
                edit.is_some_and(|e| matches!(e.what, Edited::Altered { assigned: true, .. }));
            if assigned || !device.defers {
                let on_bus = device.on_bus(None, gpa_of);
                self.comes.assigned.extend(on_bus.filter_map(|(_, what)| what));
            }
        }
        let Parts { mut routes, assigned } = std::mem::take(&mut self.comes).into();
        routes.extend(draft.own_routes());
        State { routes: routes.into_iter().collect(), assigned }
    }
}

fn gpa_before(memory: &Draft<'_>, id: RegionId) -> Option<u64> {
    memory.regions.find(id).map(|index| memory.regions.range(index).gpa())
}

fn gpa_after(memory: &Draft<'_>, id: RegionId) -> Option<u64> {
    memory.record(id).map(|record| record.range().gpa())
}
