//! Which GSIs are taken.

use std::ops::RangeInclusive;

/// Hands out GSIs, the lowest free one first, so that those given back are
/// used again and the routing table stays short (its size in the kernel is
/// that of its highest GSI).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gsis {
    first: u32,
    limit: u32,
    /// A bit a GSI, up to the highest that was ever taken.
    taken: Vec<u64>,
    /// Nothing below is free, from `first` on.
    lowest: u32,
}

impl Gsis {
    /// GSIs from `first` to `limit - 1`, all free.
    #[must_use]
    pub const fn new(first: u32, limit: u32) -> Self {
        Self { first, limit, taken: Vec::new(), lowest: first }
    }

    /// Takes GSIs that somebody else uses, inside and outside of what is
    /// handed out.
    pub fn reserve(&mut self, gsis: RangeInclusive<u32>) {
        let limit = self.limit;
        for gsi in gsis.take_while(|gsi| *gsi < limit) {
            self.take_this(gsi);
        }
    }

    /// The lowest free GSI; `None` if there is none.
    pub fn take(&mut self) -> Option<u32> {
        while self.lowest < self.limit {
            let gsi = self.lowest;
            self.lowest += 1;
            if self.take_this(gsi) {
                return Some(gsi);
            }
        }
        None
    }

    /// Takes this one; whether it was free. It need not be in the range that
    /// is handed out.
    pub fn take_this(&mut self, gsi: u32) -> bool {
        if gsi >= self.limit {
            return false;
        }
        let (word, bit) = (gsi as usize / 64, 1 << (gsi % 64));
        if self.taken.len() <= word {
            self.taken.resize(word + 1, 0);
        }
        let free = self.taken[word] & bit == 0;
        self.taken[word] |= bit;
        free
    }

    /// Gives one back.
    pub fn give_back(&mut self, gsi: u32) {
        let (word, bit) = (gsi as usize / 64, 1 << (gsi % 64));
        let Some(word) = self.taken.get_mut(word).filter(|word| **word & bit != 0) else { return };
        *word &= !bit;
        if gsi >= self.first {
            self.lowest = self.lowest.min(gsi);
        }
    }

    /// How many can still be taken.
    #[must_use]
    pub fn free(&self) -> usize {
        let is_free = |gsi: &u32| {
            let word = self.taken.get(*gsi as usize / 64);
            word.is_none_or(|word| word & 1 << (gsi % 64) == 0)
        };
        (self.lowest..self.limit).filter(is_free).count()
    }

    /// GSIs are below this.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_used_again() {
        let mut gsis = Gsis::new(24, 28);
        gsis.reserve(25..=25);
        assert_eq!(gsis.free(), 3);
        assert_eq!(
            [gsis.take(), gsis.take(), gsis.take(), gsis.take()],
            [Some(24), Some(26), Some(27), None]
        );
        gsis.give_back(26);
        assert_eq!(gsis.free(), 1);
        assert!(!gsis.take_this(24));
        assert!(gsis.take_this(3), "below what is handed out");
        assert!(!gsis.take_this(28), "beyond the limit");
        gsis.give_back(3);
        gsis.reserve(27..=u32::MAX);
        assert_eq!([gsis.take(), gsis.take()], [Some(26), None]);
    }
}
