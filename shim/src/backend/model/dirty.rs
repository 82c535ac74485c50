//! Dirty bitmaps and the two dirty log ioctls.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Call, DirtyTracking, Model};
use crate::Range;
use crate::backend::Errno;

const WORD: u64 = 64;

/// A bit a page of a slot. Holds only the words that are not as they were at
/// the start, so that logging a terabyte costs nothing until it is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bitmap {
    pages: u64,
    /// What the words that are not in `words` hold.
    fill: bool,
    words: BTreeMap<u64, u64>,
}

/// What becomes of the bits that a bitmap has when others are carried into it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Carry {
    Copy,
    Add,
}

impl Bitmap {
    pub(super) const fn new(pages: u64, fill: bool) -> Self {
        Self { pages, fill, words: BTreeMap::new() }
    }

    /// `kvm_dirty_bitmap_bytes()`, in words.
    const fn len(&self) -> u64 {
        self.pages.div_ceil(WORD)
    }

    /// The bits of word `index` that stand for pages.
    const fn valid(&self, index: u64) -> u64 {
        low_bits(self.pages.saturating_sub(index * WORD))
    }

    fn word(&self, index: u64) -> u64 {
        match self.words.get(&index) {
            Some(word) => *word,
            None if self.fill => self.valid(index),
            None => 0,
        }
    }

    fn put(&mut self, index: u64, word: u64) {
        self.words.insert(index, word & self.valid(index));
    }

    /// Marks `count` pages from `first` on.
    pub(super) fn set(&mut self, first: u64, count: u64) {
        let end = (first + count).min(self.pages);
        for index in first / WORD..end.div_ceil(WORD) {
            let word = self.word(index) | span(index, first, end);
            self.put(index, word);
        }
    }

    fn write_to(&self, out: &mut [u64]) {
        for (index, out) in out.iter_mut().enumerate() {
            *out = if self.fill { self.valid(index as u64) } else { 0 };
        }
        for (index, word) in &self.words {
            out[*index as usize] = *word;
        }
    }

    fn clear(&mut self) {
        *self = Self::new(self.pages, false);
    }

    /// Makes the `count` pages from `to` on what the pages from `from` on are in
    /// `other`; or marks those of them that are marked there.
    pub(super) fn carry(&mut self, how: Carry, to: u64, other: &Self, from: u64, count: u64) {
        let end = (to + count).min(self.pages);
        let first_word = to / WORD;
        let only_what_is_held = match how {
            Carry::Copy => self.fill == other.fill && self.words.is_empty(),
            Carry::Add => !other.fill,
        };
        let touched: Vec<u64> = if only_what_is_held {
            // What `other` does not hold changes nothing.
            let lowest = from / WORD;
            let held = other.words.range(lowest..(from + count).div_ceil(WORD));
            let mut touched: Vec<u64> = held
                .flat_map(|(index, _)| {
                    let page = (index * WORD).max(from) - from + to;
                    [page / WORD, page / WORD + 1]
                })
                .filter(|index| (first_word..end.div_ceil(WORD)).contains(index))
                .collect();
            touched.dedup();
            touched
        } else {
            (first_word..end.div_ceil(WORD)).collect()
        };
        for index in touched {
            let mask = span(index, to, end);
            let kept = match how {
                Carry::Copy => self.word(index) & !mask,
                Carry::Add => self.word(index),
            };
            self.put(index, kept | other.bits_from(index, to, from) & mask);
        }
    }

    /// The 64 bits that stand, in `self`, for the pages of word `index` of a
    /// bitmap whose page `to` is page `from` of `self`.
    fn bits_from(&self, index: u64, to: u64, from: u64) -> u64 {
        (0..WORD)
            .filter(|bit| {
                let page = (index * WORD + bit).checked_sub(to).map(|page| page + from);
                page.is_some_and(|page| self.contains(page))
            })
            .fold(0, |word, bit| word | 1 << bit)
    }

    fn contains(&self, page: u64) -> bool {
        page < self.pages && self.word(page / WORD) >> (page % WORD) & 1 == 1
    }
}

const fn low_bits(count: u64) -> u64 {
    if count >= WORD { !0 } else { (1 << count) - 1 }
}

/// The bits of word `index` that stand for pages `first..end`.
const fn span(index: u64, first: u64, end: u64) -> u64 {
    let start = index * WORD;
    let below = low_bits(first.saturating_sub(start));
    low_bits(end.saturating_sub(start)) & !below
}

impl Model {
    /// The bitmap of a slot for which logging starts
    /// (`kvm_prepare_memory_region()`).
    pub(super) fn fresh_bitmap(&self, range: Range) -> Option<Arc<Bitmap>> {
        let initially_set = match self.config.dirty {
            DirtyTracking::Bitmap => false,
            DirtyTracking::ManualProtect { initially_set } => initially_set,
            DirtyTracking::Ring => return None,
        };
        let pages = range.size / self.config.limits.page_size;
        Some(Arc::new(Bitmap::new(pages, initially_set)))
    }

    /// `KVM_GET_DIRTY_LOG` of slot `id` in address space `as_id`.
    ///
    /// # Errors
    /// As `kvm_get_dirty_log_protect()`, in this order: `ENXIO` with a dirty
    /// ring, `EINVAL` for an address space or slot id beyond the limit,
    /// `ENOENT` where there is no such slot or it is not logged. `EINVAL` where
    /// `bitmap` is shorter than the slot's, which KVM can't see.
    pub fn get_dirty_log(&mut self, as_id: u16, id: u16, bitmap: &mut [u64]) -> Result<(), Errno> {
        let manual = matches!(self.config.dirty, DirtyTracking::ManualProtect { .. });
        self.check_dirty_slot(Call::GetDirtyLog, as_id, id)?;
        let log = self.logged(as_id, id)?;
        let out = bitmap.get_mut(..log.len() as usize).ok_or(Errno::EINVAL)?;
        log.write_to(out);
        if !manual {
            Arc::make_mut(log).clear();
        }
        Ok(())
    }

    /// `KVM_CLEAR_DIRTY_LOG` of slot `id` in address space `as_id`: forgets
    /// those of the `pages` pages from `first` on whose bits are set in
    /// `bitmap`.
    ///
    /// KVM takes this call whether manual protection is enabled or not.
    ///
    /// # Errors
    /// As `kvm_clear_dirty_log_protect()`, in this order: `ENXIO` with a dirty
    /// ring, `EINVAL` for an address space or slot id beyond the limit,
    /// `EINVAL` where `first` is no multiple of 64, `ENOENT` where there is no
    /// such slot or it is not logged, `EINVAL` where the pages are not all in
    /// the slot, or are neither a multiple of 64 nor reach its end. `EINVAL`
    /// where `bitmap` is shorter than `pages`, which KVM can't see.
    pub fn clear_dirty_log(
        &mut self,
        as_id: u16,
        id: u16,
        first: u64,
        pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        self.check_dirty_slot(Call::ClearDirtyLog, as_id, id)?;
        if first % WORD != 0 {
            return Err(Errno::EINVAL);
        }
        let log = self.logged(as_id, id)?;
        let rest = log.pages.checked_sub(first).ok_or(Errno::EINVAL)?;
        let pages = u64::from(pages);
        if pages > rest || (pages < rest && pages % WORD != 0) {
            return Err(Errno::EINVAL);
        }
        let masks = bitmap.get(..pages.div_ceil(WORD) as usize).ok_or(Errno::EINVAL)?;
        let log = Arc::make_mut(log);
        for (index, mask) in (first / WORD..).zip(masks).filter(|(_, mask)| **mask != 0) {
            let word = log.word(index) & !mask;
            log.put(index, word);
        }
        Ok(())
    }

    fn check_dirty_slot(&mut self, call: Call, as_id: u16, id: u16) -> Result<(), Errno> {
        if let Some(fault) = self.injected(call) {
            return Err(fault.errno());
        }
        if self.config.dirty == DirtyTracking::Ring {
            return Err(Errno::ENXIO);
        }
        let limits = &self.config.limits;
        if as_id >= limits.address_spaces || u32::from(id) >= limits.slots {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    fn logged(&mut self, as_id: u16, id: u16) -> Result<&mut Arc<Bitmap>, Errno> {
        let live = self.spaces.get_mut(usize::from(as_id)).and_then(|space| space.get_mut(id));
        live.and_then(|live| live.dirty.as_mut()).ok_or(Errno::ENOENT)
    }
}
