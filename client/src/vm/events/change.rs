//! What a set of changes comes to: the calls, and what is true when they are
//! made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kvm_memslots_shim::events::{Gsis, Op, Plan, Route, Routes, State, plan_delta};

use super::claims::Claims;
use super::draft::{Edit, Edited, EventDraft};
use super::work::Work;
use crate::RegionId;
use crate::device::{DeviceId, DevicePart, Event, Trigger};
use crate::error::{Error, ErrorKind};
use crate::vm::draft::Draft;

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
    pub(super) gone: Claims,
    pub(super) come: Claims,
    /// Triggers of vectors that are masked, and that are no longer.
    holds: Vec<Arc<Trigger>>,
    releases: Vec<Arc<Trigger>>,
    /// Of the VMM's own routes.
    pub(super) own_routes_change: Option<usize>,
}

impl EventChange {
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
                Op::Assign(part) if live.assigned.contains(part) => {
                    surplus.assigned.insert(*part);
                }
                Op::Deassign(part) if !live.assigned.contains(part) => {
                    missing.assigned.insert(*part);
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
        let Work { delta, gone, come, holds, releases, .. } = work;
        let own_routes_change = self.own_routes.as_ref().map(|(number, _)| *number);
        Ok(Some(EventChange {
            plan: plan_delta(&self.state.live.routes, &delta),
            routes_before: self.state.live.routes.clone(),
            edits: self.edits,
            own_routes: self.own_routes.map(|(_, routes)| routes),
            gsis: self.gsis,
            clock: self.clock,
            gone,
            come,
            holds,
            releases,
            own_routes_change,
        }))
    }
}
