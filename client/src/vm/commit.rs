//! Applying a set of changes.

use std::sync::Arc;
use std::time::Duration;

use kvm_memslots_shim::events::Part;
use kvm_memslots_shim::memory::Done;
use kvm_memslots_shim::{events, memory};

use super::calls::Made;
use super::draft::Edit;
use super::events::Attached;
use super::order::Early;
use super::prepare::{Before, Prepared, Promotion};
use super::record::{Extra, Record};
use super::regions::Regions;
use super::{Commit, Panics, SlotTable, Vm};
use crate::backing::HostMemory;
use crate::changes::Change;
use crate::device::Event;
use crate::error::{Error, ErrorKind};
use crate::{Changes, Preview, Region, Report};

/// What a change leaves behind that may run somebody's code, when it is dropped or
/// said: when no lock is held.
struct Garbage {
    /// The short way has none.
    prepared: Option<Box<Prepared>>,
    left: Left,
}

impl Garbage {
    fn new(report: Report) -> Self {
        let (edits, extras, early) = (Vec::new(), Vec::new(), None);
        let (memory, devices, events) = (Vec::new(), Vec::new(), Vec::new());
        let left = Left { report, edits, extras, early, memory, devices, events };
        Self { prepared: None, left }
    }

    /// All but the report.
    fn drop_all(self, panics: &mut Panics) -> Report {
        let Self { prepared, left } = self;
        panics.drop_all(left.extras);
        if let Some(early) = left.early {
            panics.catch(|| early.warn());
        }
        // The short way leaves nothing else.
        if let Some(prepared) = prepared {
            panics.drop_all(left.edits.into_iter().filter_map(Edit::into_extra).collect());
            panics.drop_all(left.memory);
            panics.drop_all(left.devices);
            panics.drop_all(left.events);
            panics.drop_all(prepared.edits.into_iter().filter_map(Edit::into_extra).collect());
        }
        left.report
    }
}

pub(super) struct Left {
    /// Large: it stays where it is.
    pub(super) report: Report,
    edits: Vec<Edit>,
    pub(super) extras: Vec<Arc<Extra>>,
    pub(super) early: Option<Early>,
    memory: Vec<Arc<dyn HostMemory>>,
    devices: Vec<Attached>,
    events: Vec<Event>,
}

impl Vm {
    /// Applies changes: all of them, or none.
    ///
    /// When it returns, what was unmapped is no more the guest's, nobody serves
    /// it to a vCPU, and memory that the regions owned has been let go.
    ///
    /// # Errors
    /// [`Error`]; unless that is [`ErrorKind::Stuck`], regions, slots and devices
    /// are what they were.
    ///
    /// # Panics
    /// If a callback did ([gate](crate::VcpuGate), [observer](crate::Observer),
    /// [harvest](crate::Builder::harvest), backend, [`HostMemory`]'s drop, a
    /// `tracing` subscriber): its panic goes on when all is settled. Changes that
    /// KVM has carried out by then have been applied.
    pub fn apply(&self, changes: Changes) -> Result<Report, Error> {
        self.apply_with(changes, |_, _| Promotion::default())
    }

    /// The same, if there are any, or if a set before could not be undone.
    pub(crate) fn apply_if_any(&self, changes: Changes) -> Result<Option<Report>, Error> {
        let settled = || self.enter().map_or(true, |committing| committing.commit.is_settled());
        if changes.is_empty() && settled() { Ok(None) } else { self.apply(changes).map(Some) }
    }

    /// The same, with waiting regions mapped along that `promote` chooses, which may add
    /// changes: nobody else changes the VM by then.
    pub(crate) fn apply_with(
        &self,
        mut changes: Changes,
        promote: impl FnOnce(&Commit, &mut Changes) -> Promotion,
    ) -> Result<Report, Error> {
        let mut panics = Panics::default();
        let mut garbage = Garbage::new(self.report());
        let result = match self.enter() {
            Ok(mut committing) => {
                let commit = &mut *committing.commit;
                let promote = promote(commit, &mut changes);
                self.carry_out(commit, &changes, &promote, &mut garbage, &mut panics)
            }
            Err(error) => Err(error),
        };
        let report = &garbage.left.report;
        panics.catch(|| match &result {
            Ok(()) => tracing::debug!(
                ioctls = report.ioctls,
                grace_periods = report.grace_periods,
                event_calls = report.events.calls(),
                regions_merged = report.regions_merged,
                regions_cancelled = report.regions_cancelled,
                elapsed_ns = report.elapsed.as_nanos() as u64,
                vcpus_paused = report.vcpus_paused,
                "applied"
            ),
            // Locks of a subscriber may be held by threads that a fork has not.
            Err(error) if matches!(error.kind(), ErrorKind::Forked) => {}
            Err(error) => tracing::warn!(%error, "not applied"),
        });
        let report = garbage.drop_all(&mut panics);
        if changes.own_something() {
            panics.drop_all(changes.list);
        }
        panics.resume_or(result).map(|()| report)
    }

    /// What applying these changes now would cost. With the batch ioctl the
    /// kernel itself checks them; nothing changes.
    ///
    /// # Errors
    /// As [`apply`](Self::apply), as far as it can be known.
    ///
    /// # Panics
    /// If the backend did.
    pub fn preview(&self, changes: &Changes) -> Result<Preview, Error> {
        let mut panics = Panics::default();
        let result = self.preview_with(changes, &mut panics);
        panics.resume_or(result)
    }

    fn preview_with(&self, changes: &Changes, panics: &mut Panics) -> Result<Preview, Error> {
        let committing = self.enter()?;
        let prepared = self
            .prepare(&committing.commit, changes, &Promotion::default())
            .map_err(|error| name_device(error, changes))?;
        let mut preview = Preview {
            ioctls: 0,
            grace_periods: 0,
            events: prepared.events.as_ref().map(|events| events.plan.cost()).unwrap_or_default(),
            holes: Vec::new(),
            slots: self.tables().slots.iter().map(SlotTable::len).sum(),
        };
        let mut traps = committing.commit.traps;
        for work in &prepared.works {
            let checked = memory::check(self.calls(), work.as_id, &work.plan, self.how);
            checked.map_err(|failed| {
                panics.keep(failed.panic);
                self.explain(&prepared, work, &failed.why, None)
            })?;
            let cost = work.plan.cost(self.how, &mut traps);
            preview.ioctls += cost.ioctls;
            preview.grace_periods += cost.grace_periods;
            if self.opens_holes(work) {
                preview.holes.extend(work.plan.holes.iter().map(|hole| (work.as_id, *hole)));
            }
            let ops = || work.plan.ops.iter();
            preview.slots += ops().filter(|op| op.before().is_none()).count();
            preview.slots -= ops().filter(|op| op.after().is_none()).count();
        }
        Ok(preview)
    }

    /// Carries changes out, from the first check to the last callback.
    fn carry_out(
        &self,
        commit: &mut Commit,
        changes: &Changes,
        promote: &Promotion,
        garbage: &mut Garbage,
        panics: &mut Panics,
    ) -> Result<(), Error> {
        if let ([change], 0) = (&changes.list[..], promote.len()) {
            if let Some(result) = self.apply_single(commit, change, &mut garbage.left, panics) {
                return result;
            }
        }
        self.find_out_unsure(commit);
        commit.placed.repair()?;
        let done = self
            .prepare(commit, changes, promote)
            .and_then(|prepared| self.carry_out_prepared(commit, prepared, garbage, panics));
        done.map_err(|error| name_device(error, changes))
    }

    fn carry_out_prepared(
        &self,
        commit: &mut Commit,
        prepared: Prepared,
        garbage: &mut Garbage,
        panics: &mut Panics,
    ) -> Result<(), Error> {
        let Garbage { prepared: kept, left } = garbage;
        let prepared = &mut **kept.insert(Box::new(prepared));
        self.ask_observers(prepared, panics)?;
        if let Some(gate) = &prepared.gate {
            panics.catch(|| gate.pause()).unwrap_or_else(panicked).map_err(ErrorKind::Gate)?;
        }
        let gate = prepared.gate.clone();
        let harvested = match &self.harvest {
            Some(harvest) if prepared.loses_logs => panics.catch(|| harvest(self)).is_some(),
            _ => true,
        };
        let outcome = if harvested {
            for observer in &self.observers {
                for region in &prepared.going {
                    panics.catch(|| observer.unmapping(region));
                }
            }
            self.in_calls(commit, prepared, left, panics)
        } else {
            Err(called_back_in_vain())
        };
        if let Some(gate) = gate {
            panics.catch(|| gate.resume());
        }
        // Who had been told that they go is told that they are there.
        let there: &[Region] = match (&outcome, harvested) {
            (Ok(()), _) => &prepared.coming,
            (Err(_), true) => &prepared.going,
            (Err(_), false) => &[],
        };
        for observer in &self.observers {
            for region in there {
                panics.catch(|| observer.mapped(region));
            }
        }
        outcome
    }

    fn ask_observers(&self, prepared: &Prepared, panics: &mut Panics) -> Result<(), Error> {
        let (going, coming) = (&prepared.going, &prepared.coming);
        if going.is_empty() && coming.is_empty() {
            return Ok(());
        }
        for observer in &self.observers {
            match panics.catch(|| observer.check(going, coming)) {
                Some(Ok(())) => {}
                Some(Err(why)) => return Err(ErrorKind::Observer(why).into()),
                None => return Err(called_back_in_vain()),
            }
        }
        Ok(())
    }

    /// Makes all calls, and what was done what is seen; or undoes it.
    fn in_calls(
        &self,
        commit: &mut Commit,
        prepared: &mut Prepared,
        left: &mut Left,
        panics: &mut Panics,
    ) -> Result<(), Error> {
        // Whoever reads a log of what changes has read it before, or waits until
        // the slots that it finds are those that there are.
        let mut dirty = prepared.touches_logs.then(|| self.dirty());
        let rooms = prepared.logged.iter().map(|before| self.room_for_last(before));
        let rooms = rooms.collect::<Result<Vec<_>, _>>()?;
        if let Some(dirty) = &mut dirty {
            // Of what gets another slot while vCPUs run, who knows what they wrote last.
            let recreated = |before: &Before| before.moves_to.is_some() && !before.with_log;
            let read = |before: &Before, room: &Option<_>| {
                before.gone.is_some() && room.is_some() || recreated(before) && prepared.paused
            };
            let gone =
                prepared.logged.iter().zip(&rooms).filter(|(before, room)| read(before, room));
            let gone = gone.map(|(before, _)| (before.as_id, before.mapping.range()));
            self.read_last(dirty, gone, panics);
        }
        if let Some(events) = &prepared.events {
            events.hold();
        }
        let made = self.make_calls(commit, prepared, dirty.as_deref_mut(), panics);
        if let Some(events) = &prepared.events {
            events.release(made.is_err());
        }
        let made = made?;
        self.settle(commit, prepared, &made, left);
        if let Some(dirty) = &mut dirty {
            if prepared.touches_deferrable {
                self.publish_deferred(commit, dirty, &left.edits);
            }
            let mut moved = Vec::new();
            for (before, room) in prepared.logged.iter().zip(rooms) {
                let Some(room) = room else {
                    left.report.last_dirty_lost.extend(before.gone.clone());
                    continue;
                };
                let last = || self.take_last(dirty, before, room);
                if let Some(region) = &before.gone {
                    left.report.last_dirty.push((region.clone(), last()));
                } else if let Some(range) = before.moves_to {
                    let known = prepared.paused || before.with_log;
                    moved.push((before.as_id, range, known.then(last)));
                }
            }
            for before in &prepared.logged {
                self.forget_dirty(dirty, before.as_id, &before.mapping);
            }
            for (as_id, range, pages) in moved {
                self.mark(dirty, as_id, range, pages.as_ref());
            }
        }
        Ok(())
    }

    /// What nothing cost.
    fn report(&self) -> Report {
        Report {
            ioctls: 0,
            grace_periods: 0,
            events: events::Cost::default(),
            regions_merged: 0,
            regions_cancelled: 0,
            regions_deferred: 0,
            elapsed: Duration::ZERO,
            executor: self.executor(),
            backend: self.memory.name(),
            vcpus_paused: false,
            slots: 0,
            last_dirty: Vec::new(),
            last_dirty_lost: Vec::new(),
        }
    }

    /// Makes what was done what is seen.
    fn settle(&self, commit: &mut Commit, prepared: &mut Prepared, made: &Made, left: &mut Left) {
        let edits = std::mem::take(&mut prepared.edits);
        let added = edits.iter().filter(|edit| edit.index.is_none());
        let waits = |edit: &&Edit| edit.now.as_ref().is_some_and(Record::waits);
        let report = &mut left.report;
        report.regions_deferred = added.filter(waits).count();
        let mut guard = self.tables_mut();
        let tables = &mut *guard;
        for work in &prepared.works {
            let at = usize::from(work.as_id);
            report.regions_merged += work.plan.merged;
            tables.slots[at].follow(&work.plan.ops);
            let space = &mut commit.spaces[at];
            space.follow(&work.plan.ops);
            if space.unsure.is_empty() {
                space.unsettled = false;
            }
            commit.deferred[at].note_commit(&work.plan.ops, &made.memory, prepared.paused);
        }
        follow(&mut tables.regions, &edits, &mut left.extras);
        left.edits = edits;
        commit.placed.follow(&mut prepared.placed);
        left.early = commit.order.memory(&made.memory);
        if let Some(events) = &mut prepared.events {
            let came = &events.plan.ops[events.plan.gone..];
            let on_a_bus = |op: &events::Op| {
                matches!(op, events::Op::Assign(Part::Ioeventfd(_) | Part::Zone(_)))
            };
            if came.iter().any(on_a_bus) {
                commit.order.ioeventfds();
            }
            let mut replaced = commit.events.settle(events, &mut tables.devices);
            if !commit.events.unsettled {
                left.events.append(&mut commit.events.limbo);
            }
            left.devices.append(&mut replaced.devices);
            left.events.append(&mut replaced.events);
        }
        if commit.spaces.iter().all(|space| !space.unsettled) {
            left.memory.append(&mut commit.limbo);
        }
        report.slots = tables.slots.iter().map(SlotTable::len).sum();
        report.regions_cancelled = prepared.cancelled;
        report.vcpus_paused = prepared.gate.is_some();
        report.note(&made.memory);
        report.events = made.events;
        report.elapsed += made.events_elapsed;
    }
}

impl Report {
    /// What calls of memory cost.
    pub(super) const fn note(&mut self, done: &Done) {
        (self.ioctls, self.grace_periods) = (done.ioctls, done.grace_periods);
        self.elapsed = done.elapsed;
    }
}

/// Takes the edits over. What they replace may hold memory.
pub(super) fn follow(regions: &mut Regions, edits: &[Edit], extras: &mut Vec<Arc<Extra>>) {
    for edit in edits {
        match (edit.index, &edit.now) {
            (Some(index), None) => extras.extend(regions.remove(index)),
            (Some(index), Some(now)) if regions.range(index).gpa() != now.range().gpa() => {
                regions.leave(index);
            }
            _ => {}
        }
    }
    let new = edits.iter().filter(|edit| edit.index.is_none() && edit.now.is_some());
    regions.reserve(new.count());
    for edit in edits {
        match (edit.index, &edit.now) {
            (Some(index), Some(now)) => extras.extend(regions.set(index, now)),
            (None, Some(now)) => regions.insert(edit.id, now),
            (_, None) => {}
        }
    }
}

/// An error about memory of a device that is attached names the device.
fn name_device(error: Error, changes: &Changes) -> Error {
    match error.change().and_then(|number| changes.list.get(number)) {
        Some(Change::Attach(_, device)) => error.of_device(&device.name, None),
        _ => error,
    }
}

/// Nobody sees this: the panic goes on.
fn called_back_in_vain() -> Error {
    ErrorKind::Internal("a callback panicked".to_owned()).into()
}

fn panicked() -> Result<(), crate::GateError> {
    Err(crate::GateError::new("the gate panicked"))
}
