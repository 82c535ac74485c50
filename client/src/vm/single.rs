//! A set of one change that comes to one call: what most sets of a running VM
//! are. It comes to what the long way would, at a third of its cost.

use kvm_memslots_shim::memory::{self, Op, Plan, Why};
use kvm_memslots_shim::{MemFlags, Slot};

use super::calls::{Made, Undone, or_stuck};
use super::check::Checks;
use super::commit::Left;
use super::draft::Edit;
use super::prepare::{Prepared, Work};
use super::record::Deferral;
use super::{Commit, Panics, SlotTable, Tables, Vm};
use crate::changes::Change;
use crate::error::Error;
use crate::{RegionId, RegionSpec, Report};

/// The call, and what it makes of the region.
struct Single {
    as_id: u16,
    op: Op,
    edit: Edit,
}

impl Vm {
    /// Applies the change, or leaves it to the long way: what needs a planner,
    /// what somebody has to be told of, and what KVM need not be asked to refuse.
    pub(super) fn apply_single(
        &self,
        commit: &mut Commit,
        change: &Change,
        left: &mut Left,
        panics: &mut Panics,
    ) -> Option<Result<Report, Error>> {
        let followed = match change {
            Change::Map(id, _) | Change::Unmap(id) => commit.events.follows(*id),
            _ => false,
        };
        if !commit.is_settled() || followed || !self.observers.is_empty() {
            return None;
        }
        let single = match change {
            Change::Map(id, spec) => self.single_map(commit, &self.tables(), *id, spec),
            Change::Unmap(id) => single_unmap(&self.tables(), *id),
            Change::Flags(id, set, of) => self.single_flags(&self.tables(), *id, *set, *of),
            _ => None,
        }?;
        let Single { as_id, op, edit } = single;
        // SAFETY: whoever made the backing of the region promised that its
        // memory stays until a change that unmaps it has been applied, or gave
        // an owner: the region table holds that, or the change that maps it.
        let result = unsafe { memory::execute_one(&*self.memory, as_id, &op, self.how) };
        let memory = match result {
            Ok(done) => done,
            Err(failed) => {
                return Some(Err(self.single_failed(commit, as_id, op, edit, failed, panics)));
            }
        };
        let (at, ops) = (usize::from(as_id), std::slice::from_ref(&op));
        commit.spaces[at].follow(ops, 1);
        commit.deferred[at].note_commit(ops, &memory, false);
        commit.order.memory(&memory);
        let mut guard = self.tables_mut();
        let Tables { regions, slots, .. } = &mut *guard;
        slots[at].follow(ops);
        left.extras.extend(match (edit.index, &edit.now) {
            (Some(index), Some(now)) => regions.set(index, now),
            (Some(index), None) => regions.remove(index),
            (None, Some(now)) => {
                regions.insert(edit.id, now);
                None
            }
            (None, None) => None,
        });
        let slots = slots.iter().map(SlotTable::len).sum();
        drop(guard);
        Some(Ok(self.report(&Made { memory, ..Made::default() }, slots)))
    }

    fn single_map(
        &self,
        commit: &Commit,
        tables: &Tables,
        id: RegionId,
        spec: &RegionSpec,
    ) -> Option<Single> {
        if spec.deferrable || tables.regions.find(id).is_some() {
            return None;
        }
        let checks = Checks { limits: &self.limits, waits: &|_, _| false };
        let now = checks.record(id, spec).ok()?;
        let (as_id, range) = (now.as_id, now.range());
        let free = tables.slots[usize::from(as_id)].is_free(range)
            && tables.regions.in_the_way(as_id, range, |_| true).is_none();
        if !free || range.size() > self.limits.slot_bytes() {
            return None;
        }
        let slot = commit.spaces[usize::from(as_id)].ids.lowest_free()?;
        let op = Op::Create(Slot { id: slot, mapping: now.mapping });
        let now = Some(now);
        let edit =
            Edit { id, index: None, from: None, now, change: 0, is_new: true, rebuild: false };
        Some(Single { as_id, op, edit })
    }

    fn single_flags(
        &self,
        tables: &Tables,
        id: RegionId,
        set: MemFlags,
        of: MemFlags,
    ) -> Option<Single> {
        let index = tables.regions.find(id)?;
        let mut now = tables.regions.record(index);
        // Only what needs no check, no log and no second look.
        let plain = now.deferral == Deferral::Never && now.mapping.guest_memfd().is_none();
        let starts_log = of == MemFlags::LOG_DIRTY_PAGES && set == of && !now.mapping.is_logged();
        let flips_trap = of == MemFlags::TRAP
            && self.limits.trap
            && now.alone
            && now.mapping.flags() & of != set;
        if !plain || !(starts_log || flips_trap) {
            return None;
        }
        let from = tables.slots[usize::from(now.as_id)].exactly(now.range())?;
        let flags = now.mapping.flags() & !of | set;
        now.mapping = now.mapping.with_flags(flags);
        let as_id = now.as_id;
        let (index, now) = (Some(index), Some(now));
        let edit = Edit { id, index, from: None, now, change: 0, is_new: false, rebuild: false };
        Some(Single { as_id, op: Op::SetFlags { from, flags }, edit })
    }

    /// KVM refused the call, or the backend panicked. The call is not made again:
    /// it is known which region it was about.
    #[cold]
    fn single_failed(
        &self,
        commit: &mut Commit,
        as_id: u16,
        op: Op,
        edit: Edit,
        failed: memory::Failed,
        panics: &mut Panics,
    ) -> Error {
        panics.keep(failed.panic);
        let plan = Plan { ops: vec![op], ..Plan::default() };
        let works = vec![Work { as_id, plan }];
        let prepared = Prepared { edits: vec![edit], works, ..Prepared::default() };
        let mut undone = Undone::default();
        if let Why::Stuck { undo_errno, live, unsure, .. } = &failed.why {
            undone.failed(*undo_errno);
            self.adopt(commit, &prepared, 0, live, unsure);
            undone.live.extend(live.iter().map(|slot| (as_id, *slot)));
        }
        let error = self.explain(&prepared, &prepared.works[0], &failed.why, None);
        or_stuck(commit, &prepared, error, undone)
    }
}

fn single_unmap(tables: &Tables, id: RegionId) -> Option<Single> {
    let index = tables.regions.find(id)?;
    let mapping = tables.regions.mapping(index);
    // The last dirty bits are to be read.
    if mapping.is_logged() || tables.regions.is_deferrable(index) {
        return None;
    }
    let as_id = tables.regions.as_id(index);
    let slot = tables.slots[usize::from(as_id)].exactly(mapping.range())?;
    let index = Some(index);
    let edit = Edit { id, index, from: None, now: None, change: 0, is_new: false, rebuild: false };
    Some(Single { as_id, op: Op::Delete(slot), edit })
}
