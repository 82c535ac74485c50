//! What becomes of dirty pages when their slots change.

use kvm_memslots_shim::{Mapping, Range, Slot};

use super::log::{no_memory, pages_of};
use crate::dirty::{DirtyBitmap, DirtyState};
use crate::error::Error;
use crate::vm::prepare::Before;
use crate::vm::{Panics, Vm};

impl Vm {
    /// Reads the logs of what is about to be unmapped, before it is.
    pub(in crate::vm) fn read_last(
        &self,
        state: &mut DirtyState,
        gone: impl Iterator<Item = (u16, Range)>,
        panics: &mut Panics,
    ) {
        let mut read: Vec<(u16, u16)> = Vec::new();
        for (as_id, range) in gone {
            let slots: Vec<Slot> = {
                let tables = self.tables();
                tables.slots[usize::from(as_id)].overlapping(range).collect()
            };
            for slot in slots.into_iter().filter(|slot| slot.mapping.is_logged()) {
                if read.contains(&(as_id, slot.id)) {
                    continue;
                }
                read.push((as_id, slot.id));
                let (gfn, pages) = pages_of(slot.mapping.range(), self.limits().page_size);
                let keep = |state: &mut DirtyState, log: &[u64]| {
                    state.overlay(as_id).or(gfn, log, 0, pages);
                };
                if self.read_slot(state, as_id, &slot, panics, keep).is_err() {
                    state.overlay(as_id).set(gfn, pages);
                }
            }
        }
    }

    /// Room for the last dirty pages of a region, before it is too late to say
    /// that there is none. `None` where it goes: nothing is to hold it.
    pub(in crate::vm) fn room_for_last(
        &self,
        before: &Before,
    ) -> Result<Option<DirtyBitmap>, Error> {
        let (_, pages) = pages_of(before.mapping.range(), self.limits().page_size);
        let pages = if before.gone.is_some() || before.moves_to.is_some() { pages } else { 0 };
        match DirtyBitmap::try_new(pages) {
            Ok(room) => Ok(Some(room)),
            Err(_) if before.gone.is_some() => Ok(None),
            Err(_) => Err(no_memory(&self.tables(), before.id, pages)),
        }
    }

    /// Takes the pages of a region that the overlay has.
    pub(in crate::vm) fn take_last(
        &self,
        state: &mut DirtyState,
        before: &Before,
        mut room: DirtyBitmap,
    ) -> DirtyBitmap {
        let (gfn, pages) = pages_of(before.mapping.range(), self.limits().page_size);
        state.overlay(before.as_id).copy_to(gfn, room.words_mut(), pages);
        room
    }

    /// Notes that the first pages of what is at `range` are dirty: those that are
    /// in `pages`, or all there are.
    pub(in crate::vm) fn mark(
        &self,
        state: &mut DirtyState,
        as_id: u16,
        range: Range,
        pages: Option<&DirtyBitmap>,
    ) {
        let (gfn, count) = pages_of(range, self.limits().page_size);
        let overlay = state.overlay(as_id);
        match pages {
            Some(pages) => overlay.or(gfn, pages.words(), 0, count.min(pages.pages())),
            None => overlay.set(gfn, count),
        }
    }

    /// Forgets dirty pages that nobody can ask for any more: of memory that is
    /// gone, or not logged any more.
    pub(in crate::vm) fn forget_dirty(&self, state: &mut DirtyState, as_id: u16, before: &Mapping) {
        let overlay = state.overlay(as_id);
        if overlay.is_empty() {
            return;
        }
        let page_size = self.limits().page_size;
        let tables = self.tables();
        let now = tables.regions.overlapping(as_id, before.range());
        let kept = now
            .map(|index| tables.regions.mapping(index))
            .filter(|now| now.is_logged() && now.same_host_pages_as(before))
            .map(|now| now.range());
        let mut from = before.range().gpa();
        let mut forget = |from: u64, to: u64| {
            if from < to {
                overlay.clear(from / page_size, (to - from) / page_size);
            }
        };
        for range in kept {
            forget(from, range.gpa());
            from = range.end();
        }
        forget(from, before.range().end());
    }
}
