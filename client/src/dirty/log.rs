//! Reading and clearing the dirty logs of regions.

use kvm_memslots_shim::backend::Errno;
use kvm_memslots_shim::{Extent, Range, Slot};

use crate::space::AddressSpace;
use crate::{DirtyBitmap, Error, RegionId};

impl AddressSpace {
    /// The pages of the region that the guest wrote since the last call, as
    /// `KVM_GET_DIRTY_LOG` would report them for a slot of its own. Afterwards
    /// the log is empty, unless the address space was built with
    /// [`manual_dirty_log`](crate::Builder::manual_dirty_log).
    ///
    /// Pages are over-reported where a slot had to be replaced without the
    /// batch ioctl and without a gate; never under-reported.
    ///
    /// # Errors
    /// [`Error::NotLogged`], [`Error::DirtyLog`], and those of an id that is
    /// not valid. Nothing is lost then.
    pub fn dirty_log(&mut self, id: RegionId) -> Result<DirtyBitmap, Error> {
        let extent = self.logged(id)?;
        let range = extent.mapping.range;
        let page_size = self.limits().page_size;
        let (gfn, pages) = (range.gpa / page_size, range.size / page_size);
        self.deferred.harvest(id.index, &mut self.overlay);

        // What is read goes into the overlay where it is of other regions, or
        // if a later slot of this region can't be read.
        let mut dirty = DirtyBitmap::new(pages);
        let mut read = Ok(());
        for slot in self.slots_in(range) {
            read = self.read_slot(slot, range, &mut dirty);
            if read.is_err() {
                break;
            }
        }
        if let Err(error) = read {
            self.overlay.or(gfn, dirty.words(), 0, pages);
            return Err(error);
        }
        self.overlay.copy_to(gfn, dirty.words_mut(), pages);
        if !self.manual_dirty_log {
            self.overlay.clear(gfn, pages);
        }
        Ok(dirty)
    }

    /// Forgets the pages of the region that are set in `dirty`, as
    /// `KVM_CLEAR_DIRTY_LOG` does: the second half of a manually protected
    /// dirty log.
    ///
    /// # Errors
    /// [`Error::BitmapSize`], [`Error::NotLogged`], [`Error::DirtyLog`], and
    /// those of an id that is not valid.
    pub fn clear_dirty_log(&mut self, id: RegionId, dirty: &DirtyBitmap) -> Result<(), Error> {
        let extent = self.logged(id)?;
        let range = extent.mapping.range;
        let page_size = self.limits().page_size;
        let (gfn, pages) = (range.gpa / page_size, range.size / page_size);
        if dirty.pages() != pages {
            let region = self.regions.describe(id.index);
            return Err(Error::BitmapSize { region, pages: dirty.pages(), expected: pages });
        }
        for slot in self.slots_in(range) {
            self.clear_slot(slot, range, dirty)?;
        }
        self.overlay.and_not(gfn, dirty.words(), pages);
        Ok(())
    }

    fn logged(&self, id: RegionId) -> Result<Extent, Error> {
        let extent = self.regions.extent(self.regions.index_of(id)?);
        if extent.mapping.is_logged() {
            Ok(extent)
        } else {
            Err(Error::NotLogged { region: self.regions.describe(id.index) })
        }
    }

    fn slots_in(&self, range: Range) -> Vec<Slot> {
        self.slots.overlapping(range).collect()
    }

    /// Reads the log of `slot`: what is in `range` into `dirty`, the rest into
    /// the overlay.
    fn read_slot(
        &mut self,
        slot: Slot,
        range: Range,
        dirty: &mut DirtyBitmap,
    ) -> Result<(), Error> {
        let page_size = self.limits().page_size;
        let whole = slot.mapping.range;
        let pages = whole.size / page_size;
        self.scratch.clear();
        self.scratch.resize(pages.div_ceil(64) as usize, 0);
        if let Err(errno) = self.backend.dirty_log(self.as_id, &slot, &mut self.scratch) {
            if errno == Errno::EFAULT {
                // KVM clears the log before it copies it out.
                self.overlay.set(whole.gpa / page_size, pages);
            }
            return Err(Error::DirtyLog { slot, errno });
        }
        let Some(shared) = whole.intersection(range) else { return Ok(()) };
        let first = (shared.gpa - whole.gpa) / page_size;
        let count = shared.size / page_size;
        let to = (shared.gpa - range.gpa) / page_size;
        super::bits::or(dirty.words_mut(), to, &self.scratch, first, count);

        let gfn = whole.gpa / page_size;
        let behind = first + count;
        self.overlay.or(gfn, &self.scratch, 0, first);
        self.overlay.or(gfn + behind, &self.scratch, behind, pages - behind);
        Ok(())
    }

    /// Clears those pages of `slot` that are in `range` and set in `dirty`.
    /// KVM wants whole words of the slot's bitmap: bits of neighbours are left
    /// 0, which leaves their pages alone.
    fn clear_slot(&mut self, slot: Slot, range: Range, dirty: &DirtyBitmap) -> Result<(), Error> {
        let page_size = self.limits().page_size;
        let whole = slot.mapping.range;
        let Some(shared) = whole.intersection(range) else { return Ok(()) };
        let first = (shared.gpa - whole.gpa) / page_size;
        let end = first + shared.size / page_size;
        let (word, end_word) = (first / 64, end.div_ceil(64));
        self.scratch.clear();
        self.scratch.resize((end_word - word) as usize, 0);
        let from = (shared.gpa - range.gpa) / page_size;
        super::bits::or(&mut self.scratch, first % 64, dirty.words(), from, end - first);

        let pages = (end_word * 64).min(whole.size / page_size) - word * 64;
        self.backend
            .clear_dirty_log(self.as_id, &slot, word * 64, pages as u32, &self.scratch)
            .map_err(|errno| Error::DirtyLog { slot, errno })
    }
}
