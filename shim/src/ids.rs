//! Which slot ids are taken.

use std::ops::RangeInclusive;

/// The slot ids of one address space: which are in use, which are free, and
/// which are somebody else's.
///
/// ```
/// use kvm_memslots_shim::SlotIds;
///
/// let mut ids = SlotIds::new(4);
/// ids.reserve(0..=1);
/// assert_eq!(ids.free().collect::<Vec<_>>(), [2, 3]);
/// assert!(ids.take(2));
/// assert_eq!((ids.in_use(), ids.available()), (1, 1));
/// ```
#[derive(Debug, Clone)]
pub struct SlotIds {
    /// A bit an id: 1 where it can't be given out.
    taken: Vec<u64>,
    /// A bit an id: 1 where it is somebody else's.
    reserved: Vec<u64>,
    /// A bit a word of `taken`: 1 where it has a free id.
    open: [u64; 16],
    limit: u32,
    in_use: u32,
    reserved_count: u32,
}

impl SlotIds {
    /// All of `limit` ids free, 65,536 at most (ids are 16 bits wide).
    #[must_use]
    pub fn new(limit: u32) -> Self {
        let limit = limit.min(1 << 16);
        let words = limit.div_ceil(64) as usize;
        let mut taken = vec![0; words];
        if let (Some(last), 1..) = (taken.last_mut(), limit % 64) {
            *last = !0 << (limit % 64);
        }
        let mut open = [0; 16];
        crate::bits::set(&mut open, 0, words as u64);
        Self { taken, reserved: vec![0; words], open, limit, in_use: 0, reserved_count: 0 }
    }

    /// Marks `ids` as somebody else's: never given out. Ids beyond the limit
    /// and ids already reserved are passed over.
    ///
    /// # Errors
    /// The first id that is in use; nothing is reserved then.
    pub fn try_reserve(&mut self, ids: RangeInclusive<u16>) -> Result<(), u16> {
        let ids = *ids.start()..=(*ids.end()).min(self.limit.saturating_sub(1) as u16);
        let mut own = ids.clone().filter(|id| u32::from(*id) < self.limit);
        if let Some(id) = own.find(|id| self.contains(*id)) {
            return Err(id);
        }
        let limit = self.limit;
        for id in ids.filter(|id| u32::from(*id) < limit) {
            let (word, bit) = place(id);
            if self.reserved[word] & bit == 0 {
                self.reserved[word] |= bit;
                self.mark(word, bit);
                self.reserved_count += 1;
            }
        }
        Ok(())
    }

    /// [`try_reserve`](Self::try_reserve) on ids of which none is in use;
    /// returns whether that was so.
    pub fn reserve(&mut self, ids: RangeInclusive<u16>) -> bool {
        self.try_reserve(ids).is_ok()
    }

    /// Takes a free id; returns whether it was free.
    pub fn take(&mut self, id: u16) -> bool {
        let (word, bit) = place(id);
        let free = u32::from(id) < self.limit && self.taken[word] & bit == 0;
        if free {
            self.mark(word, bit);
            self.in_use += 1;
        }
        free
    }

    /// Gives an id back; returns whether it was in use.
    pub fn give_back(&mut self, id: u16) -> bool {
        let used = self.contains(id);
        if used {
            let (word, bit) = place(id);
            self.taken[word] &= !bit;
            self.open[word / 64] |= 1 << (word % 64);
            self.in_use -= 1;
        }
        used
    }

    /// Whether `id` was taken with [`take`](Self::take) and not given back.
    #[must_use]
    pub fn contains(&self, id: u16) -> bool {
        let (word, bit) = place(id);
        u32::from(id) < self.limit && self.taken[word] & !self.reserved[word] & bit != 0
    }

    fn mark(&mut self, word: usize, bit: u64) {
        self.taken[word] |= bit;
        if self.taken[word] == !0 {
            self.open[word / 64] &= !(1 << (word % 64));
        }
    }

    /// The lowest free id.
    #[must_use]
    pub fn lowest_free(&self) -> Option<u16> {
        self.free().next()
    }

    /// The free ids, lowest first.
    pub fn free(&self) -> impl Iterator<Item = u16> + '_ {
        self.free_from(0)
    }

    /// Those from `first` on.
    pub(crate) fn free_from(&self, first: u32) -> impl Iterator<Item = u16> + '_ {
        let (lowest, below) = (first as usize / 64, (1 << (first % 64)) - 1);
        let words = self.open.iter().zip(0..).flat_map(|(open, n)| ones(*open, n));
        let free = move |word: usize| {
            let free = !self.taken[word];
            ones(if word == lowest { free & !below } else { free }, word)
        };
        words.filter(move |word| *word >= lowest).flat_map(free).map(|id| id as u16)
    }

    /// How many ids are in use, reserved ones aside.
    #[must_use]
    pub const fn in_use(&self) -> u32 {
        self.in_use
    }

    /// How many ids are free.
    #[must_use]
    pub const fn available(&self) -> u32 {
        self.limit - self.in_use - self.reserved_count
    }

    /// How many ids there are for the owner of this object: the limit less the
    /// reserved ones.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.limit - self.reserved_count
    }
}

const fn place(id: u16) -> (usize, u64) {
    (id as usize / 64, 1 << (id % 64))
}

/// The positions of the ones of the `index`-th word.
fn ones(mut word: u64, index: usize) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros() as usize;
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(index * 64 + bit)
    })
}
