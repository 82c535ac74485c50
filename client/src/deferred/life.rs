//! A deferrable region while it is mapped.

use std::sync::OnceLock;
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
    /// Pages that were written, a piece for each [`PAGES`], made when it is first
    /// needed; none where writes are not logged.
    dirty: Box<[OnceLock<Piece>]>,
    page_size: u64,
    pub(super) range: Range,
}

/// A bit a page: 4 KiB of bits.
type Piece = Box<[AtomicU64; WORDS]>;

const WORDS: usize = 512;
const PAGES: u64 = 64 * WORDS as u64;

impl Life {
    pub(super) fn new(id: RegionId, mapping: &Mapping, page_size: u64) -> Self {
        let pages = mapping.range().size() / page_size;
        let pieces = if mapping.is_logged() { pages.div_ceil(PAGES) } else { 0 };
        let dirty = (0..pieces).map(|_| OnceLock::new()).collect();
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
            if let Some(piece) = self.dirty.get((page / PAGES) as usize) {
                let piece = piece.get_or_init(|| Box::new([const { AtomicU64::new(0) }; WORDS]));
                let word = &piece[(page % PAGES / 64) as usize];
                word.fetch_or(1 << (page % 64), Ordering::Release);
            }
        }
    }

    /// Moves what is marked to `overlay`.
    pub(super) fn harvest(&self, overlay: &mut Overlay) {
        let (gfn, pages) = (self.range.gpa() / self.page_size, self.range.size() / self.page_size);
        for (piece, first) in self.dirty.iter().zip((0..).step_by(PAGES as usize)) {
            let Some(words) = piece.get() else { continue };
            let bits: Vec<u64> = words.iter().map(|w| w.swap(0, Ordering::Acquire)).collect();
            overlay.or(gfn + first, &bits, 0, PAGES.min(pages - first));
        }
    }
}
