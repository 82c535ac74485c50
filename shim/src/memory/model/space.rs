//! The slots of one address space, by id and by guest address.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bitmap::Bitmap;
use crate::mapping::Slot;
use crate::range::Range;

/// A live slot (`struct kvm_memory_slot`).
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) slot: Slot,
    /// Shared with the journal of a batch, which may have to put it back.
    pub(super) dirty: Option<Arc<Bitmap>>,
}

/// The live slots of one address space (`struct kvm_memslots`). No two
/// overlap.
#[derive(Debug, Clone, Default)]
pub(super) struct Space {
    by_id: BTreeMap<u16, Live>,
    id_by_gpa: BTreeMap<u64, u16>,
}

impl Space {
    /// `id_to_memslot()`.
    pub(super) fn get(&self, id: u16) -> Option<&Live> {
        self.by_id.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: u16) -> Option<&mut Live> {
        self.by_id.get_mut(&id)
    }

    /// Puts `new` where slot `id` was, or takes the slot away; returns what was
    /// there. The caller has checked that `new` overlaps nothing else
    /// (`kvm_replace_memslot()`).
    pub(super) fn replace(&mut self, id: u16, new: Option<Live>) -> Option<Live> {
        let old = self.by_id.remove(&id);
        if let Some(old) = &old {
            self.id_by_gpa.remove(&old.slot.mapping.range().gpa());
        }
        if let Some(new) = new {
            self.id_by_gpa.insert(new.slot.mapping.range().gpa(), id);
            self.by_id.insert(id, new);
        }
        old
    }

    /// The slot at `gpa` (`gfn_to_memslot()`).
    pub(super) fn at(&self, gpa: u64) -> Option<&Live> {
        let live = self.last_from(gpa)?;
        (gpa < live.slot.mapping.range().end()).then_some(live)
    }

    /// The guest address at which the first slot behind `gpa` starts.
    pub(super) fn next_start(&self, gpa: u64) -> Option<u64> {
        let above = gpa.checked_add(1)?;
        self.id_by_gpa.range(above..).next().map(|(start, _)| *start)
    }

    /// Whether a slot other than `id` has an address in `range`
    /// (`kvm_check_memslot_overlap()`).
    pub(super) fn overlaps(&self, id: u16, range: Range) -> bool {
        // Live slots are disjoint: of those that start below the end of the
        // range, the highest reaches furthest, `id` itself aside.
        self.id_by_gpa
            .range(..range.end())
            .rev()
            .map(|(_, other)| *other)
            .find(|other| *other != id)
            .and_then(|other| self.get(other))
            .is_some_and(|other| other.slot.mapping.range().overlaps(range))
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// By guest address.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Live> {
        self.id_by_gpa.values().filter_map(|id| self.get(*id))
    }

    /// The slot with the highest start at or below `gpa`.
    fn last_from(&self, gpa: u64) -> Option<&Live> {
        let (_, id) = self.id_by_gpa.range(..=gpa).next_back()?;
        self.get(*id)
    }
}
