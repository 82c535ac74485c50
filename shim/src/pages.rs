//! Bits of a space too large for a slice.

use std::collections::BTreeMap;

use crate::bits;

/// Pages a chunk: 4 KiB of bits.
const CHUNK: u64 = 64 * 512;

#[derive(Debug, Clone)]
enum Chunk {
    /// All are set: terabytes that are dirty cost a few bytes a chunk.
    Full,
    Bits(Box<[u64; 512]>),
}

impl Chunk {
    const fn empty() -> [u64; 512] {
        [0; 512]
    }

    fn bits(&mut self) -> &mut [u64; 512] {
        if let Self::Full = self {
            *self = Self::Bits(Box::new([!0; 512]));
        }
        match self {
            Self::Bits(bits) => bits,
            Self::Full => unreachable!("was made bits above"),
        }
    }
}

/// A bit a page, of pages of which few are marked: in memory are those parts that
/// have any.
#[derive(Debug, Clone, Default)]
pub struct Pages {
    chunks: BTreeMap<u64, Chunk>,
}

/// The part of one chunk that a run of pages covers.
struct Part {
    chunk: u64,
    /// First page within the chunk.
    at: u64,
    /// First page within the run.
    offset: u64,
    pages: u64,
}

fn parts(gfn: u64, pages: u64) -> impl Iterator<Item = Part> {
    let pages = pages.min(u64::MAX - gfn);
    let mut offset = 0;
    std::iter::from_fn(move || {
        let (chunk, at) = ((gfn + offset) / CHUNK, (gfn + offset) % CHUNK);
        let part = Part { chunk, at, offset, pages: (CHUNK - at).min(pages - offset) };
        offset += part.pages;
        (part.pages > 0).then_some(part)
    })
}

impl Pages {
    /// Whether none is marked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Marks `pages` pages from `gfn` on.
    pub fn set(&mut self, gfn: u64, pages: u64) {
        for part in parts(gfn, pages) {
            if part.pages == CHUNK {
                self.chunks.insert(part.chunk, Chunk::Full);
            } else {
                bits::set(self.bits(part.chunk), part.at, part.pages);
            }
        }
    }

    /// Marks those of the `pages` pages from `gfn` on whose bits are set in
    /// `src`, from its bit `src_at` on.
    pub fn or(&mut self, gfn: u64, src: &[u64], src_at: u64, pages: u64) {
        for part in parts(gfn, pages) {
            let from = src_at + part.offset;
            if bits::any(src, from, part.pages) {
                bits::or(self.bits(part.chunk), part.at, src, from, part.pages);
            }
        }
    }

    /// Marks those of the `pages` pages from `gfn` on that are marked in `other`, from
    /// page `from` on.
    pub fn or_pages(&mut self, gfn: u64, other: &Self, from: u64, pages: u64) {
        let end = from.saturating_add(pages);
        for (chunk, there) in other.chunks.range(from / CHUNK..end.div_ceil(CHUNK)) {
            let start = chunk * CHUNK;
            let (first, behind) = (start.max(from), start.saturating_add(CHUNK).min(end));
            let (to, n) = (gfn.saturating_add(first - from), behind - first);
            match there {
                Chunk::Full => self.set(to, n),
                Chunk::Bits(bits) => self.or(to, &bits[..], first % CHUNK, n),
            }
        }
    }

    /// Forgets the pages of the run whose bits are set in `src`.
    pub fn and_not(&mut self, gfn: u64, src: &[u64], pages: u64) {
        for part in parts(gfn, pages) {
            if let Some(chunk) = self.chunks.get_mut(&part.chunk) {
                bits::and_not(chunk.bits(), part.at, src, part.offset, part.pages);
            }
        }
        self.drop_empty(gfn, pages);
    }

    /// Forgets the run.
    pub fn clear(&mut self, gfn: u64, pages: u64) {
        if self.is_empty() {
            return;
        }
        for part in parts(gfn, pages) {
            if part.pages == CHUNK {
                self.chunks.remove(&part.chunk);
            } else if let Some(chunk) = self.chunks.get_mut(&part.chunk) {
                bits::clear(chunk.bits(), part.at, part.pages);
            }
        }
        self.drop_empty(gfn, pages);
    }

    /// Whether any page of the run is marked.
    #[must_use]
    pub fn any(&self, gfn: u64, pages: u64) -> bool {
        !self.is_empty()
            && parts(gfn, pages).any(|part| match self.chunks.get(&part.chunk) {
                Some(Chunk::Full) => true,
                Some(Chunk::Bits(words)) => bits::any(&words[..], part.at, part.pages),
                None => false,
            })
    }

    /// ORs the run into `dst`, from its first bit on.
    pub fn copy_to(&self, gfn: u64, dst: &mut [u64], pages: u64) {
        if self.is_empty() {
            return;
        }
        for part in parts(gfn, pages) {
            match self.chunks.get(&part.chunk) {
                Some(Chunk::Full) => bits::set(dst, part.offset, part.pages),
                Some(Chunk::Bits(src)) => {
                    bits::or(dst, part.offset, &src[..], part.at, part.pages);
                }
                None => {}
            }
        }
    }

    fn bits(&mut self, chunk: u64) -> &mut [u64; 512] {
        self.chunks.entry(chunk).or_insert_with(|| Chunk::Bits(Box::new(Chunk::empty()))).bits()
    }

    fn drop_empty(&mut self, gfn: u64, pages: u64) {
        for part in parts(gfn, pages) {
            if let Some(Chunk::Bits(bits)) = self.chunks.get(&part.chunk) {
                if bits.iter().all(|word| *word == 0) {
                    self.chunks.remove(&part.chunk);
                }
            }
        }
    }
}
