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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Debug, Clone)]
    enum Step {
        Set(u64, u64),
        Or(u64, u64, u64),
        OrPages(u64, u64, u64),
        AndNot(u64, u64, u64),
        Clear(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let run = || (0..CHUNK * 3, 0..CHUNK * 2);
        prop_oneof![
            run().prop_map(|(gfn, n)| Step::Set(gfn, n)),
            (run(), any::<u64>()).prop_map(|((gfn, n), pattern)| Step::Or(gfn, n, pattern)),
            (run(), any::<u64>()).prop_map(|((gfn, n), pattern)| Step::AndNot(gfn, n, pattern)),
            (run(), 0..CHUNK).prop_map(|((gfn, n), from)| Step::OrPages(gfn, n, from)),
            run().prop_map(|(gfn, n)| Step::Clear(gfn, n)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn same_as_a_set(steps in prop::collection::vec(step(), 0..12)) {
            let mut marked = Pages::default();
            let mut set = BTreeSet::new();
            let hit = |pattern: u64, page: u64| pattern >> (page % 64) & 1 == 1;
            let words = |pattern: u64, n: u64| vec![pattern; n.div_ceil(64) as usize];
            for step in steps {
                match step {
                    Step::Set(gfn, n) => {
                        marked.set(gfn, n);
                        set.extend(gfn..gfn + n);
                    }
                    Step::Or(gfn, n, p) => {
                        marked.or(gfn, &words(p, n), 0, n);
                        set.extend((0..n).filter(|page| hit(p, *page)).map(|page| gfn + page));
                    }
                    Step::OrPages(gfn, n, from) => {
                        let other = marked.clone();
                        marked.or_pages(gfn, &other, from, n);
                        let there = (0..n).filter(|page| set.contains(&(from + page)));
                        let there: Vec<u64> = there.map(|page| gfn + page).collect();
                        set.extend(there);
                    }
                    Step::AndNot(gfn, n, p) => {
                        marked.and_not(gfn, &words(p, n), n);
                        set.retain(|page| !((gfn..gfn + n).contains(page) && hit(p, page - gfn)));
                    }
                    Step::Clear(gfn, n) => {
                        marked.clear(gfn, n);
                        set.retain(|page| !(gfn..gfn + n).contains(page));
                    }
                }
            }
            let pages = CHUNK * 5;
            let mut got = vec![0; (pages / 64) as usize];
            marked.copy_to(0, &mut got, pages);
            let mut expected = vec![0_u64; (pages / 64) as usize];
            for page in &set {
                expected[(page / 64) as usize] |= 1 << (page % 64);
            }
            prop_assert!(got == expected);
            if set.is_empty() {
                prop_assert!(marked.is_empty(), "empty chunks are kept");
            }
        }
    }
}
