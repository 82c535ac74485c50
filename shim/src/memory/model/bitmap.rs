//! Dirty bitmaps.

use crate::pages::Pages;

/// A bit a page of a slot. Logging a terabyte costs nothing until it is written to.
#[derive(Debug, Clone)]
pub(super) struct Bitmap {
    pub(super) pages: u64,
    marked: Pages,
}

/// What becomes of the bits that a bitmap has when others are carried into it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Carry {
    Copy,
    Add,
}

impl Bitmap {
    pub(super) fn new(pages: u64, fill: bool) -> Self {
        let mut bitmap = Self { pages, marked: Pages::default() };
        bitmap.set(0, if fill { pages } else { 0 });
        bitmap
    }

    /// `kvm_dirty_bitmap_bytes()`, in words.
    pub(super) const fn len(&self) -> u64 {
        self.pages.div_ceil(64)
    }

    /// Marks `count` pages from `first` on.
    pub(super) fn set(&mut self, first: u64, count: u64) {
        self.marked.set(first, count.min(self.pages.saturating_sub(first)));
    }

    /// Forgets those of the `count` pages from `first` on that are set in `masks`.
    pub(super) fn forget(&mut self, first: u64, masks: &[u64], count: u64) {
        self.marked.and_not(first, masks, count);
    }

    pub(super) fn write_to(&self, out: &mut [u64]) {
        out.fill(0);
        self.marked.copy_to(0, out, self.pages);
    }

    pub(super) fn clear(&mut self) {
        self.marked = Pages::default();
    }

    /// Makes the `count` pages from `to` on what the pages from `from` on are in
    /// `other`; or marks those of them that are marked there.
    pub(super) fn carry(&mut self, how: Carry, to: u64, other: &Self, from: u64, count: u64) {
        let count = count.min(self.pages.saturating_sub(to));
        if let Carry::Copy = how {
            self.marked.clear(to, count);
        }
        self.marked.or_pages(to, &other.marked, from, count);
    }
}
