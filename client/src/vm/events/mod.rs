//! The devices of a VM: what KVM is to have of their interrupts and doorbells.
//!
//! A change costs what it changes, however many devices there are: a
//! [draft](EventDraft) notes which devices and vectors are others, the
//! [change](EventChange) is worked out from those, and [settled](EventState::settle)
//! in place.

mod attached;
mod blame;
mod change;
mod check;
mod claims;
mod draft;
mod work;

pub(crate) use attached::Attached;
pub(super) use change::EventChange;
pub(super) use draft::EventDraft;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use kvm_memslots_shim::events::{EventLimits, Gsis, Op, Route, State};

use self::check::check_routes;
use self::claims::Claims;
use self::draft::Edited;
use crate::RegionId;
use crate::device::{DeviceId, Event, Vector};
use crate::error::Error;

pub(crate) type Devices = BTreeMap<DeviceId, Attached>;

/// What a change has replaced, and what may run somebody's code when it is
/// dropped.
#[derive(Debug, Default)]
pub(super) struct Replaced {
    pub(super) devices: Vec<Attached>,
    pub(super) events: Vec<Event>,
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
    /// Masked vectors that keep a GSI, by when they were masked.
    idle: BTreeSet<(u64, DeviceId, usize)>,
    /// When the next vector is masked.
    clock: u64,
    /// The devices that have doorbells or zones in a region, and so move with it.
    followers: BTreeMap<RegionId, BTreeSet<DeviceId>>,
    /// Where doorbells and zones are, or will be when they are assigned.
    claims: Claims,
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
            live: State { routes: own_routes.iter().copied().collect(), ..State::default() },
            own_routes,
            reserved,
            gsis,
            idle: BTreeSet::new(),
            clock: 0,
            followers: BTreeMap::new(),
            claims: Claims::default(),
            unsettled: false,
            limbo: Vec::new(),
            unsure: Vec::new(),
        })
    }

    fn is_reserved(&self, gsi: u32) -> bool {
        self.reserved.iter().any(|range| range.contains(&gsi))
    }

    /// Whether a doorbell or a zone is in the region.
    pub(super) fn follows(&self, region: RegionId) -> bool {
        self.followers.contains_key(&region)
    }

    /// Takes over what a set of changes came to.
    pub(super) fn settle(&mut self, change: &mut EventChange, devices: &mut Devices) -> Replaced {
        let mut replaced = Replaced::default();
        if let Some(gsis) = change.gsis.take() {
            self.gsis = gsis;
        }
        if let Some(routes) = change.own_routes.take() {
            self.own_routes = routes;
        }
        self.clock = change.clock;
        self.claims.follow(&change.gone, &change.come);
        for (id, edit) in std::mem::take(&mut change.edits) {
            match edit.what {
                Edited::New(device) => {
                    self.enter(id, &device);
                    replaced.devices.extend(devices.insert(id, *device));
                }
                Edited::Gone => {
                    if let Some(device) = devices.remove(&id) {
                        self.leave(id, &device);
                        replaced.devices.push(device);
                    }
                }
                Edited::Altered { vectors, assigned } => {
                    let Some(device) = devices.get_mut(&id) else { continue };
                    device.defers &= !assigned;
                    for (index, vector) in vectors {
                        let Some(there) = device.vectors.get_mut(index) else { continue };
                        self.idle.remove(&(there.masked, id, index));
                        self.note_idle(id, index, &vector);
                        replaced.events.push(std::mem::replace(there, vector).event);
                    }
                }
            }
        }
        self.unsettled = !self.unsure.is_empty();
        replaced
    }

    fn enter(&mut self, id: DeviceId, device: &Attached) {
        for (index, vector) in device.vectors.iter().enumerate() {
            self.note_idle(id, index, vector);
        }
        for region in device.follows() {
            self.followers.entry(region).or_default().insert(id);
        }
    }

    fn leave(&mut self, id: DeviceId, device: &Attached) {
        for (index, vector) in device.vectors.iter().enumerate() {
            self.idle.remove(&(vector.masked, id, index));
        }
        for region in device.follows() {
            if let Some(all) = self.followers.get_mut(&region) {
                all.remove(&id);
                if all.is_empty() {
                    self.followers.remove(&region);
                }
            }
        }
    }

    fn note_idle(&mut self, id: DeviceId, index: usize, vector: &Vector) {
        if vector.is_idle() {
            self.idle.insert((vector.masked, id, index));
        }
    }
}
