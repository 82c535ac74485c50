//! A set of one change that comes to one call: what most sets of a running VM
//! are. It is checked, and its call chosen, by what the long way has for that; all
//! else of the long way is about what such a set has not.

use kvm_memslots_shim::memory::{self, Op, Plan, Why};

use super::calls::{Undone, loses_log, or_stuck};
use super::check::Checks;
use super::commit::{Left, follow};
use super::draft::Edit;
use super::plan::{edit_space, one_call};
use super::prepare::{Prepared, Work};
use super::regions::Regions;
use super::{Commit, Panics, SlotTable, Vm};
use crate::changes::Change;
use crate::error::Error;

/// What a change by itself makes of its region, if it is simple and nothing is
/// wrong with it.
fn edit_of(change: &Change, regions: &Regions, checks: &Checks<'_>) -> Option<Edit> {
    match change {
        Change::Map(id, spec) if !spec.deferrable => {
            let now = checks.record(*id, spec).ok()?;
            let there = regions.in_the_way(now.as_id, now.range(), |_| true);
            let free = there.is_none() && regions.find(*id).is_none();
            free.then_some(Edit { now: Some(now), is_new: true, ..Edit::of(*id) })
        }
        Change::Unmap(id) => Some(Edit::gone(regions, regions.find(*id)?)),
        Change::Flags(id, set, of) => {
            let mut edit = Edit::there(regions, regions.find(*id)?);
            checks.set_flags(*id, edit.now.as_mut()?, *set, *of).ok()?;
            Some(edit)
        }
        _ => None,
    }
}

impl Vm {
    /// Applies the change, or leaves it to the long way: what needs more than one
    /// call, what somebody has to be told of, and what KVM need not be asked to
    /// refuse.
    pub(super) fn apply_single(
        &self,
        commit: &mut Commit,
        change: &Change,
        left: &mut Left,
        panics: &mut Panics,
    ) -> Option<Result<(), Error>> {
        if !commit.is_settled() || !self.observers.is_empty() {
            return None;
        }
        let tables = self.tables();
        let regions = &tables.regions;
        let checks = Checks { limits: &self.limits, waits: &|_, _| false };
        let edit = edit_of(change, regions, &checks)?;
        let as_id = edit_space(&edit, regions)?;
        let at = usize::from(as_id);
        let op = one_call(&edit, regions, &tables.slots[at], &self.limits, &commit.spaces[at])?;
        let served = edit.index.is_some_and(|index| regions.is_deferrable(index));
        let followed = !matches!(change, Change::Flags(..)) && commit.events.follows(edit.id);
        if served || followed || loses_log(&op) {
            return None;
        }
        drop(tables);
        // SAFETY: whoever made the backing of the region promised that its
        // memory stays until a change that unmaps it has been applied, or gave
        // an owner: the region table holds that, or the change that maps it.
        let result =
            unsafe { memory::execute_one(self.calls(), as_id, &op, self.how, &mut commit.traps) };
        let memory = match result {
            Ok(done) => done,
            Err(failed) => {
                return Some(Err(self.single_failed(commit, as_id, op, edit, failed, panics)));
            }
        };
        let ops = std::slice::from_ref(&op);
        commit.spaces[at].follow(ops);
        commit.deferred[at].note_commit(ops, &memory, false);
        left.early = commit.order.memory(&memory);
        let mut tables = self.tables_mut();
        tables.slots[at].follow(ops);
        follow(&mut tables.regions, std::slice::from_ref(&edit), &mut left.extras);
        left.report.slots = tables.slots.iter().map(SlotTable::len).sum();
        left.report.note(&memory);
        Some(Ok(()))
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
