//! Dirty pages as bits.

use kvm_memslots_shim::{Errno, bits};

/// More pages than that, 2 TiB of them, are asked whether there is memory for
/// their bits, 64 MiB.
const MANY: u64 = 1 << 29;

/// Dirty pages: a bit a page, lowest first. Page 0 is the first page of a region,
/// or of the part of it that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirtyBitmap {
    words: Vec<u64>,
    pages: u64,
}

impl DirtyBitmap {
    /// No page of `pages` dirty.
    ///
    /// # Panics
    /// If there is no memory for that many bits, as a `Vec` does.
    #[must_use]
    pub fn new(pages: u64) -> Self {
        Self { words: vec![0; pages.div_ceil(64) as usize], pages }
    }

    /// The same; `ENOMEM` where there is no memory for it.
    pub(crate) fn try_new(pages: u64) -> Result<Self, Errno> {
        if pages > MANY {
            // Only asked for: `vec!` gets zeroes without touching them, but can't
            // be refused.
            let words = usize::try_from(pages.div_ceil(64)).map_err(|_| Errno::ENOMEM)?;
            Vec::<u64>::new().try_reserve_exact(words).map_err(|_| Errno::ENOMEM)?;
        }
        Ok(Self::new(pages))
    }

    /// How many pages there are.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Whether page `page` is dirty; false beyond the end.
    #[must_use]
    pub fn is_dirty(&self, page: u64) -> bool {
        self.as_pages().is_dirty(page)
    }

    /// How many pages are dirty.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The dirty pages, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.as_pages().iter()
    }

    /// The bits, 64 pages a word, the lowest page in the lowest bit: as
    /// `KVM_GET_DIRTY_LOG` has them.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The same, borrowed.
    #[must_use]
    pub fn as_pages(&self) -> DirtyPages<'_> {
        DirtyPages { words: &self.words, at: 0, pages: self.pages }
    }

    /// Marks `n` pages from `page` on as dirty; what is beyond the end is
    /// passed over.
    pub fn set(&mut self, page: u64, n: u64) {
        let end = page.saturating_add(n).min(self.pages);
        bits::set(&mut self.words, page.min(end), end - page.min(end));
    }

    pub(crate) fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }
}

/// Dirty pages of a region, a part of a larger bitmap.
#[derive(Debug, Clone, Copy)]
pub struct DirtyPages<'a> {
    words: &'a [u64],
    /// The bit of page 0.
    at: u64,
    pages: u64,
}

impl<'a> DirtyPages<'a> {
    pub(crate) const fn new(words: &'a [u64], at: u64, pages: u64) -> Self {
        Self { words, at, pages }
    }

    /// How many pages there are.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Whether none is dirty.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        !bits::any(self.words, self.at, self.pages)
    }

    /// Whether page `page` is dirty; false beyond the end.
    #[must_use]
    pub fn is_dirty(&self, page: u64) -> bool {
        page < self.pages && bits::any(self.words, self.at + page, 1)
    }

    /// How many pages are dirty.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.words().map(|(word, _)| u64::from(word.count_ones())).sum()
    }

    /// The dirty pages, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + use<'a> {
        self.words().flat_map(|(mut word, page)| {
            std::iter::from_fn(move || {
                let bit = word.trailing_zeros();
                word &= word.wrapping_sub(1);
                (bit < 64).then(|| page + u64::from(bit))
            })
        })
    }

    /// Words of up to 64 pages, shifted so that the lowest bit is the page that
    /// comes with it.
    fn words(&self) -> impl Iterator<Item = (u64, u64)> + use<'a> {
        let Self { words, at, pages } = *self;
        let mut page = 0;
        std::iter::from_fn(move || {
            if page >= pages {
                return None;
            }
            let (index, shift) = (((at + page) / 64) as usize, (at + page) % 64);
            let n = (64 - shift).min(pages - page);
            let word = words[index] >> shift & (!0 >> (64 - n));
            let first = page;
            page += n;
            Some((word, first))
        })
    }

    /// A bitmap of its own.
    #[must_use]
    pub fn to_bitmap(&self) -> DirtyBitmap {
        let mut bitmap = DirtyBitmap::new(self.pages);
        bits::or(&mut bitmap.words, 0, self.words, self.at, self.pages);
        bitmap
    }
}
