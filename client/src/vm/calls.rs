//! The calls of a set of changes, and back again where one is refused.

use std::time::Duration;

use kvm_memslots_shim::events;
use kvm_memslots_shim::memory::{self, Done, Op, Plan, SavedDirty};
use kvm_memslots_shim::{Errno, Kind, Mapping, MemFlags, Range, Slot};

use super::events::Devices;
use super::prepare::{Prepared, Work};
use super::{Commit, Panics, Vm, placed};
use crate::dirty::DirtyState;
use crate::error::{Error, ErrorKind};
use crate::window::WindowError;

/// What the calls were.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub(super) memory: Done,
    pub(super) events: events::Cost,
    pub(super) events_elapsed: Duration,
}

/// The way back, if it did not lead to the start.
#[derive(Debug, Default)]
pub(super) struct Undone {
    /// Of the first call that could not be taken back.
    errno: Option<Errno>,
    windows: Vec<WindowError>,
    /// The slots that are there, of those that the plans name.
    pub(super) live: Vec<(u16, Slot)>,
}

impl Undone {
    pub(super) fn failed(&mut self, errno: Errno) {
        self.errno.get_or_insert(errno);
    }

    fn failed_in_windows(&mut self, errors: Vec<WindowError>) {
        for error in &errors {
            self.failed(error.errno());
        }
        self.windows.extend(errors);
    }
}

impl Vm {
    /// Takes events away, changes memory, then what is in windows, brings events; or
    /// undoes it all.
    pub(super) fn make_calls(
        &self,
        commit: &mut Commit,
        prepared: &Prepared,
        mut dirty: Option<&mut DirtyState>,
        panics: &mut Panics,
    ) -> Result<Made, Error> {
        let mut made = Made::default();
        let ops = prepared.events.as_ref().map(|change| change.plan.ops.split_at(change.plan.gone));
        let (gone, come) = ops.unwrap_or_default();
        if let Err(why) = self.make_events(commit, gone, &mut made, panics) {
            let devices = &self.tables().devices;
            return Err(events_failed(commit, prepared, devices, why, Undone::default()));
        }
        for (at, work) in prepared.works.iter().enumerate() {
            // SAFETY: the plan creates, moves and, on undo, creates again only
            // slots over regions. Whoever mapped those promised that their
            // memory stays until a change that unmaps them has been applied
            // (`Backing::borrowed`), or gave an owner, which the region table,
            // the edits or `limbo` hold until then.
            let result =
                unsafe { self.execute(commit, prepared, work.as_id, &work.plan, &mut dirty) };
            let failed = match result {
                Ok(done) => {
                    made.memory.ioctls += done.ioctls;
                    made.memory.grace_periods += done.grace_periods;
                    made.memory.elapsed += done.elapsed;
                    continue;
                }
                Err(failed) => failed,
            };
            panics.keep(failed.panic);
            let mut undone = Undone::default();
            if let memory::Why::Stuck { undo_errno, live, unsure, .. } = &failed.why {
                undone.failed(*undo_errno);
                self.adopt(commit, prepared, at, live, unsure);
                undone.live.extend(live.iter().map(|slot| (work.as_id, *slot)));
            }
            self.take_back(commit, prepared, at, &mut dirty, &mut undone, panics);
            let asked = undone.errno.is_none().then_some(&mut *commit);
            let error = self.explain(prepared, work, &failed.why, asked);
            if commit.spaces.iter().any(|space| !space.unsure.is_empty()) {
                keep_new_memory(commit, prepared);
            }
            return Err(or_stuck(commit, prepared, error, undone));
        }
        let all = prepared.works.len();
        if let Err(refused) = commit.placed.execute(&prepared.placed) {
            let placed::Refused { error, undone: errors } = refused;
            let mut undone = Undone::default();
            undone.failed_in_windows(errors);
            self.take_back(commit, prepared, all, &mut dirty, &mut undone, panics);
            return Err(or_stuck(commit, prepared, error, undone));
        }
        if let Err(why) = self.make_events(commit, come, &mut made, panics) {
            let mut undone = Undone::default();
            if matches!(why, events::Why::Stuck { .. }) {
                commit.events.unsettled = true;
            }
            undone.failed_in_windows(commit.placed.undo(&prepared.placed));
            self.take_back(commit, prepared, all, &mut dirty, &mut undone, panics);
            let devices = &self.tables().devices;
            return Err(events_failed(commit, prepared, devices, why, undone));
        }
        Ok(made)
    }

    #[allow(clippy::result_large_err)] // Twice a change.
    fn make_events(
        &self,
        commit: &mut Commit,
        ops: &[events::Op],
        made: &mut Made,
        panics: &mut Panics,
    ) -> Result<(), events::Why> {
        if ops.is_empty() {
            return Ok(());
        }
        let done = events::execute(&**self.events, &mut commit.events.live, ops);
        let done = done.map_err(|failed| {
            panics.keep(failed.panic);
            failed.why
        })?;
        made.events += done.cost;
        made.events_elapsed += done.elapsed;
        Ok(())
    }

    /// Carries a plan out, and keeps the dirty pages that KVM has forgotten.
    ///
    /// # Safety
    /// [`memory::execute`].
    #[allow(clippy::result_large_err)] // Once a plan.
    unsafe fn execute(
        &self,
        commit: &mut Commit,
        prepared: &Prepared,
        as_id: u16,
        plan: &Plan,
        dirty: &mut Option<&mut DirtyState>,
    ) -> Result<Done, memory::Failed> {
        let mut saved: Vec<SavedDirty> = Vec::new();
        let (how, traps, read_logs) = (self.how, &mut commit.traps, prepared.paused);
        // SAFETY: the caller's promise is the same.
        let result = unsafe {
            memory::execute(self.calls(), as_id, plan, how, traps, read_logs, &mut saved)
        };
        if let Some(dirty) = dirty {
            dirty.keep(as_id, saved, self.limits.page_size);
        }
        result
    }

    /// Takes the first `done` plans back, and brings back the events that went.
    fn take_back(
        &self,
        commit: &mut Commit,
        prepared: &Prepared,
        done: usize,
        dirty: &mut Option<&mut DirtyState>,
        undone: &mut Undone,
        panics: &mut Panics,
    ) {
        for at in (0..done).rev() {
            let Work { as_id, plan } = &prepared.works[at];
            // SAFETY: as in `make_calls`: what is made again was there before.
            let result = unsafe { self.execute(commit, prepared, *as_id, &plan.inverse(), dirty) };
            // A log that went is not what comes back.
            let lost = plan.ops.iter().filter(|op| loses_log(op)).filter_map(Op::before);
            if let Some(dirty) = dirty {
                lost.for_each(|slot| self.mark(dirty, *as_id, slot.mapping.range(), None));
            }
            let Err(failed) = result else { continue };
            panics.keep(failed.panic);
            let (errno, live, unsure) = match failed.why {
                memory::Why::Stuck { undo_errno, live, unsure, .. } => (undo_errno, live, unsure),
                memory::Why::Refused { errno, .. } | memory::Why::DirtyLog { errno, .. } => {
                    (errno, plan.ops.iter().filter_map(Op::after).collect(), Vec::new())
                }
                _ => (Errno::EIO, Vec::new(), plan.ops.iter().map(Op::slot_id).collect()),
            };
            undone.failed(errno);
            self.adopt(commit, prepared, at, &live, &unsure);
            undone.live.extend(live.into_iter().map(|slot| (*as_id, slot)));
        }
        self.take_events_back(commit, prepared, undone, panics);
    }

    fn take_events_back(
        &self,
        commit: &mut Commit,
        prepared: &Prepared,
        undone: &mut Undone,
        panics: &mut Panics,
    ) {
        let Some(change) = &prepared.events else { return };
        let gone = change.plan.ops[..change.plan.gone].iter().rev();
        // Each by itself: what can be taken back is.
        for back in gone.map(events::Op::inverse) {
            let live = &mut commit.events.live;
            let done = events::execute(&**self.events, live, std::slice::from_ref(&back));
            let Err(failed) = done else { continue };
            panics.keep(failed.panic);
            undone.failed(match failed.why {
                events::Why::Refused { errno, .. } => errno,
                events::Why::Stuck { errno, unsure, .. } => {
                    note_unsure(commit, prepared, &unsure);
                    errno
                }
                _ => Errno::EIO,
            });
            in_limbo(commit, prepared);
        }
    }

    /// Takes over what is really live of the slots that a plan names.
    pub(super) fn adopt(
        &self,
        commit: &mut Commit,
        prepared: &Prepared,
        at: usize,
        live: &[Slot],
        unsure: &[u16],
    ) {
        let Work { as_id, plan } = &prepared.works[at];
        let space = &mut commit.spaces[usize::from(*as_id)];
        space.unsettled = true;
        space.unsure.extend(unsure);
        let mut tables = self.tables_mut();
        let slots = &mut tables.slots[usize::from(*as_id)];
        for slot in plan.ops.iter().filter_map(Op::before) {
            slots.remove(&slot);
        }
        for op in &plan.ops {
            space.ids.give_back(op.slot_id());
        }
        for slot in live {
            slots.insert(slot);
            space.ids.take(slot.id);
        }
        for id in unsure {
            space.ids.take(*id);
        }
        keep_new_memory(commit, prepared);
    }

    /// Deletes slots of which nobody knows whether they are there, and takes away
    /// what else may be there.
    pub(super) fn find_out_unsure(&self, commit: &mut Commit) {
        for op in std::mem::take(&mut commit.events.unsure) {
            let done =
                events::execute(&**self.events, &mut commit.events.live, std::slice::from_ref(&op));
            let gone = matches!(op, events::Op::Deassign(events::Part::Ioeventfd(_)));
            let done = done.map_err(|failed| {
                Panics::default().keep(failed.panic);
                failed.why
            });
            match done {
                Ok(_) => {}
                // KVM has no such ioeventfd, or not any more.
                Err(events::Why::Refused { errno: Errno::ENOENT, .. }) if gone => {}
                Err(_) => commit.events.unsure.push(op),
            }
        }
        for (as_id, space) in (0..).zip(&mut commit.spaces) {
            for id in std::mem::take(&mut space.unsure) {
                // KVM looks at nothing but the id.
                let Some(mapping) = Range::new(0, self.limits.page_size)
                    .and_then(|range| Mapping::new(range, 0, Kind::Ram))
                else {
                    continue;
                };
                let delete = Op::Delete(Slot { id, mapping });
                // SAFETY: nothing is mapped.
                let answer =
                    Panics::default().catch(|| unsafe { self.memory.change(as_id, &delete) });
                match answer {
                    // KVM has no such slot, or not any more.
                    Some(Ok(()) | Err(Errno::EINVAL | Errno::ENOENT)) => {
                        space.ids.give_back(id);
                    }
                    _ => space.unsure.push(id),
                }
            }
        }
    }
}

/// Whether KVM forgets what it has logged.
pub(super) fn loses_log(op: &Op) -> bool {
    match op {
        Op::Delete(slot) => slot.mapping.is_logged(),
        Op::SetFlags { from, flags } => {
            from.mapping.is_logged() && !flags.contains(MemFlags::LOG_DIRTY_PAGES)
        }
        Op::Move { .. } | Op::Create(_) => false,
    }
}

/// Regions of a change that failed go, but slots of theirs may be live.
fn keep_new_memory(commit: &mut Commit, prepared: &Prepared) {
    let new = prepared.edits.iter().filter_map(|edit| edit.now.as_ref());
    commit.limbo.extend(new.filter_map(|record| record.owner().cloned()));
}

/// Eventfds that KVM may have although no device has.
fn in_limbo(commit: &mut Commit, prepared: &Prepared) {
    commit.events.unsettled = true;
    let changes = prepared.events.iter();
    commit.events.limbo.extend(changes.flat_map(super::events::EventChange::new_events));
}

/// Calls of which nobody knows whether they were carried out: what makes sure.
fn note_unsure(commit: &mut Commit, prepared: &Prepared, unsure: &[events::Op]) {
    use events::Op;
    let before = prepared.events.as_ref().map(|change| change.routes_before.clone());
    let before = before.unwrap_or_default();
    for op in unsure {
        commit.events.unsure.push(match op {
            Op::Routes { from, .. } => Op::Routes { from: from.clone(), to: before.clone() },
            Op::Assign(part) | Op::Deassign(part) => Op::Deassign(*part),
        });
    }
}

/// The error itself where everything was undone.
pub(super) fn or_stuck(
    commit: &Commit,
    prepared: &Prepared,
    error: Error,
    undone: Undone,
) -> Error {
    let Some(undo_errno) = undone.errno else { return error };
    let change = prepared.events.as_ref();
    let (surplus, missing) =
        change.map(|change| change.astray(&commit.events.live)).unwrap_or_default();
    let stuck = ErrorKind::Stuck {
        errno: error.errno(),
        what: error.to_string().into(),
        undo_errno,
        live: undone.live,
        surplus: Box::new(surplus),
        missing: Box::new(missing),
        windows: undone.windows,
    };
    Error::from(stuck)
}

fn events_failed(
    commit: &mut Commit,
    prepared: &Prepared,
    devices: &Devices,
    why: events::Why,
    mut undone: Undone,
) -> Error {
    let (op, errno) = match why {
        events::Why::Refused { op, errno } => (op, errno),
        events::Why::Stuck { op, errno, undo_errno, unsure, .. } => {
            undone.failed(undo_errno);
            note_unsure(commit, prepared, &unsure);
            in_limbo(commit, prepared);
            (op, errno)
        }
        other => return ErrorKind::Internal(other.to_string()).into(),
    };
    let blame = prepared.events.as_ref().map(|change| change.blame(&op, &commit.events, devices));
    let mut error: Error = ErrorKind::EventRefused { op: Box::new(op), errno }.into();
    if let Some((device, part, number)) = blame {
        if !device.is_empty() {
            error = error.of_device(&device, Some(part));
        }
        if let Some(number) = number {
            error = error.in_change(number);
        }
    }
    or_stuck(commit, prepared, error, undone)
}
