//! Random layouts and plans.

use std::collections::BTreeMap;

use kvm_memslots_shim::memory::{Carry, Extent, Op, Plan, Request, plan};
use kvm_memslots_shim::{MemFlags, Range, Slot, SlotIds};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::script::{PAGE, limits, mapping, range};

/// Guest pages that are played with.
pub(crate) const PAGES: u64 = 160;
const NATIVE: u64 = 0x7f00_0000_0000;
const FRESH: u64 = 0x6000_0000_0000;

/// A layout and a plan that KVM carries out on it, change by change.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) start: Vec<Slot>,
    pub(crate) plan: Plan,
    /// Pages that are written to before the plan begins.
    pub(crate) written: Vec<u64>,
    /// Pages that are written to before each call.
    pub(crate) writes: Vec<Vec<u64>>,
}

/// Any changes in any order, also several of one slot: more than the planner
/// ever asks for. `holes` is whether the plan says that it opens one.
pub(crate) fn any_changes(holes: bool) -> impl Strategy<Value = World> {
    (vec(any::<Choice>(), 1..8), vec(any::<Choice>(), 1..12), guest()).prop_filter_map(
        "nothing to do",
        move |(start, changes, (written, writes))| {
            let mut layout = Layout::default();
            for choice in start {
                layout.create(choice);
            }
            let start = layout.slots();
            let ops: Vec<Op> =
                changes.into_iter().flat_map(|choice| layout.change(choice)).collect();
            let mut plan = Plan { ops, ..Plan::default() };
            if holes {
                plan.holes = vec![range(0, PAGE)];
                plan.carries = carries(&start, &plan.ops);
            }
            (!plan.ops.is_empty()).then_some(World { start, plan, written, writes })
        },
    )
}

/// What the planner makes of one random layout that is to become another.
pub(crate) fn planned() -> impl Strategy<Value = World> {
    (vec(any::<Choice>(), 1..8), vec(any::<Choice>(), 1..8), guest()).prop_filter_map(
        "nothing to do",
        |(start, wanted, (written, writes))| {
            let mut layout = Layout::default();
            for choice in start {
                layout.create(choice);
            }
            let start = layout.slots();
            // Other boundaries over the same host memory, mostly.
            let mut layout = Layout::default();
            for choice in wanted {
                layout.create(choice);
            }
            let wanted: Vec<Extent> = layout
                .slots()
                .into_iter()
                .map(|slot| Extent {
                    whole: slot.id % 7 == 0,
                    ..Extent::of(slot.mapping, slot.id % 3 == 0, slot.id % 5 != 0)
                })
                .collect();
            let mut ids = SlotIds::new(limits().slots);
            for slot in &start {
                assert!(ids.take(slot.id));
            }
            let limits = limits();
            let request = Request {
                live: &start,
                wanted: &wanted,
                ids: &ids,
                limits: &limits,
                make_room: None,
            };
            let plan = plan(&request).unwrap();
            (!plan.ops.is_empty()).then_some(World { start, plan, written, writes })
        },
    )
}

type Choice = (u8, u16, u16, bool);

fn guest() -> impl Strategy<Value = (Vec<u64>, Vec<Vec<u64>>)> {
    (vec(0..PAGES, 0..40), vec(vec(0..PAGES, 0..6), 0..20))
}

/// Parts of the slots that are deleted, as if other slots took them over.
fn carries(start: &[Slot], ops: &[Op]) -> Vec<Carry> {
    let deleted = ops.iter().filter_map(|op| match op {
        Op::Delete(slot) if slot.mapping.is_logged() && start.contains(slot) => Some(*slot),
        _ => None,
    });
    deleted
        .flat_map(|slot| {
            let (gpa, size) = (slot.mapping.range().gpa(), slot.mapping.range().size());
            let split = size / PAGE / 2 * PAGE;
            let parts = [Range::new(gpa, split), Range::new(gpa + split, size - split)];
            parts.into_iter().flatten().map(move |range| Carry { slot, range })
        })
        .collect()
}

/// Slots as a list of changes has left them.
#[derive(Debug, Default)]
struct Layout {
    slots: BTreeMap<u16, Slot>,
    fresh: u64,
}

impl Layout {
    fn slots(&self) -> Vec<Slot> {
        let mut slots: Vec<Slot> = self.slots.values().copied().collect();
        slots.sort_by_key(|slot| slot.mapping.range());
        slots
    }

    fn change(&mut self, choice: Choice) -> Vec<Op> {
        let (kind, which, to, logged) = choice;
        let slot = self.slots.values().nth(usize::from(which) % self.slots.len().max(1)).copied();
        let op = match (kind % 5, slot) {
            (0, _) | (_, None) => self.create(choice),
            (1, Some(slot)) => Some(self.apply(Op::Delete(slot))),
            (2, Some(from)) => self.slide(from, u64::from(to) % PAGES * PAGE),
            (3, Some(from)) => {
                let flags = from.mapping.flags() ^ MemFlags::LOG_DIRTY_PAGES;
                Some(self.apply(Op::SetFlags { from, flags }))
            }
            (_, Some(slot)) => return self.replace(slot, u64::from(to), logged),
        };
        op.into_iter().collect()
    }

    /// The same memory in two slots.
    fn replace(&mut self, slot: Slot, at: u64, logged: bool) -> Vec<Op> {
        let (gpa, size) = (slot.mapping.range().gpa(), slot.mapping.range().size());
        let split = at % (size / PAGE) * PAGE;
        let mut ops = vec![self.apply(Op::Delete(slot))];
        for part in [Range::new(gpa, split), Range::new(gpa + split, size - split)] {
            let part = part.and_then(|part| slot.mapping.clipped_to(part));
            let Some(mapping) = part else { continue };
            let mapping = mapping.with_flags(flags(logged));
            ops.push(self.apply(Op::Create(Slot { id: self.free_id(), mapping })));
        }
        ops
    }

    fn create(&mut self, (_, at, size, logged): Choice) -> Option<Op> {
        let gpa = u64::from(at) % PAGES * PAGE;
        let size = (1 + u64::from(size) % 70).min(PAGES - gpa / PAGE) * PAGE;
        if self.overlaps(range(gpa, size), None) {
            return None;
        }
        let mut made = mapping(gpa, size, NATIVE + gpa);
        let used = |slot: &Slot| {
            let hva = slot.mapping.hva();
            range(hva, slot.mapping.range().size()).overlaps(range(made.hva(), size))
        };
        // No host page is mapped twice: what one slot's log says of it would
        // not be all there is.
        if self.slots.values().any(used) {
            self.fresh += PAGES * PAGE;
            made = mapping(gpa, size, FRESH + self.fresh);
        }
        let mapping = made.with_flags(flags(logged));
        Some(self.apply(Op::Create(Slot { id: self.free_id(), mapping })))
    }

    fn slide(&mut self, from: Slot, gpa: u64) -> Option<Op> {
        let to = range(gpa, from.mapping.range().size());
        let stays = gpa == from.mapping.range().gpa();
        let free = !stays && to.end() <= PAGES * PAGE && !self.overlaps(to, Some(from.id));
        free.then(|| self.apply(Op::Move { from, gpa }))
    }

    fn apply(&mut self, op: Op) -> Op {
        match op.after() {
            Some(slot) => self.slots.insert(slot.id, slot),
            None => self.slots.remove(&op.slot_id()),
        };
        op
    }

    fn overlaps(&self, range: Range, but: Option<u16>) -> bool {
        let mut others = self.slots.values().filter(|slot| Some(slot.id) != but);
        others.any(|slot| slot.mapping.range().overlaps(range))
    }

    fn free_id(&self) -> u16 {
        (0..=u16::MAX).find(|id| !self.slots.contains_key(id)).unwrap()
    }
}

fn flags(logged: bool) -> MemFlags {
    if logged { MemFlags::LOG_DIRTY_PAGES } else { MemFlags::empty() }
}
