//! Reading and clearing the dirty log of a region.

use std::ops::Range as Pages;

use kvm_memslots_shim::{Errno, Range, Slot, bits};

use crate::RegionId;
use crate::dirty::{DirtyBitmap, DirtyState};
use crate::error::{Error, ErrorKind};
use crate::vm::record::Record;
use crate::vm::{Panics, Tables, Vm};

/// A logged region, or the part of it that was asked for.
pub(super) struct Logged {
    pub(super) as_id: u16,
    pub(super) range: Range,
    /// Its name, if it may have been served writes.
    pub(super) deferrable: Option<RegionId>,
}

impl Logged {
    pub(super) fn gfn(&self, page_size: u64) -> (u64, u64) {
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
    /// [`ErrorKind::DirtyLog`], [`ErrorKind::Forked`]. Nothing is lost then.
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
        let state = &mut *self.dirty_of_this_process()?;
        let (logged, slots) = self.logged_slots(id, pages)?;
        let (gfn, pages) = logged.gfn(self.limits().page_size);
        let mut dirty =
            DirtyBitmap::try_new(pages).map_err(|_| no_memory(&self.tables(), id, pages))?;
        self.harvest_served(&logged, state);
        // What is read goes into the overlay where it is of others, or if a
        // later slot of this region can't be read.
        let (mut read, mut panics) = (Ok(()), Panics::default());
        for slot in slots {
            read = self.read_slot(state, logged.as_id, &slot, &mut panics, |state, log| {
                self.share_out(state, &logged, &slot, log, &mut dirty);
            });
            if read.is_err() {
                break;
            }
        }
        let overlay = state.overlay(logged.as_id);
        if let Err(error) = read {
            overlay.or(gfn, dirty.words(), 0, pages);
            panics.resume();
            return Err(error);
        }
        overlay.copy_to(gfn, dirty.words_mut(), pages);
        if !self.manual_dirty_log {
            overlay.clear(gfn, pages);
        }
        Ok(dirty)
    }

    /// Forgets the pages of the region that are set in `dirty`, whose first bit
    /// is page `first` of the region, as `KVM_CLEAR_DIRTY_LOG` does: the second
    /// half of a manually protected dirty log.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchPages`], [`ErrorKind::NotLogged`],
    /// [`ErrorKind::DirtyLog`], [`ErrorKind::UnknownRegion`],
    /// [`ErrorKind::Forked`].
    pub fn clear_dirty_log(
        &self,
        id: RegionId,
        first: u64,
        dirty: &DirtyBitmap,
    ) -> Result<(), Error> {
        let state = &mut *self.dirty_of_this_process()?;
        let pages = first..first.saturating_add(dirty.pages());
        let (logged, slots) = self.logged_slots(id, Some(&pages))?;
        for slot in slots {
            match self.clear_slot(&logged, &slot, dirty) {
                // A dirty ring: what is cleared is what the overlay has.
                Ok(()) | Err(Errno::ENXIO) => {}
                Err(errno) => return Err(ErrorKind::DirtyLog { slot, errno }.into()),
            }
        }
        let (gfn, pages) = logged.gfn(self.limits().page_size);
        state.overlay(logged.as_id).and_not(gfn, dirty.words(), pages);
        Ok(())
    }

    /// What was asked for, and its slots. While the dirty state is locked they stay those, and
    /// KVM is asked when nobody who looks something up has to wait for that.
    fn logged_slots(
        &self,
        id: RegionId,
        pages: Option<&Pages<u64>>,
    ) -> Result<(Logged, Vec<Slot>), Error> {
        let tables = &*self.tables();
        let logged = self.logged(tables, id, pages)?;
        let slots = tables.slots[usize::from(logged.as_id)].overlapping(logged.range).collect();
        Ok((logged, slots))
    }

    pub(super) fn logged(
        &self,
        tables: &Tables,
        id: RegionId,
        pages: Option<&Pages<u64>>,
    ) -> Result<Logged, Error> {
        let index = tables.regions.find(id).ok_or(ErrorKind::UnknownRegion(id))?;
        let record: Record = tables.regions.record(index);
        let described = || record.described(id);
        if !record.mapping.is_logged() {
            return Err(ErrorKind::NotLogged.of(described()));
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
                    let outside = ErrorKind::NoSuchPages { first: start, end, pages };
                    return Err(outside.of(described()));
                };
                range
            }
        };
        let deferrable = tables.regions.is_deferrable(index).then_some(id);
        Ok(Logged { as_id: record.as_id, range, deferrable })
    }

    /// Reads the log of a slot, which `f` puts away. With a dirty ring there is
    /// none: what that holds, only the VMM knows. A panic of the backend is kept, and
    /// an error.
    pub(super) fn read_slot(
        &self,
        state: &mut DirtyState,
        as_id: u16,
        slot: &Slot,
        panics: &mut Panics,
        mut f: impl FnMut(&mut DirtyState, &[u64]),
    ) -> Result<(), Error> {
        let read = || self.calls().dirty_log(as_id, slot, &mut |log| f(state, log));
        match panics.catch(read).unwrap_or(Err(Errno::EFAULT)) {
            Ok(()) | Err(Errno::ENXIO) => Ok(()),
            Err(errno) => {
                if errno == Errno::EFAULT {
                    // KVM clears the log before it copies it out; so may one that panics.
                    let (gfn, pages) = pages_of(slot.mapping.range(), self.limits().page_size);
                    state.overlay(as_id).set(gfn, pages);
                }
                Err(ErrorKind::DirtyLog { slot: *slot, errno }.into())
            }
        }
    }

    /// Of a slot's log that was read, what is in the range asked for goes into
    /// `dirty`, the rest into the overlay.
    fn share_out(
        &self,
        state: &mut DirtyState,
        logged: &Logged,
        slot: &Slot,
        log: &[u64],
        dirty: &mut DirtyBitmap,
    ) {
        let page_size = self.limits().page_size;
        let whole = slot.mapping.range();
        let Some(shared) = whole.intersection(logged.range) else { return };
        let pages = whole.size() / page_size;
        let first = (shared.gpa() - whole.gpa()) / page_size;
        let count = shared.size() / page_size;
        let to = (shared.gpa() - logged.range.gpa()) / page_size;
        bits::or(dirty.words_mut(), to, log, first, count);
        let (gfn, behind) = (whole.gpa() / page_size, first + count);
        let overlay = state.overlay(logged.as_id);
        overlay.or(gfn, log, 0, first);
        overlay.or(gfn + behind, log, behind, pages - behind);
    }

    /// Clears those pages of `slot` that are in the range and set in `dirty`.
    /// KVM wants whole words of the slot's bitmap: bits of neighbours are left
    /// 0, which leaves their pages alone.
    fn clear_slot(&self, logged: &Logged, slot: &Slot, dirty: &DirtyBitmap) -> Result<(), Errno> {
        let page_size = self.limits().page_size;
        let whole = slot.mapping.range();
        let Some(shared) = whole.intersection(logged.range) else { return Ok(()) };
        let first = (shared.gpa() - whole.gpa()) / page_size;
        let end = first + shared.size() / page_size;
        let (word, end_word) = (first / 64, end.div_ceil(64));
        let mut bits = vec![0; (end_word - word) as usize];
        let from = (shared.gpa() - logged.range.gpa()) / page_size;
        bits::or(&mut bits, first % 64, dirty.words(), from, end - first);
        let pages = (end_word * 64).min(whole.size() / page_size) - word * 64;
        self.calls().clear_dirty_log(logged.as_id, slot, word * 64, pages as u32, &bits)
    }

    pub(super) fn harvest_served(&self, logged: &Logged, state: &mut DirtyState) {
        if let Some(id) = logged.deferrable {
            self.serving[usize::from(logged.as_id)].harvest(id, state.overlay(logged.as_id));
        }
    }
}

/// The dirty log of a region has more pages than there is memory for.
pub(super) fn no_memory(tables: &Tables, id: RegionId, pages: u64) -> Error {
    match tables.regions.find(id) {
        Some(index) => ErrorKind::NoMemory(pages.div_ceil(8)).of(tables.regions.described(index)),
        None => ErrorKind::UnknownRegion(id).into(),
    }
}

/// The first page and how many there are.
pub(super) const fn pages_of(range: Range, page_size: u64) -> (u64, u64) {
    (range.gpa() / page_size, range.size() / page_size)
}
