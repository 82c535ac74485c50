//! A deferrable region while it is mapped.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvm_memslots_shim::{Mapping, Range};

use crate::dirty::Overlay;
use crate::region::RegionId;

/// What is kept of a region from when it is mapped to when it is unmapped, or
/// changes its size or its logging.
#[derive(Debug)]
pub(crate) struct Life {
    pub(super) id: RegionId,
    /// Whether it is among those that are due.
    pub(super) queued: AtomicBool,
    /// Exits served, of those that a slot would have spared.
    pub(crate) exits: AtomicU64,
    /// What it has earned its slot with, where slots are short.
    pub(crate) earned: AtomicU64,
    /// The promotion that it had a slot from last.
    pub(crate) turn: AtomicU64,
    /// So many exits have to be served before it is due again.
    pub(crate) again: AtomicU64,
    /// A bit a page that was written; none where writes are not logged.
    dirty: Box<[AtomicU64]>,
    page_size: u64,
    pub(super) range: Range,
}

impl Life {
    pub(super) fn new(id: RegionId, mapping: &Mapping, page_size: u64) -> Self {
        let pages = mapping.range().size() / page_size;
        let words = if mapping.is_logged() { pages.div_ceil(64) } else { 0 };
        let dirty = (0..words).map(|_| AtomicU64::new(0)).collect();
        Self {
            id,
            queued: AtomicBool::new(false),
            exits: AtomicU64::new(0),
            earned: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            again: AtomicU64::new(0),
            dirty,
            page_size,
            range: mapping.range(),
        }
    }

    pub(super) fn fits(&self, mapping: &Mapping) -> bool {
        self.range == mapping.range() && self.dirty.is_empty() != mapping.is_logged()
    }

    /// Marks what was written. Only after it was: whoever reads the log may
    /// copy the page right away.
    pub(super) fn mark(&self, offset: u64, len: u64) {
        if self.dirty.is_empty() || len == 0 {
            return;
        }
        for page in offset / self.page_size..=(offset + len - 1) / self.page_size {
            if let Some(word) = self.dirty.get((page / 64) as usize) {
                word.fetch_or(1 << (page % 64), Ordering::Release);
            }
        }
    }

    /// Moves what is marked to `overlay`.
    pub(super) fn harvest(&self, overlay: &mut Overlay) {
        let bits: Vec<u64> = self.dirty.iter().map(|w| w.swap(0, Ordering::Acquire)).collect();
        if !bits.is_empty() {
            let pages = self.range.size() / self.page_size;
            overlay.or(self.range.gpa() / self.page_size, &bits, 0, pages);
        }
    }
}
