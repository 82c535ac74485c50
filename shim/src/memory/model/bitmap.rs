//! Dirty bitmaps.

use std::collections::BTreeMap;

pub(super) const WORD: u64 = 64;

/// A bit a page of a slot. Holds only the words that are not as they were at
/// the start, so that logging a terabyte costs nothing until it is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bitmap {
    pub(super) pages: u64,
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
    pub(super) const fn len(&self) -> u64 {
        self.pages.div_ceil(WORD)
    }

    /// The bits of word `index` that stand for pages.
    const fn valid(&self, index: u64) -> u64 {
        low_bits(self.pages.saturating_sub(index * WORD))
    }

    pub(super) fn word(&self, index: u64) -> u64 {
        match self.words.get(&index) {
            Some(word) => *word,
            None if self.fill => self.valid(index),
            None => 0,
        }
    }

    pub(super) fn put(&mut self, index: u64, word: u64) {
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

    pub(super) fn write_to(&self, out: &mut [u64]) {
        for (index, out) in out.iter_mut().enumerate() {
            *out = if self.fill { self.valid(index as u64) } else { 0 };
        }
        for (index, word) in &self.words {
            out[*index as usize] = *word;
        }
    }

    pub(super) fn clear(&mut self) {
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
