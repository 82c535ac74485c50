//! What a set of changes comes to, before anything is done.

use std::sync::Arc;

use kvm_memslots_shim::memory::{How, Op, Plan};
use kvm_memslots_shim::{Mapping, MemFlags, Range};

use super::check::Checks;
use super::draft::{Draft, Edit};
use super::events::{EventChange, EventDraft};
use super::placed::{PlacedChange, PlacedDraft};
use super::plan::{Planner, Rules, edit_space};
use super::record::{Deferral, Record};
use super::regions::Regions;
use super::{Commit, Tables, Vm};
use crate::changes::Changes;
use crate::error::{Error, ErrorKind};
use crate::gate::{HolePolicy, VcpuGate};
use crate::{Region, RegionId, RegionSpec};

/// A region as it was.
pub(super) struct Before {
    pub(super) id: RegionId,
    pub(super) as_id: u16,
    pub(super) mapping: Mapping,
    /// What the report says of it, if it is unmapped.
    pub(super) gone: Option<Region>,
    /// Where its memory is afterwards, if that is logged still but in no slot or another.
    pub(super) moves_to: Option<Range>,
    /// Whether KVM moves its slots, which keep their logs.
    pub(super) with_log: bool,
}

/// Regions that get a slot, and others that give theirs back.
#[derive(Debug, Default)]
pub(crate) struct Promotion {
    pub(crate) up: Vec<u32>,
    pub(crate) down: Vec<u32>,
}

impl Promotion {
    pub(crate) const fn of(up: Vec<u32>) -> Self {
        Self { up, down: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.up.len() + self.down.len()
    }
}

/// The plan of one address space.
pub(super) struct Work {
    pub(super) as_id: u16,
    pub(super) plan: Plan,
}

/// All that a set of changes comes to. Borrows nothing: callbacks may look
/// regions up while it is carried out.
// Each says something that none of the others does.
#[allow(clippy::struct_excessive_bools)]
#[derive(Default)]
pub(super) struct Prepared {
    pub(super) edits: Vec<Edit>,
    pub(super) works: Vec<Work>,
    pub(super) events: Option<EventChange>,
    pub(super) placed: PlacedChange,
    /// Regions that go and that come, for observers; empty where there are none.
    pub(super) going: Vec<Region>,
    pub(super) coming: Vec<Region>,
    /// The regions that are touched and whose writes were logged, as they were.
    pub(super) logged: Vec<Before>,
    pub(super) gate: Option<Arc<dyn VcpuGate>>,
    /// Whether no vCPU runs while it is carried out.
    pub(super) paused: bool,
    /// Whether a logged slot goes, or is another's afterwards.
    pub(super) loses_logs: bool,
    /// Whether dirty logs are to be left alone by others meanwhile.
    pub(super) touches_logs: bool,
    pub(super) touches_deferrable: bool,
    pub(super) cancelled: usize,
}

impl Vm {
    /// What `changes` come to, with the regions of `promote` mapped and unmapped, too.
    pub(super) fn prepare(
        &self,
        commit: &Commit,
        changes: &Changes,
        promote: &Promotion,
    ) -> Result<Prepared, Error> {
        let tables = &*self.tables();
        let deferred = &commit.deferred;
        let waits = |spec: &RegionSpec, mapping: &Mapping| {
            let (as_id, shares) = (usize::from(spec.as_id), self.is_batched() || spec.permanent);
            let whole = spec.alone || !shares;
            // Nothing is gained by that where a slot has just that memory.
            deferred[as_id].defers(spec.backing.never_faults)
                && !tables.slots[as_id].has(mapping, whole)
        };
        let count = changes.list.len() + promote.len();
        let checks = Checks { limits: &self.limits, waits: &waits };
        let mut draft = Draft::new(&tables.regions, checks, count);
        let mut events = EventDraft::new(&tables.devices, &commit.events);
        let mut placed = PlacedDraft::new(&commit.placed);
        for (number, change) in changes.list.iter().enumerate() {
            draft.take(number, change)?;
            events.take(number, change, &mut draft)?;
            placed.take(number, change, &draft)?;
        }
        promote.down.iter().for_each(|index| draft.defer(*index, Deferral::Waiting));
        promote.up.iter().for_each(|index| draft.defer(*index, Deferral::Over));
        draft.seal()?;
        let events = events.finish(&draft)?;
        let placed = placed.finish()?;

        let rules = self.rules(commit);
        let mut works = Vec::with_capacity(1);
        for (as_id, space) in (0..).zip(&commit.spaces) {
            let of_space = |edit: &Edit| edit_space(edit, &tables.regions) == Some(as_id);
            if !space.unsettled && !draft.edits.iter().any(of_space) {
                continue;
            }
            let slots = &tables.slots[usize::from(as_id)];
            let planner = Planner { draft: &draft, regions: &tables.regions, slots, rules, as_id };
            works.push(Work { as_id, plan: planner.plan(space)? });
        }
        let logged = logged(&draft, &tables.regions, &works);
        let mut gate = self.check_holes(commit, tables, &draft, &works)?;
        if let HolePolicy::Gate(pauses) = &commit.holes {
            // What the guest writes to a log whose slot is another one, KVM forgets.
            if logged.iter().any(|before| before.moves_to.is_some() && !before.with_log) {
                gate = Some(Arc::clone(pauses));
            }
        }
        let paused = gate.is_some() || matches!(commit.holes, HolePolicy::NoVcpuRuns);
        let (going, coming) = if self.observers.is_empty() {
            (Vec::new(), Vec::new())
        } else {
            moved(&draft, &tables.regions)
        };
        let ops = || works.iter().flat_map(|work| &work.plan.ops);
        let loses_logs = ops().any(|op| op.invalidates() && is_logged(op));
        let was_deferrable =
            |edit: &Edit| edit.index.is_some_and(|index| tables.regions.is_deferrable(index));
        let is_deferrable =
            |edit: &Edit| edit.now.as_ref().is_some_and(|now| now.deferral != Deferral::Never);
        let touches_deferrable =
            draft.edits.iter().any(|edit| was_deferrable(edit) || is_deferrable(edit));
        let touches_logs = touches_deferrable || !logged.is_empty() || ops().any(is_logged);
        // What costs nothing is in a slot that stays.
        let kept = works.iter().any(|work| work.plan.kept > 0);
        let cancelled = if kept { cancelled(&draft, &works) } else { 0 };
        Ok(Prepared {
            edits: draft.edits,
            works,
            events,
            placed,
            going,
            coming,
            logged,
            gate,
            paused,
            loses_logs,
            touches_logs,
            touches_deferrable,
            cancelled,
        })
    }

    /// How regions are put into slots.
    pub(super) fn rules(&self, commit: &Commit) -> Rules<'_> {
        Rules {
            limits: &self.limits,
            how: self.how,
            may_replace: self.is_batched() || may_replace(&commit.holes),
            may_rebuild: !matches!(commit.holes, HolePolicy::Refuse),
            rebuilds: false,
        }
    }

    pub(super) const fn is_batched(&self) -> bool {
        matches!(self.how, How::Batch { .. })
    }

    /// Whether a region can leave a slot that it shares, without a hole that anybody
    /// sees in the others.
    pub(crate) fn may_replace(&self) -> Result<bool, Error> {
        Ok(self.is_batched() || may_replace(&self.enter()?.commit.holes))
    }

    /// Whether vCPUs can see that pages which stay mapped are not for a moment.
    pub(super) fn opens_holes(&self, work: &Work) -> bool {
        let at_once = self.is_batched() && work.plan.ops.len() <= self.how.ops_per_call();
        !work.plan.holes.is_empty() && !at_once
    }

    /// Whether the hole policy allows what the plans open, and who pauses vCPUs
    /// for that.
    fn check_holes(
        &self,
        commit: &Commit,
        tables: &Tables,
        draft: &Draft<'_>,
        works: &[Work],
    ) -> Result<Option<Arc<dyn VcpuGate>>, Error> {
        let mut open = works.iter().filter(|work| self.opens_holes(work)).peekable();
        if open.peek().is_none() {
            return Ok(None);
        }
        let only_named = match &commit.holes {
            HolePolicy::NoVcpuRuns => return Ok(None),
            HolePolicy::Gate(gate) => return Ok(Some(Arc::clone(gate))),
            HolePolicy::Refuse => false,
            HolePolicy::Named => true,
        };
        for Work { as_id, plan } in open {
            // What is out of place is so because of changes that named it.
            if only_named && commit.spaces[usize::from(*as_id)].unsettled {
                continue;
            }
            for hole in &plan.holes {
                let others = tables.regions.overlapping(*as_id, *hole);
                let other = others
                    .filter(|index| !draft.hides(*index))
                    .find(|index| !shares_origin(tables.regions.origin(*index), draft));
                let named = other.is_none();
                if named && only_named {
                    continue;
                }
                let described = |index| tables.regions.described(index);
                let edited = || draft.overlapping(*as_id, *hole).next();
                let edited = || edited().map(|(edit, record)| record.described(edit.id));
                // A part of what one of them was split from.
                let part = || tables.regions.overlapping(*as_id, *hole).next().map(described);
                let region = other.map(described).or_else(edited).or_else(part);
                let (range, count) = (*hole, plan.holes.len());
                let hole = Error::from(ErrorKind::Hole { range, count, named });
                return Err(hole.of_region(region));
            }
        }
        Ok(None)
    }
}

const fn may_replace(holes: &HolePolicy) -> bool {
    matches!(holes, HolePolicy::NoVcpuRuns | HolePolicy::Gate(_))
}

/// Whether a region was split from the same one as a region that the set names:
/// the two are one to whoever split it.
fn shares_origin(origin: Option<RegionId>, draft: &Draft<'_>) -> bool {
    let Some(origin) = origin else { return false };
    draft.edits.iter().any(|edit| draft.origin(edit) == Some(origin))
}

fn is_logged(op: &Op) -> bool {
    op.before().is_some_and(|slot| slot.mapping.is_logged())
}

/// The regions that go and those that come, as others map them.
fn moved(draft: &Draft<'_>, regions: &Regions) -> (Vec<Region>, Vec<Region>) {
    let mut going = Vec::new();
    let mut coming = Vec::new();
    for edit in &draft.edits {
        let before = edit.index.map(|index| regions.record(index));
        if let (Some(before), Some(now)) = (&before, &edit.now) {
            if same_to_others(before, now) {
                continue;
            }
        }
        going.extend(before.map(|record| record.region(edit.id)));
        coming.extend(edit.now.as_ref().map(|record| record.region(edit.id)));
    }
    (going, coming)
}

fn same_to_others(before: &Record, now: &Record) -> bool {
    let kvms = MemFlags::LOG_DIRTY_PAGES | MemFlags::TRAP;
    let file = |record: &Record| record.extra.as_ref().and_then(|extra| extra.file);
    let plain = |record: &Record| record.mapping.with_flags(record.mapping.flags() & !kvms);
    plain(before) == plain(now) && file(before) == file(now)
}

/// The regions that are touched and whose writes were logged, the parts of those that
/// are split, and what others lose of their memory.
fn logged(draft: &Draft<'_>, regions: &Regions, works: &[Work]) -> Vec<Before> {
    let before = draft.edits.iter().filter_map(|edit| {
        let (index, part) = edit.from?;
        let mapping = regions.mapping(index).clipped_to(part)?;
        if !mapping.is_logged() {
            return None;
        }
        let (id, as_id) = (edit.id, regions.as_id(index));
        let as_it_was = |mapping: Mapping| {
            let whole = regions.record(index);
            let skip = mapping.range().gpa() - whole.range().gpa();
            whole.part(mapping, skip).region(id)
        };
        let gone = edit.now.is_none().then(|| as_it_was(mapping));
        let lost = edit.now.as_ref().and_then(|now| {
            let same = now.mapping.hva() == mapping.hva();
            let kept = if same { now.range().size() } else { 0 };
            let range = Range::between(part.gpa().checked_add(kept)?, part.end())?;
            let mapping = mapping.clipped_to(range)?;
            let gone = Some(as_it_was(mapping));
            Some(Before { id, as_id, mapping, gone, moves_to: None, with_log: false })
        });
        let moved = |now: &Record| {
            let (is_logged, now_at) = (now.mapping.is_logged(), now.range());
            let elsewhere = now_at.gpa() != mapping.range().gpa();
            let gives_up_its_slot = now.waits() && !regions.is_waiting(index);
            let same = is_logged && now.mapping.hva() == mapping.hva();
            (same && (elsewhere || gives_up_its_slot)).then_some(now_at)
        };
        let moves_to = edit.now.as_ref().and_then(moved);
        let with_log = moves_to.is_some_and(|to| is_moved(works, as_id, mapping.range(), to));
        Some([Some(Before { id, as_id, mapping, gone, moves_to, with_log }), lost])
    });
    before.flatten().flatten().collect()
}

/// Whether all slots over `range` keep their memory, and their logs, where it goes
/// `to`: not where the same memory is to be besides.
fn is_moved(works: &[Work], as_id: u16, range: Range, to: Range) -> bool {
    let ops = works.iter().filter(|work| work.as_id == as_id).flat_map(|work| &work.plan.ops);
    let by = to.gpa().wrapping_sub(range.gpa());
    let moved = ops.filter_map(|op| match op {
        Op::Move { from, gpa } if gpa.wrapping_sub(from.mapping.range().gpa()) == by => {
            range.intersection(from.mapping.range())
        }
        _ => None,
    });
    moved.map(Range::size).sum::<u64>() == range.size()
}

/// Regions of this set that no change of the plans is about.
fn cancelled(draft: &Draft<'_>, works: &[Work]) -> usize {
    let mut changed: Vec<(u16, Range)> = works
        .iter()
        .flat_map(|work| work.plan.ops.iter().map(|op| (work.as_id, op.range())))
        .collect();
    changed.sort_unstable();
    let added = draft.edits.iter().filter(|edit| edit.index.is_none());
    let added = added.filter_map(|edit| edit.now.as_ref()).filter(|record| !record.waits());
    added
        .filter(|record| {
            let (as_id, range) = (record.as_id, record.range());
            let from = changed.partition_point(|(a, c)| (*a, c.end()) <= (as_id, range.gpa()));
            changed.get(from).is_none_or(|(a, c)| *a != as_id || c.gpa() >= range.end())
        })
        .count()
}
