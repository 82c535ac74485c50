//! Reading the dirty logs of all regions in one pass.

use kvm_memslots_shim::{Range, bits};

use super::log::{Logged, no_memory, pages_of};
use crate::RegionId;
use crate::dirty::{DirtyBitmap, DirtyPages};
use crate::error::{Error, ErrorKind};
use crate::vm::{Panics, Regions, Tables, Vm};

impl Vm {
    /// The dirty pages of all logged regions that have any, with one
    /// `KVM_GET_DIRTY_LOG` a slot: as [`dirty_log`](Self::dirty_log) of each.
    ///
    /// # Errors
    /// [`ErrorKind::DirtyLog`], [`ErrorKind::Forked`]. What was read by then is
    /// reported by the next call.
    pub fn dirty_logs(&self) -> Result<Vec<(RegionId, DirtyBitmap)>, Error> {
        let (mut all, mut panics) = (Vec::new(), Panics::default());
        let keep = |id, pages: DirtyPages<'_>| all.push((id, pages.to_bitmap()));
        if let Err(error) = self.read_all(&mut panics, keep) {
            for (id, dirty) in all {
                self.give_back(id, dirty.words(), 0, dirty.pages());
            }
            panics.resume();
            return Err(error);
        }
        Ok(all)
    }

    /// The same without a copy for each: calls `f` with each logged region that
    /// has dirty pages, and these, by address space and guest address. No lock is
    /// held meanwhile; a region that is mapped or moves meanwhile may be left
    /// out.
    ///
    /// # Errors
    /// [`ErrorKind::DirtyLog`], [`ErrorKind::Forked`]. What `f` was not called for
    /// is reported by the next call; so it is where `f` panics.
    pub fn for_each_dirty_log(&self, f: impl FnMut(RegionId, DirtyPages<'_>)) -> Result<(), Error> {
        let mut panics = Panics::default();
        let result = self.read_all(&mut panics, f);
        panics.resume();
        result
    }

    fn read_all(
        &self,
        panics: &mut Panics,
        mut f: impl FnMut(RegionId, DirtyPages<'_>),
    ) -> Result<(), Error> {
        let mut found = Found::default();
        (0..self.limits().address_spaces)
            .try_for_each(|as_id| self.read_space(as_id, &mut found, panics, &mut f))
    }

    /// The same of one address space: the slots of others are not read.
    ///
    /// # Errors
    /// As there, and [`ErrorKind::NoSuchAddressSpace`].
    pub fn for_each_dirty_log_in(
        &self,
        as_id: u16,
        mut f: impl FnMut(RegionId, DirtyPages<'_>),
    ) -> Result<(), Error> {
        let available = self.limits().address_spaces;
        if as_id >= available {
            return Err(ErrorKind::NoSuchAddressSpace { asked: as_id, available }.into());
        }
        let mut panics = Panics::default();
        let result = self.read_space(as_id, &mut Found::default(), &mut panics, &mut f);
        panics.resume();
        result
    }

    fn read_space(
        &self,
        as_id: u16,
        found: &mut Found,
        panics: &mut Panics,
        f: &mut impl FnMut(RegionId, DirtyPages<'_>),
    ) -> Result<(), Error> {
        let mut from = Some(0);
        while let Some(gpa) = from {
            from = self.read_next(as_id, gpa, found, panics)?;
            self.hand_out(found, f);
        }
        Ok(())
    }

    /// Reads the log of the next slot from `gpa` on, and finds out whose pages are
    /// dirty; says where to go on. Regions without a slot are found along the
    /// way.
    fn read_next(
        &self,
        as_id: u16,
        gpa: u64,
        found: &mut Found,
        panics: &mut Panics,
    ) -> Result<Option<u64>, Error> {
        found.clear();
        let state = &mut *self.dirty_of_this_process()?;
        let Some(rest) = Range::between(gpa, u64::MAX) else { return Ok(None) };
        let page_size = self.limits().page_size;
        // Nobody who looks something up waits while KVM is asked.
        let (slot, plain) = {
            let Tables { regions, slots, .. } = &*self.tables();
            let mut slots = slots[usize::from(as_id)].overlapping(rest);
            let slot = slots.find(|slot| slot.mapping.is_logged());
            // What has bits of its own, or goes on in another slot, takes longer.
            let plain = state.overlay(as_id).is_empty()
                && regions.deferrable().next().is_none()
                && slot.is_some_and(|slot| regions.fits(as_id, slot.mapping.range()));
            (slot, plain)
        };
        if let (Some(slot), true) = (&slot, plain) {
            let range = slot.mapping.range();
            let scan = |_: &mut _, log: &[u64]| {
                found.scan(&self.tables().regions, as_id, range, log, page_size);
            };
            self.read_slot(state, as_id, slot, panics, scan)?;
            return Ok(Some(range.end()));
        }
        if let Some(slot) = &slot {
            let (gfn, pages) = pages_of(slot.mapping.range(), page_size);
            self.read_slot(state, as_id, slot, panics, |state, log| {
                state.overlay(as_id).or(gfn, log, 0, pages);
            })?;
        }
        let tables = &*self.tables();
        let regions = &tables.regions;
        // Regions before the slot that wait for one, then those in it.
        let end = slot.map_or(u64::MAX, |slot| slot.mapping.range().end());
        let until = Range::between(gpa, end).unwrap_or(rest);
        for index in regions.overlapping(as_id, until) {
            let (mapping, id) = (regions.mapping(index), regions.id(index));
            // A region that goes on in another slot comes with its last one.
            if !mapping.is_logged() || slot.is_some() && mapping.range().end() > end {
                continue;
            }
            let deferrable = regions.is_deferrable(index).then_some(id);
            let logged = Logged { as_id, range: mapping.range(), deferrable };
            self.harvest_served(&logged, state);
            let (gfn, pages) = logged.gfn(page_size);
            let overlay = state.overlay(as_id);
            if overlay.any(gfn, pages) {
                if found.words.try_reserve(pages.div_ceil(64) as usize).is_err() {
                    return Err(no_memory(tables, id, pages));
                }
                overlay.copy_to(gfn, found.room_for(id, pages), pages);
                if !self.manual_dirty_log {
                    overlay.clear(gfn, pages);
                }
            }
        }
        Ok(slot.map(|slot| slot.mapping.range().end()))
    }

    /// Calls `f`; what it was not called for goes into the overlay.
    fn hand_out(&self, found: &Found, f: &mut impl FnMut(RegionId, DirtyPages<'_>)) {
        let mut panics = Panics::default();
        let mut done = 0;
        panics.catch(|| {
            for part in &found.parts {
                f(part.id, DirtyPages::new(&found.words, part.at, part.pages));
                done += 1;
            }
        });
        for part in &found.parts[done..] {
            self.give_back(part.id, &found.words, part.at, part.pages);
        }
        panics.resume();
    }

    /// Keeps dirty pages of a region that nobody has taken, wherever it is by now.
    fn give_back(&self, id: RegionId, words: &[u64], at: u64, pages: u64) {
        let state = &mut *self.dirty();
        // Nobody can ask for those of one that is gone.
        let Ok(logged) = self.logged(&self.tables(), id, None) else { return };
        // What was split off meanwhile lies behind it, unless that has moved, too.
        let (gfn, _) = logged.gfn(self.limits().page_size);
        state.overlay(logged.as_id).or(gfn, words, at, pages);
    }
}

/// Regions with dirty pages, and these, one behind the other.
#[derive(Default)]
struct Found {
    parts: Vec<FoundPart>,
    words: Vec<u64>,
}

struct FoundPart {
    id: RegionId,
    /// Where in the words, in bits.
    at: u64,
    pages: u64,
}

impl Found {
    fn clear(&mut self) {
        self.parts.clear();
        self.words.clear();
    }

    /// Room for the bits of a region.
    fn room_for(&mut self, id: RegionId, pages: u64) -> &mut [u64] {
        let from = self.words.len();
        self.words.resize(from + pages.div_ceil(64) as usize, 0);
        self.parts.push(FoundPart { id, at: from as u64 * 64, pages });
        &mut self.words[from..]
    }

    /// Finds the regions of what is set in the log of a slot. Where nothing is,
    /// no region is looked at.
    fn scan(&mut self, regions: &Regions, as_id: u16, slot: Range, log: &[u64], page_size: u64) {
        let (first, pages) = pages_of(slot, page_size);
        let mut page = 0;
        while let Some(dirty) = bits::first(log, page, pages.saturating_sub(page)) {
            let gfn = first + dirty;
            let Some(index) = regions.at(as_id, gfn * page_size) else {
                // Of no region: nobody asks.
                page = dirty + 1;
                continue;
            };
            let (start, count) = pages_of(regions.range(index), page_size);
            let words = self.room_for(regions.id(index), count);
            bits::copy(words, 0, log, start - first, count);
            page = start - first + count;
        }
    }
}
