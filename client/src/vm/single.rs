//! A set of one change that comes to one call: what most sets of a running VM
//! are. It comes to what the long way would, which decides the same, at a third of
//! its cost.

use kvm_memslots_shim::memory::{self, Op, Plan, Why};

use super::calls::{Made, Undone, or_stuck};
use super::check::Checks;
use super::commit::{Left, follow};
use super::draft::{Draft, Edit};
use super::plan::{Planner, edit_space};
use super::prepare::{Prepared, Work};
use super::{Commit, Panics, SlotTable, Vm};
use crate::Report;
use crate::changes::Change;
use crate::error::Error;

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
    ) -> Option<Result<Report, Error>> {
        let plain = match change {
            Change::Map(id, spec) => !spec.deferrable && !commit.events.follows(*id),
            Change::Unmap(id) => !commit.events.follows(*id),
            Change::Flags(..) => true,
            _ => false,
        };
        if !plain || !commit.is_settled() || !self.observers.is_empty() {
            return None;
        }
        let (as_id, op, edit) = self.single(commit, change)?;
        // SAFETY: whoever made the backing of the region promised that its
        // memory stays until a change that unmaps it has been applied, or gave
        // an owner: the region table holds that, or the change that maps it.
        let result =
            unsafe { memory::execute_one(&*self.memory, as_id, &op, self.how, &mut commit.traps) };
        let memory = match result {
            Ok(done) => done,
            Err(failed) => {
                return Some(Err(self.single_failed(commit, as_id, op, edit, failed, panics)));
            }
        };
        let (at, ops) = (usize::from(as_id), std::slice::from_ref(&op));
        commit.spaces[at].follow(ops);
        commit.deferred[at].note_commit(ops, &memory, false);
        commit.order.memory(&memory);
        let mut tables = self.tables_mut();
        tables.slots[at].follow(ops);
        follow(&mut tables.regions, std::slice::from_ref(&edit), &mut left.extras);
        let slots = tables.slots.iter().map(SlotTable::len).sum();
        drop(tables);
        Some(Ok(self.report(&Made { memory, ..Made::default() }, slots)))
    }

    /// The one call that a change comes to, and what it makes of its region.
    fn single(&self, commit: &mut Commit, change: &Change) -> Option<(u16, Op, Edit)> {
        let tables = &*self.tables();
        let checks = Checks { limits: &self.limits, waits: &|_, _| false };
        let mut draft = Draft::new(&tables.regions, checks, std::mem::take(&mut commit.room));
        draft.take(0, change).and_then(|()| draft.seal()).ok()?;
        let edit = draft.edits.first()?;
        let as_id = edit_space(edit, &tables.regions)?;
        let (at, regions, rules) = (usize::from(as_id), &tables.regions, self.rules(commit));
        let planner = Planner { draft: &draft, regions, slots: &tables.slots[at], rules, as_id };
        let op = planner.single(&commit.spaces[at])?;
        let ends_log = op.before().is_some_and(|slot| slot.mapping.is_logged())
            && !op.after().is_some_and(|slot| slot.mapping.is_logged());
        let served = edit.index.is_some_and(|index| regions.is_deferrable(index));
        let edit = draft.edits.pop().filter(|_| !ends_log && !served)?;
        draft.sorted.clear();
        commit.room = (draft.edits, draft.sorted);
        Some((as_id, op, edit))
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
