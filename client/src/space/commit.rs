//! From the edits of a transaction to slots: what is touched, the plan, the
//! outcome.

use kvm_memslots_shim::exec::{self, ExecError, How, SavedDirty};
use kvm_memslots_shim::planner::Request;
use kvm_memslots_shim::{Extent, Op, Plan, PlanError, Range, Slot, plan};

use super::{AddressSpace, Edit};
use crate::{CommitReport, Error, Preview};

/// The part of the address space that a plan looks at.
struct Window {
    live: Vec<Slot>,
    wanted: Vec<Extent>,
    whole: bool,
}

impl AddressSpace {
    pub(crate) fn preview(&mut self) -> Result<Preview, Error> {
        let plan = self.plan_edits()?;
        exec::dry_run(&mut *self.backend, self.as_id, &plan, self.how)
            .map_err(|error| self.explain(error))?;
        let cost = self.how.cost(&plan);
        let one_call = matches!(self.how, How::Batch { .. }) && cost.ioctls <= 1;
        let made = plan.ops.iter().filter(|op| matches!(op, Op::Create(_))).count();
        let gone = plan.ops.iter().filter(|op| matches!(op, Op::Delete(_))).count();
        Ok(Preview {
            ioctls: cost.ioctls,
            grace_periods: cost.grace_periods,
            holes: if one_call { Vec::new() } else { plan.holes },
            slots: self.slots.len() + made - gone,
        })
    }

    /// Carries the edits out, or takes them back.
    pub(crate) fn commit(&mut self) -> Result<CommitReport, Error> {
        let outcome = self.plan_edits().and_then(|plan| self.carry_out(&plan));
        match outcome {
            Ok(report) => {
                if self.regions.edits_deferrable() {
                    self.publish_deferred();
                }
                self.forget_dirty();
                self.regions.settle();
                tracing::debug!(
                    as_id = self.as_id,
                    ioctls = report.ioctls,
                    grace_periods = report.grace_periods,
                    regions_merged = report.regions_merged,
                    regions_cancelled = report.regions_cancelled,
                    elapsed_ns = report.elapsed.as_nanos() as u64,
                    vcpus_paused = report.vcpus_paused,
                    "commit"
                );
                Ok(report)
            }
            Err(error) => {
                self.regions.roll_back();
                tracing::warn!(as_id = self.as_id, %error, "commit failed");
                Err(error)
            }
        }
    }

    fn carry_out(&mut self, plan: &Plan) -> Result<CommitReport, Error> {
        for op in &plan.ops {
            tracing::trace!(as_id = self.as_id, ?op, "plan");
        }
        let mut saved = Vec::new();
        // SAFETY: whoever mapped the regions vouched for their host memory
        // until a commit that unmaps them has succeeded (`Transaction::map`),
        // or gave an owner that the region table holds until then. The plan
        // creates, moves and, on undo, creates again only slots over such
        // regions.
        let result = unsafe {
            exec::execute(
                &mut *self.backend,
                self.as_id,
                plan,
                self.how,
                self.holes.as_holes(),
                &mut saved,
            )
        };
        self.keep_dirty(saved);
        match result {
            Ok(done) => {
                self.deferred.note_commit(&plan.ops, &done);
                self.apply(&plan.ops);
                self.unsettled = false;
                self.limbo.clear();
                Ok(CommitReport {
                    ioctls: done.ioctls,
                    grace_periods: done.grace_periods,
                    regions_merged: plan.merged,
                    // What costs nothing is in a slot that stays.
                    regions_cancelled: if plan.kept == 0 { 0 } else { self.cancelled(&plan.ops) },
                    regions_deferred: self.regions_deferred(),
                    elapsed: done.elapsed,
                    executor: self.executor(),
                    backend: self.backend.name(),
                    vcpus_paused: done.paused,
                    slots: self.slots.len(),
                })
            }
            Err(error) => {
                if let ExecError::Stuck { live, .. } = &error {
                    self.adopt(&plan.ops, live);
                }
                Err(self.explain(error))
            }
        }
    }

    /// A plan for the edits, from the part of the address space that they
    /// touch, or from all of it where slot ids run out.
    fn plan_edits(&self) -> Result<Plan, Error> {
        let window = self.window();
        match self.plan_window(&window) {
            Err(PlanError::TooManySlots { .. }) if !window.whole => {
                self.plan_window(&self.whole_window())
            }
            result => result,
        }
        .map_err(|error| match error {
            PlanError::TooManySlots { needed, available } => {
                Error::TooManySlots { needed, available }
            }
            // Transactions don't let these through.
            error => Error::Internal(error.to_string()),
        })
    }

    fn plan_window(&self, window: &Window) -> Result<Plan, PlanError> {
        let Window { live, wanted, .. } = window;
        plan(&Request { live, wanted, ids: &self.ids, limits: self.limits() })
    }

    /// The slots that the edits touch, and all that is wanted where they are.
    fn window(&self) -> Window {
        let edits = self.regions.journal();
        // Looking each range up costs more than looking at everything once.
        if self.unsettled || edits.len() * 8 > self.regions.len() + self.slots.len() {
            return self.whole_window();
        }
        let touched = joined(edits.iter().flat_map(|edit| self.touched(edit)).collect());
        let mut live: Vec<Slot> =
            touched.iter().flat_map(|range| self.slots.overlapping(*range)).collect();
        live.dedup();
        let slots = live.iter().map(|slot| slot.mapping.range);
        let ranges = joined(touched.iter().copied().chain(slots).collect());
        // A region may reach out of the window, over slots that stay: only the
        // part inside is planned. One that stands alone is in one slot, and so
        // either all inside or not at all.
        let wanted = ranges
            .iter()
            .flat_map(|range| {
                self.regions.overlapping(*range).filter_map(|index| {
                    let extent = self.regions.wanted(index)?;
                    let mapping = extent.mapping.clipped_to(*range)?;
                    Some(Extent { mapping, ..extent })
                })
            })
            .collect();
        Window { live, wanted, whole: false }
    }

    fn whole_window(&self) -> Window {
        Window {
            live: self.slots.iter().collect(),
            wanted: self.regions.iter().filter_map(|index| self.regions.wanted(index)).collect(),
            whole: true,
        }
    }

    /// The guest addresses that an edit is about, before and after.
    fn touched(&self, edit: &Edit) -> impl Iterator<Item = Range> + use<> {
        let before = match edit {
            Edit::Added(_) | Edit::Removed(_) | Edit::Promoted(_) => None,
            Edit::Changed(_, before) => Some(before.mapping.range),
        };
        [Some(self.regions.extent(edit.index()).mapping.range), before].into_iter().flatten()
    }

    /// Regions of this transaction that no change of the plan is about.
    fn cancelled(&self, ops: &[Op]) -> usize {
        let added = self.regions.journal().iter().filter_map(|edit| match edit {
            Edit::Added(index) if self.regions.is_mapped(*index) => {
                self.regions.wanted(*index).map(|extent| extent.mapping.range)
            }
            _ => None,
        });
        let mut changed: Vec<Range> = ops.iter().map(Op::range).collect();
        changed.sort_unstable();
        added
            .filter(|range| {
                let from = changed.partition_point(|c| c.end() <= range.gpa);
                changed.get(from).is_none_or(|c| c.gpa >= range.end())
            })
            .count()
    }

    /// Regions of this transaction that wait for their slot.
    fn regions_deferred(&self) -> usize {
        let waits = |edit: &&Edit| {
            matches!(edit, Edit::Added(index)
                if self.regions.is_mapped(*index) && self.regions.wanted(*index).is_none())
        };
        self.regions.journal().iter().filter(waits).count()
    }

    fn apply(&mut self, ops: &[Op]) {
        for op in ops {
            match op {
                Op::Delete(slot) => _ = self.ids.give_back(slot.id),
                Op::Create(slot) => _ = self.ids.take(slot.id),
                Op::Move { .. } | Op::SetFlags { .. } => {}
            }
        }
        for slot in ops.iter().filter_map(Op::before) {
            self.slots.remove(&slot);
        }
        self.slots.extend(ops.iter().filter_map(Op::after));
    }

    /// Takes over what is really live of the slots that `ops` name.
    fn adopt(&mut self, ops: &[Op], live: &[Slot]) {
        self.unsettled = true;
        // Regions of a transaction that failed go, but slots of theirs may be
        // live.
        self.limbo.extend(self.regions.added_owners());
        for slot in ops.iter().filter_map(Op::before) {
            self.slots.remove(&slot);
        }
        for op in ops {
            self.ids.give_back(op.slot_id());
        }
        for slot in live {
            self.slots.insert(slot);
            self.ids.take(slot.id);
        }
    }

    fn keep_dirty(&mut self, saved: Vec<SavedDirty>) {
        let page_size = self.limits().page_size;
        for SavedDirty { range, pages } in saved {
            let (gfn, count) = (range.gpa / page_size, range.size / page_size);
            match pages {
                Some(bits) => self.overlay.or(gfn, &bits, 0, count),
                None => self.overlay.set(gfn, count),
            }
        }
    }

    /// Dirty pages that nobody can ask for any more: of memory that is gone or
    /// not logged any more.
    fn forget_dirty(&mut self) {
        if self.overlay.is_empty() {
            return;
        }
        let page_size = self.limits().page_size;
        for before in self.regions.changed() {
            let kept = self
                .regions
                .overlapping(before.range)
                .map(|index| self.regions.extent(index).mapping)
                .filter(|now| now.is_logged() && now.same_host_pages_as(&before))
                .map(|now| now.range);
            let mut from = before.range.gpa;
            for range in kept {
                if from < range.gpa {
                    self.overlay.clear(from / page_size, (range.gpa - from) / page_size);
                }
                from = range.end();
            }
            let end = before.range.end();
            if from < end {
                self.overlay.clear(from / page_size, (end - from) / page_size);
            }
        }
    }

    fn explain(&self, error: ExecError) -> Error {
        match error {
            ExecError::Hole { first, count } => {
                Error::Hole { range: first, count, region: self.named(first) }
            }
            ExecError::Gate(error) => Error::Gate(error),
            ExecError::DirtyLog { slot, errno } => Error::DirtyLog { slot, errno },
            ExecError::Refused { op: Some(op), errno, .. } => {
                let range = op.range();
                Error::Refused { range, region: self.named(range), errno }
            }
            ExecError::Refused { errno, .. } => Error::RefusedWhole { errno },
            ExecError::Stuck { errno, undo_errno, live, .. } => {
                Error::Stuck { errno, undo_errno, live }
            }
            error => Error::Internal(error.to_string()),
        }
    }
}

/// `ranges`, sorted, those that overlap or touch made one.
fn joined(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let joins = next.gpa <= last.end();
        if joins {
            *last = Range::between(last.gpa, last.end().max(next.end()));
        }
        joins
    });
    ranges
}
