//! From a draft to slots: the part of an address space that it touches, and the
//! plan for that.

use kvm_memslots_shim::memory::{Extent, How, Op, Plan, PlanError, Request, plan};
use kvm_memslots_shim::{Kind, Limits, Mapping, MemFlags, Range, Slot, SlotIds};

use super::draft::{Draft, Edit};
use super::record::Record;
use super::regions::Regions;
use super::slots::SlotTable;
use crate::error::{Error, ErrorKind};
use crate::region::RegionId;

/// What is known of an address space beside its regions and slots.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) ids: SlotIds,
    /// A change failed and could not be undone: slots and regions disagree,
    /// anywhere.
    pub(super) unsettled: bool,
    /// Ids of which nobody knows what KVM has.
    pub(super) unsure: Vec<u16>,
}

impl Space {
    pub(super) fn new(ids: SlotIds) -> Self {
        Self { ids, unsettled: false, unsure: Vec::new() }
    }

    /// Follows changes that were made.
    pub(super) fn follow(&mut self, ops: &[Op]) {
        for op in ops {
            match op {
                Op::Delete(slot) => _ = self.ids.give_back(slot.id),
                Op::Create(slot) => _ = self.ids.take(slot.id),
                Op::Move { .. } | Op::SetFlags { .. } => {}
            }
        }
    }
}

/// How many ids are freed in advance when slots are joined to make room, so that
/// not each of the changes that follow has to.
const SPARE: u32 = 256;

/// How the regions of a VM are put into slots.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules<'a> {
    pub(super) limits: &'a Limits,
    pub(super) how: How,
    /// Whether slots that are there may be replaced for another region's sake.
    pub(super) may_replace: bool,
    /// Whether those of a region that the set names may, for its own.
    pub(super) may_rebuild: bool,
    /// Whether they are.
    pub(super) rebuilds: bool,
}

impl Rules<'_> {
    /// With the batch ioctl nobody notices that regions share a slot. Without,
    /// changing one of them is a hole in the others, and costs more than it
    /// would with a slot of its own.
    fn shares(&self) -> bool {
        matches!(self.how, How::Batch { .. })
    }
}

/// The part of the address space that a plan looks at.
struct Window {
    live: Vec<Slot>,
    wanted: Vec<Extent>,
    whole: bool,
}

/// A draft and one address space of it.
#[derive(Clone, Copy)]
pub(super) struct Planner<'a> {
    pub(super) draft: &'a Draft<'a>,
    pub(super) regions: &'a Regions,
    pub(super) slots: &'a SlotTable,
    pub(super) rules: Rules<'a>,
    pub(super) as_id: u16,
}

impl Planner<'_> {
    /// The plan for what the draft says of the address space.
    pub(super) fn plan(&self, space: &Space) -> Result<Plan, Error> {
        if let [edit] = &self.draft.edits[..] {
            if let Some(op) = one_call(edit, self.regions, self.slots, self.rules.limits, space) {
                return Ok(Plan { ops: vec![op], ..Plan::default() });
            }
        }
        if let Some(ops) = self.flips(space) {
            return Ok(Plan { ops, ..Plan::default() });
        }
        let widen = self.rules.limits.page_size;
        let mut window = if space.unsettled { self.whole() } else { self.window(0) };
        let mut result = self.plan_window(&window, space, 0);
        let missing = |result: &Result<Plan, PlanError>| match result {
            Err(PlanError::TooManySlots { needed, available }) if self.rules.may_replace => {
                needed.saturating_sub((*available).into())
            }
            _ => 0,
        };
        if missing(&result) > 0 && !window.whole {
            window = self.window(widen);
            result = self.plan_window(&window, space, 0);
        }
        // To look at all slots takes its time: not where that can't be enough.
        if missing(&result) > 0 && !window.whole && self.may_save(missing(&result)) {
            result = self.plan_window(&self.whole(), space, SPARE);
        }
        let is_short = matches!(result, Err(PlanError::TooManySlots { .. }));
        if is_short && self.rules.may_rebuild && !self.rules.rebuilds {
            // As a loop does it that has one slot for each region.
            let rules = Rules { rebuilds: true, ..self.rules };
            return Planner { rules, ..*self }.plan(space);
        }
        result.map_err(|error| match error {
            PlanError::TooManySlots { needed, available } => {
                let may_join = self.rules.may_replace;
                ErrorKind::TooManySlots { as_id: self.as_id, needed, available, may_join }.into()
            }
            // A draft does not let these through.
            error => ErrorKind::Internal(error.to_string()).into(),
        })
    }

    /// Whether so many slots may be saved by joining those that are there, whatever
    /// else keeps them apart.
    fn may_save(&self, slots: u64) -> bool {
        let mappings = || self.slots.iter().map(|slot| slot.mapping.with_kind(Kind::Ram));
        let pairs = mappings().zip(mappings().skip(1));
        let joined = pairs.filter(|(low, high)| low.joined(high).is_some());
        joined.take(slots as usize).count() as u64 == slots
    }

    fn plan_window(&self, window: &Window, space: &Space, spare: u32) -> Result<Plan, PlanError> {
        let Window { live, wanted, .. } = window;
        let limits = self.rules.limits;
        // What is out of place may have shared slots that are gone.
        let make_room = (self.rules.may_replace || space.unsettled).then_some(spare);
        plan(&Request { live, wanted, ids: &space.ids, limits, make_room })
    }

    /// The calls that do it, where regions change nothing but flags which KVM
    /// changes on a live slot, and each has one to itself: a migration's set.
    fn flips(&self, space: &Space) -> Option<Vec<Op>> {
        let Draft { edits, sorted, .. } = self.draft;
        // Who goes has no place among those that are sorted.
        if space.unsettled || sorted.len() < edits.len() {
            return None;
        }
        let mut ops = Vec::with_capacity(edits.len());
        for edit in sorted.iter().map(|at| &edits[*at]) {
            let now = edit.now.as_ref().filter(|_| !edit.rebuild)?;
            let stays = self.regions.range(edit.index?) == now.range();
            if now.as_id == self.as_id {
                let slot = self.slots.exactly(now.range()).filter(|_| stays)?;
                ops.push(flip(slot, now)?);
            }
        }
        Some(ops)
    }

    /// The slots that the edits touch, `widen` bytes around them, and all that is
    /// wanted where they are.
    fn window(&self, widen: u64) -> Window {
        let edits = &self.draft.edits;
        let there = self.regions.len(self.as_id) + self.slots.len();
        // Looking each range up costs more than looking at everything once.
        if edits.len() * 8 > there {
            return self.whole();
        }
        let touched = edits.iter().flat_map(|edit| self.touched(edit));
        let touched = joined(touched.filter_map(|range| widened(range, widen)).collect());
        let mut live: Vec<Slot> =
            touched.iter().flat_map(|range| self.slots.overlapping(*range)).collect();
        live.dedup();
        let slots = live.iter().map(|slot| slot.mapping.range());
        let ranges = joined(touched.iter().copied().chain(slots).collect());
        // A region may reach out of the window, over slots that stay: only the
        // part inside is planned. One that stands alone is in one slot, and so
        // either all inside or not at all.
        let mut wanted = Vec::new();
        for range in ranges {
            let from = wanted.len();
            self.wanted_in(range, &mut wanted);
            wanted[from..].sort_unstable_by_key(|extent: &Extent| extent.mapping.range());
        }
        self.join_parts(&mut wanted);
        Window { live, wanted, whole: false }
    }

    fn wanted_in(&self, range: Range, wanted: &mut Vec<Extent>) {
        let clipped =
            |extent: Extent| Some(Extent { mapping: extent.mapping.clipped_to(range)?, ..extent });
        let shares = self.rules.shares();
        let kept = self.regions.overlapping(self.as_id, range);
        let kept = kept.filter(|index| !self.draft.hides(*index));
        let kept = kept.filter_map(|index| self.regions.extent(index, shares));
        wanted.extend(kept.filter_map(clipped));
        let new = self.draft.overlapping(self.as_id, range);
        let new = new.filter_map(|(edit, record)| clipped(self.of_edit(edit, record)?));
        wanted.extend(new);
    }

    fn whole(&self) -> Window {
        let shares = self.rules.shares();
        let kept = self.regions.iter(self.as_id).filter(|index| !self.draft.hides(*index));
        let count = self.regions.len(self.as_id) + self.draft.edits.len();
        let mut wanted: Vec<Extent> = Vec::with_capacity(count);
        wanted.extend(kept.filter_map(|index| self.regions.extent(index, shares)));
        let old = wanted.len();
        let mine = self.draft.edits.iter().filter_map(|edit| Some((edit, edit.now.as_ref()?)));
        let mine = mine.filter(|(_, record)| record.as_id == self.as_id);
        wanted.extend(mine.filter_map(|(edit, record)| self.of_edit(edit, record)));
        if old > 0 || !wanted.is_sorted_by_key(|extent| extent.mapping.range()) {
            wanted.sort_by_key(|extent| extent.mapping.range());
        }
        self.join_parts(&mut wanted);
        let mut live = Vec::with_capacity(self.slots.len());
        live.extend(self.slots.iter());
        Window { live, wanted, whole: true }
    }

    /// Makes one of the parts of a region that was split which are alike: where they
    /// are to be joined, or were mapped by this set. `wanted` is sorted.
    fn join_parts(&self, wanted: &mut Vec<Extent>) {
        let edits = &self.draft.edits;
        let joins = |edit: &&Edit| edit.rebuild || edit.is_new && edit.is_part();
        if edits.iter().filter(joins).count() < 2 {
            return;
        }
        // What each run of parts was split from, the run as one, its length, and whether
        // it is to stand alone.
        let mut runs: Vec<(RegionId, Mapping, usize, bool)> = Vec::new();
        for edit in self.draft.sorted.iter().map(|at| &edits[*at]).filter(joins) {
            let record = edit.now.as_ref().filter(|now| now.as_id == self.as_id);
            let part = record.and_then(|record| record.extent(false));
            let part = part.filter(|part| !part.alone && part.mapping.guest_memfd().is_none());
            let (Some(part), Some(origin)) = (part, self.draft.origin(edit)) else { continue };
            let last = runs.last_mut().filter(|(of, ..)| *of == origin);
            let both = last.as_ref().and_then(|(_, run, ..)| run.joined(&part.mapping));
            let both = both.filter(|both| both.range().size() <= self.rules.limits.slot_bytes());
            match (last, both) {
                (Some((_, run, parts, alone)), Some(both)) => {
                    (*run, *parts, *alone) = (both, *parts + 1, *alone || edit.rebuild);
                }
                _ => runs.push((origin, part.mapping, 1, edit.rebuild)),
            }
        }
        for (_, mapping, _, alone) in runs.into_iter().filter(|(_, _, parts, _)| *parts > 1) {
            let inside = |extent: &Extent| mapping.range().overlaps(extent.mapping.range());
            let Some(from) = wanted.iter().position(inside) else { continue };
            let parts = wanted[from..].iter().take_while(|extent| inside(extent)).count();
            let extent = Extent { mapping, alone, ..wanted[from] };
            wanted.splice(from..from + parts, [extent]);
        }
    }

    fn of_edit(&self, edit: &Edit, record: &Record) -> Option<Extent> {
        let extent = record.extent(self.rules.shares())?;
        Some(Extent {
            // A slot that stands alone for a region holds all of it.
            alone: extent.alone || edit.rebuild || self.rebuilds(edit, record),
            whole: edit.is_new && !extent.joins,
            ..extent
        })
    }

    /// Whether a region that is there gets as few slots as can be, as they are
    /// short: one that shares them with nobody, and whose memory is the VMM's.
    fn rebuilds(&self, edit: &Edit, record: &Record) -> bool {
        let Some(index) = edit.index.filter(|_| self.rules.rebuilds) else { return false };
        let range = self.regions.range(index);
        let mut slots = self.slots.overlapping(range);
        let own =
            |slot: Slot| range.intersection(slot.mapping.range()) == Some(slot.mapping.range());
        record.mapping.guest_memfd().is_none() && slots.all(own)
    }

    /// The guest addresses that an edit is about, before and after.
    fn touched(&self, edit: &Edit) -> impl Iterator<Item = Range> + use<> {
        let mine = edit_space(edit, self.regions) == Some(self.as_id);
        let before = edit.index.map(|index| self.regions.range(index));
        let after = edit.now.as_ref().map(Record::range);
        [before, after].into_iter().flatten().filter(move |_| mine)
    }
}

/// The one call that does it, where one region changes which shares its slot
/// with nobody: what most sets of a running VM are. It comes to what the
/// planner would say, without the planner.
pub(super) fn one_call(
    edit: &Edit,
    regions: &Regions,
    slots: &SlotTable,
    limits: &Limits,
    space: &Space,
) -> Option<Op> {
    if space.unsettled || edit.rebuild {
        return None;
    }
    match (edit.index, &edit.now) {
        (None, Some(now)) => {
            let fits = now.range().size() <= limits.slot_bytes();
            if !fits || now.waits() || !slots.is_free(now.range()) {
                return None;
            }
            let id = space.ids.lowest_free()?;
            Some(Op::Create(Slot { id, mapping: now.mapping }))
        }
        (Some(index), now) => {
            let slot = slots.exactly(regions.range(index))?;
            now.as_ref().map_or(Some(Op::Delete(slot)), |now| flip(slot, now))
        }
        (None, None) => None,
    }
}

/// The change of flags that makes a slot what a region is to be, if that is all.
fn flip(slot: Slot, now: &Record) -> Option<Op> {
    const IN_PLACE: MemFlags = MemFlags::LOG_DIRTY_PAGES.union(MemFlags::TRAP);
    let flags = now.mapping.flags();
    let toggled = flags ^ slot.mapping.flags();
    let same = now.mapping.with_flags(slot.mapping.flags()) == slot.mapping;
    let flips = !toggled.is_empty() && IN_PLACE.contains(toggled) && !now.waits();
    (same && flips && slot.mapping.guest_memfd().is_none())
        .then_some(Op::SetFlags { from: slot, flags })
}

/// The address space that an edit is about.
pub(super) fn edit_space(edit: &Edit, regions: &Regions) -> Option<u16> {
    let now = edit.now.as_ref().map(|record| record.as_id);
    now.or_else(|| edit.index.map(|index| regions.as_id(index)))
}

fn widened(range: Range, by: u64) -> Option<Range> {
    Range::between(range.gpa().saturating_sub(by), range.end().saturating_add(by))
}

/// `ranges`, sorted, those that overlap or touch made one.
fn joined(mut ranges: Vec<Range>) -> Vec<Range> {
    if let [_] = ranges[..] {
        return ranges;
    }
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let joins = next.gpa() <= last.end();
        if let (true, Some(both)) = (joins, Range::between(last.gpa(), last.end().max(next.end())))
        {
            *last = both;
        }
        joins
    });
    ranges
}
