//! Which GSIs are taken.

use std::ops::RangeInclusive;

use crate::ids::SlotIds;

/// Hands out GSIs, the lowest free one first, so that those given back are
/// used again and the routing table stays short (its size in the kernel is
/// that of its highest GSI).
#[derive(Debug, Clone)]
pub struct Gsis {
    first: u32,
    ids: SlotIds,
}

impl Gsis {
    /// GSIs from `first` to `limit - 1`, all free; 65,536 at most.
    #[must_use]
    pub fn new(first: u32, limit: u32) -> Self {
        Self { first, ids: SlotIds::new(limit) }
    }

    /// Takes GSIs that somebody else uses, inside and outside of what is
    /// handed out.
    pub fn reserve(&mut self, gsis: RangeInclusive<u32>) {
        let limit = self.ids.capacity();
        for gsi in gsis.take_while(|gsi| *gsi < limit) {
            self.take_this(gsi);
        }
    }

    /// The lowest free GSI; `None` if there is none.
    pub fn take(&mut self) -> Option<u32> {
        let gsi = self.all_free().next()?;
        self.take_this(gsi).then_some(gsi)
    }

    /// Takes this one; whether it was free. It need not be in the range that
    /// is handed out.
    pub fn take_this(&mut self, gsi: u32) -> bool {
        u16::try_from(gsi).is_ok_and(|gsi| self.ids.take(gsi))
    }

    /// Gives one back.
    pub fn give_back(&mut self, gsi: u32) {
        let _ = u16::try_from(gsi).is_ok_and(|gsi| self.ids.give_back(gsi));
    }

    /// How many can still be taken.
    #[must_use]
    pub fn free(&self) -> usize {
        self.all_free().count()
    }

    fn all_free(&self) -> impl Iterator<Item = u32> + '_ {
        self.ids.free_from(self.first).map(u32::from)
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

    #[test]
    fn none_below_the_first_is_handed_out() {
        let mut gsis = Gsis::new(130, 200);
        gsis.reserve(132..=191);
        assert_eq!(gsis.free(), 10);
        assert_eq!([gsis.take(), gsis.take(), gsis.take()], [Some(130), Some(131), Some(192)]);
        assert_eq!(Gsis::new(1 << 20, 4096).take(), None);
    }
}
