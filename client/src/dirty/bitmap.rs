//! The dirty pages of one region.

use super::bits;

/// The dirty pages of one region: a bit a page, page 0 at the region's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirtyBitmap {
    words: Vec<u64>,
    pages: u64,
}

impl DirtyBitmap {
    /// No page of `pages` dirty.
    #[must_use]
    pub fn new(pages: u64) -> Self {
        Self { words: vec![0; pages.div_ceil(64) as usize], pages }
    }

    /// How many pages the region has.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Whether page `page` of the region is dirty; false beyond its end.
    #[must_use]
    pub fn is_dirty(&self, page: u64) -> bool {
        page < self.pages && self.words[(page / 64) as usize] >> (page % 64) & 1 == 1
    }

    /// How many pages are dirty.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The dirty pages, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().enumerate().flat_map(|(index, word)| {
            let mut word = *word;
            std::iter::from_fn(move || {
                let bit = word.trailing_zeros();
                word &= word.wrapping_sub(1);
                (bit < 64).then(|| index as u64 * 64 + u64::from(bit))
            })
        })
    }

    /// The bits, 64 pages a word, the lowest page in the lowest bit: as
    /// `KVM_GET_DIRTY_LOG` has them.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Marks `n` pages from `page` on as dirty; what is beyond the end is
    /// passed over.
    pub fn set(&mut self, page: u64, n: u64) {
        let end = page.saturating_add(n).min(self.pages);
        bits::set(&mut self.words, page.min(end), end - page.min(end));
    }

    pub(super) fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }
}
