//! Reading and clearing the dirty logs of regions.

use std::ops::Range as Pages;

use kvm_memslots_shim::{Errno, Mapping, Range, Slot, bits};

use super::{DirtyPages, DirtyState};
use crate::error::{Error, ErrorKind};
use crate::vm::{Panics, Record, Regions, Tables, Vm};
use crate::{DirtyBitmap, RegionId};

/// A logged region, or the part of it that was asked for.
struct Logged {
    as_id: u16,
    range: Range,
    /// Its name, if it may have been served writes.
    deferrable: Option<RegionId>,
}

impl Logged {
    fn gfn(&self, page_size: u64) -> (u64, u64) {
        (self.range.gpa() / page_size, self.range.size() / page_size)
    }
}

impl Vm {
    /// The pages of a region that the guest wrote since the last call, as
    /// `KVM_GET_DIRTY_LOG` would report them for a slot of its own. Afterwards
    /// the log is empty, unless the VM was opened with
    /// [`manual_dirty_log`](crate::Builder::manual_dirty_log).
    ///
    /// With a dirty ring, what the VMM has not from there: pages of slots that
    /// were replaced, and writes that were served to
    /// [deferrable](crate::RegionSpec::deferrable) regions.
    ///
    /// Waits for changes of logged memory, and for another that reads a log; not
    /// for others.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownRegion`], [`ErrorKind::NotLogged`],
    /// [`ErrorKind::DirtyLog`]. Nothing is lost then.
    pub fn dirty_log(&self, id: RegionId) -> Result<DirtyBitmap, Error> {
        self.read(id, None)
    }

    /// The same of some pages of a region: bit 0 is the first of `pages`.
    ///
    /// # Errors
    /// As there, and [`ErrorKind::NoSuchPages`].
    pub fn dirty_log_of(&self, id: RegionId, pages: Pages<u64>) -> Result<DirtyBitmap, Error> {
        self.read(id, Some(&pages))
    }

    fn read(&self, id: RegionId, pages: Option<&Pages<u64>>) -> Result<DirtyBitmap, Error> {
        let state = &mut *self.dirty();
        let tables = &*self.tables();
        let logged = self.logged(tables, id, pages)?;
        let (gfn, pages) = logged.gfn(self.limits().page_size);
        self.harvest_served(&logged, state);
        let mut dirty = DirtyBitmap::new(pages);
        // What is read goes into the overlay where it is of others, or if a
        // later slot of this region can't be read.
        let mut read = Ok(());
        for slot in tables.slots[usize::from(logged.as_id)].overlapping(logged.range) {
            if let Err(errno) = self.read_slot(state, logged.as_id, &slot) {
                read = match errno {
                    // A dirty ring: what it holds, only the VMM knows.
                    Errno::ENXIO => continue,
                    errno => Err(ErrorKind::DirtyLog { slot, errno }.into()),
                };
                break;
            }
            self.share_out(state, &logged, &slot, &mut dirty);
        }
        let overlay = state.overlay(logged.as_id);
        if let Err(error) = read {
            overlay.or(gfn, dirty.words(), 0, pages);
            return Err(error);
        }
        overlay.copy_to(gfn, dirty.words_mut(), pages);
        if !self.manual_dirty_log {
            overlay.clear(gfn, pages);
        }
        Ok(dirty)
    }

    /// The dirty pages of all logged regions that have any, with one
    /// `KVM_GET_DIRTY_LOG` a slot: as [`dirty_log`](Self::dirty_log) of each.
    ///
    /// # Errors
    /// [`ErrorKind::DirtyLog`]. What was read by then is reported by the next
    /// call.
    pub fn dirty_logs(&self) -> Result<Vec<(RegionId, DirtyBitmap)>, Error> {
        let mut all = Vec::new();
        let result = self.for_each_dirty_log(|id, pages| all.push((id, pages.to_bitmap())));
        if let Err(error) = result {
            let state = &mut *self.dirty();
            let tables = &*self.tables();
            for (id, dirty) in all {
                if let Ok(logged) = self.logged(tables, id, None) {
                    let (gfn, pages) = logged.gfn(self.limits().page_size);
                    let pages = pages.min(dirty.pages());
                    state.overlay(logged.as_id).or(gfn, dirty.words(), 0, pages);
                }
            }
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
    /// [`ErrorKind::DirtyLog`]. What `f` was not called for is reported by the
    /// next call; so it is where `f` panics.
    pub fn for_each_dirty_log(
        &self,
        mut f: impl FnMut(RegionId, DirtyPages<'_>),
    ) -> Result<(), Error> {
        let mut found = Found::default();
        for as_id in 0..self.limits().address_spaces {
            let mut from = Some(0);
            while let Some(gpa) = from {
                from = self.read_next(as_id, gpa, &mut found)?;
                self.hand_out(as_id, &found, &mut f);
            }
        }
        Ok(())
    }

    /// Reads the log of the next slot from `gpa` on, and finds out whose pages are
    /// dirty; says where to go on. Regions without a slot are found along the
    /// way.
    fn read_next(&self, as_id: u16, gpa: u64, found: &mut Found) -> Result<Option<u64>, Error> {
        found.clear();
        let state = &mut *self.dirty();
        let tables = &*self.tables();
        let Some(rest) = Range::between(gpa, u64::MAX) else { return Ok(None) };
        let slots = &tables.slots[usize::from(as_id)];
        let slot = slots.overlapping(rest).find(|slot| slot.mapping.is_logged());
        let page_size = self.limits().page_size;
        let regions = &tables.regions;
        // What has bits of its own, or goes on in another slot, takes longer.
        let plain = state.overlay(as_id).is_empty()
            && regions.deferrable().next().is_none()
            && slot.is_some_and(|slot| regions.fits(as_id, slot.mapping.range()));
        if let (Some(slot), true) = (&slot, plain) {
            let range = slot.mapping.range();
            let mut look = |bits: &[u64]| found.scan(regions, as_id, range, bits, page_size);
            let read = self.calls().look_at_dirty_log(as_id, slot, &mut look);
            if let Some(errno) = read.err().filter(|errno| *errno != Errno::ENXIO) {
                lost_log(state, as_id, slot, errno, page_size);
                return Err(ErrorKind::DirtyLog { slot: *slot, errno }.into());
            }
            return Ok(Some(range.end()));
        }
        if let Some(slot) = &slot {
            let (gfn, pages) = pages_of(slot.mapping.range(), page_size);
            match self.read_slot(state, as_id, slot) {
                Ok(()) => {
                    let words = std::mem::take(&mut state.scratch);
                    state.overlay(as_id).or(gfn, &words, 0, pages);
                    state.scratch = words;
                }
                Err(Errno::ENXIO) => {}
                Err(errno) => return Err(ErrorKind::DirtyLog { slot: *slot, errno }.into()),
            }
        }
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
                overlay.copy_to(gfn, found.room_for(id, gfn, pages), pages);
                if !self.manual_dirty_log {
                    overlay.clear(gfn, pages);
                }
            }
        }
        Ok(slot.map(|slot| slot.mapping.range().end()))
    }

    /// Calls `f`; what it was not called for goes into the overlay.
    fn hand_out(&self, as_id: u16, found: &Found, f: &mut impl FnMut(RegionId, DirtyPages<'_>)) {
        let mut panics = Panics::default();
        let mut done = 0;
        panics.catch(|| {
            for part in &found.parts {
                f(part.id, DirtyPages::new(&found.words, part.at, part.pages));
                done += 1;
            }
        });
        for part in &found.parts[done..] {
            self.dirty().overlay(as_id).or(part.gfn, &found.words, part.at, part.pages);
        }
        panics.resume();
    }

    /// Forgets the pages of the region that are set in `dirty`, whose first bit
    /// is page `first` of the region, as `KVM_CLEAR_DIRTY_LOG` does: the second
    /// half of a manually protected dirty log.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchPages`], [`ErrorKind::NotLogged`],
    /// [`ErrorKind::DirtyLog`], [`ErrorKind::UnknownRegion`].
    pub fn clear_dirty_log(
        &self,
        id: RegionId,
        first: u64,
        dirty: &DirtyBitmap,
    ) -> Result<(), Error> {
        let state = &mut *self.dirty();
        let tables = &*self.tables();
        let pages = first..first.saturating_add(dirty.pages());
        let logged = self.logged(tables, id, Some(&pages))?;
        for slot in tables.slots[usize::from(logged.as_id)].overlapping(logged.range) {
            match self.clear_slot(state, &logged, &slot, dirty) {
                // A dirty ring: what is cleared is what the overlay has.
                Ok(()) | Err(Errno::ENXIO) => {}
                Err(errno) => return Err(ErrorKind::DirtyLog { slot, errno }.into()),
            }
        }
        let (gfn, pages) = logged.gfn(self.limits().page_size);
        state.overlay(logged.as_id).and_not(gfn, dirty.words(), pages);
        Ok(())
    }

    fn logged(
        &self,
        tables: &Tables,
        id: RegionId,
        pages: Option<&Pages<u64>>,
    ) -> Result<Logged, Error> {
        let index = tables.regions.find(id).ok_or(ErrorKind::UnknownRegion { id })?;
        let record: Record = tables.regions.record(index);
        let described = || record.described(id);
        if !record.mapping.is_logged() {
            return Err(ErrorKind::NotLogged { region: described() }.into());
        }
        let page_size = self.limits().page_size;
        let whole = record.range();
        let range = match pages {
            None => whole,
            Some(&Pages { start, end }) => {
                let pages = whole.size() / page_size;
                let part = || {
                    let (first, last) =
                        (start.checked_mul(page_size)?, end.checked_mul(page_size)?);
                    Range::between(whole.gpa().checked_add(first)?, whole.gpa().checked_add(last)?)
                };
                let Some(range) = part().filter(|_| end <= pages) else {
                    let region = described();
                    return Err(ErrorKind::NoSuchPages { region, first: start, end, pages }.into());
                };
                range
            }
        };
        let deferrable = tables.regions.is_deferrable(index).then_some(id);
        Ok(Logged { as_id: record.as_id, range, deferrable })
    }

    /// Reads the log of a slot into the scratch buffer.
    fn read_slot(&self, state: &mut DirtyState, as_id: u16, slot: &Slot) -> Result<(), Errno> {
        let page_size = self.limits().page_size;
        let pages = slot.mapping.range().size() / page_size;
        state.scratch.clear();
        state.scratch.resize(pages.div_ceil(64) as usize, 0);
        self.calls().dirty_log(as_id, slot, &mut state.scratch).inspect_err(|errno| {
            lost_log(state, as_id, slot, *errno, page_size);
        })
    }

    /// Of a slot's log that was read, what is in the range asked for goes into
    /// `dirty`, the rest into the overlay.
    fn share_out(
        &self,
        state: &mut DirtyState,
        logged: &Logged,
        slot: &Slot,
        dirty: &mut DirtyBitmap,
    ) {
        let page_size = self.limits().page_size;
        let whole = slot.mapping.range();
        let Some(shared) = whole.intersection(logged.range) else { return };
        let pages = whole.size() / page_size;
        let first = (shared.gpa() - whole.gpa()) / page_size;
        let count = shared.size() / page_size;
        let to = (shared.gpa() - logged.range.gpa()) / page_size;
        let words = std::mem::take(&mut state.scratch);
        bits::or(dirty.words_mut(), to, &words, first, count);
        let (gfn, behind) = (whole.gpa() / page_size, first + count);
        let overlay = state.overlay(logged.as_id);
        overlay.or(gfn, &words, 0, first);
        overlay.or(gfn + behind, &words, behind, pages - behind);
        state.scratch = words;
    }

    /// Clears those pages of `slot` that are in the range and set in `dirty`.
    /// KVM wants whole words of the slot's bitmap: bits of neighbours are left
    /// 0, which leaves their pages alone.
    fn clear_slot(
        &self,
        state: &mut DirtyState,
        logged: &Logged,
        slot: &Slot,
        dirty: &DirtyBitmap,
    ) -> Result<(), Errno> {
        let page_size = self.limits().page_size;
        let whole = slot.mapping.range();
        let Some(shared) = whole.intersection(logged.range) else { return Ok(()) };
        let first = (shared.gpa() - whole.gpa()) / page_size;
        let end = first + shared.size() / page_size;
        let (word, end_word) = (first / 64, end.div_ceil(64));
        state.scratch.clear();
        state.scratch.resize((end_word - word) as usize, 0);
        let from = (shared.gpa() - logged.range.gpa()) / page_size;
        bits::or(&mut state.scratch, first % 64, dirty.words(), from, end - first);
        let pages = (end_word * 64).min(whole.size() / page_size) - word * 64;
        self.calls().clear_dirty_log(logged.as_id, slot, word * 64, pages as u32, &state.scratch)
    }

    /// Reads the logs of what is about to be unmapped, before it is.
    pub(crate) fn read_last(
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
                let page_size = self.limits().page_size;
                let whole = slot.mapping.range();
                let (gfn, pages) = (whole.gpa() / page_size, whole.size() / page_size);
                let answer = panics.catch(|| self.read_slot(state, as_id, &slot));
                let words = std::mem::take(&mut state.scratch);
                match answer {
                    Some(Ok(())) => state.overlay(as_id).or(gfn, &words, 0, pages),
                    // A dirty ring: what it holds, only the VMM knows.
                    Some(Err(Errno::ENXIO)) => {}
                    _ => state.overlay(as_id).set(gfn, pages),
                }
                state.scratch = words;
            }
        }
    }

    /// The pages of a region that the overlay has, which it then forgets.
    pub(crate) fn take_last(
        &self,
        state: &mut DirtyState,
        as_id: u16,
        mapping: &Mapping,
    ) -> DirtyBitmap {
        let page_size = self.limits().page_size;
        let range = mapping.range();
        let (gfn, pages) = (range.gpa() / page_size, range.size() / page_size);
        let mut dirty = DirtyBitmap::new(pages);
        state.overlay(as_id).copy_to(gfn, dirty.words_mut(), pages);
        dirty
    }

    /// Notes that the first pages of what is at `range` are dirty: those that are
    /// in `pages`, or all there are.
    pub(crate) fn mark(
        &self,
        state: &mut DirtyState,
        as_id: u16,
        range: Range,
        pages: Option<&DirtyBitmap>,
    ) {
        let page_size = self.limits().page_size;
        let (gfn, count) = (range.gpa() / page_size, range.size() / page_size);
        let overlay = state.overlay(as_id);
        match pages {
            Some(pages) => overlay.or(gfn, pages.words(), 0, count.min(pages.pages())),
            None => overlay.set(gfn, count),
        }
    }

    /// Forgets dirty pages that nobody can ask for any more: of memory that is
    /// gone, or not logged any more.
    pub(crate) fn forget_dirty(&self, state: &mut DirtyState, as_id: u16, before: &Mapping) {
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

    fn harvest_served(&self, logged: &Logged, state: &mut DirtyState) {
        if let Some(id) = logged.deferrable {
            self.serving[usize::from(logged.as_id)].harvest(id, state.overlay(logged.as_id));
        }
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
    gfn: u64,
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
    fn room_for(&mut self, id: RegionId, gfn: u64, pages: u64) -> &mut [u64] {
        let from = self.words.len();
        self.words.resize(from + pages.div_ceil(64) as usize, 0);
        self.parts.push(FoundPart { id, gfn, at: from as u64 * 64, pages });
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
            let words = self.room_for(regions.id(index), start, count);
            bits::copy(words, 0, log, start - first, count);
            page = start - first + count;
        }
    }
}

/// The first page and how many there are.
const fn pages_of(range: Range, page_size: u64) -> (u64, u64) {
    (range.gpa() / page_size, range.size() / page_size)
}

/// KVM clears the log before it copies it out.
fn lost_log(state: &mut DirtyState, as_id: u16, slot: &Slot, errno: Errno, page_size: u64) {
    if errno == Errno::EFAULT {
        let range = slot.mapping.range();
        state.overlay(as_id).set(range.gpa() / page_size, range.size() / page_size);
    }
}
