//! Who gets which guest addresses.

use kvm_memslots_shim::Range;

/// What a doorbell there claims.
pub(super) fn bell_range(addr: u64, len: u32) -> Option<Range> {
    Range::new(addr, u64::from(len.max(1)))
}

/// Ranges that do not overlap, of windows and of doorbells; of which BAR (`T`) these
/// are.
#[derive(Debug)]
pub(super) struct Claims<T> {
    /// In ascending order. (All are claimed anew with each change: a tree is slower.)
    taken: Vec<(Range, Option<T>)>,
}

impl<T> Default for Claims<T> {
    fn default() -> Self {
        Self { taken: Vec::new() }
    }
}

impl<T: PartialEq> Claims<T> {
    /// Claims the range, unless part of it is taken. Doorbells of one BAR may be at
    /// one address, told apart by length or value: the longest has it claimed.
    pub(super) fn claim(&mut self, range: Range, rings_for: Option<T>) -> bool {
        let at = self.first_behind(range);
        if self.is_free_before(at, range) {
            self.taken.insert(at, (range, rings_for));
            return true;
        }
        // Not free: there is one before.
        let (there, of) = &mut self.taken[at - 1];
        let beside = rings_for.is_some() && *of == rings_for && there.gpa() == range.gpa();
        if beside && there.size() < range.size() {
            *there = range;
        }
        beside
    }

    /// Whether nobody has claimed any of it.
    pub(super) fn is_free(&self, range: Range) -> bool {
        self.is_free_before(self.first_behind(range), range)
    }

    /// The first that starts behind the range.
    fn first_behind(&self, range: Range) -> usize {
        self.taken.partition_point(|(taken, _)| taken.gpa() < range.end())
    }

    fn is_free_before(&self, at: usize, range: Range) -> bool {
        at.checked_sub(1).is_none_or(|last| self.taken[last].0.end() <= range.gpa())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_is_claimed_overlaps_nothing(
            wants in prop::collection::vec((0..60_u64, 1..8_u64, prop::option::of(0..2_u8)), 0..30),
        ) {
            let (mut claims, mut all) = (Claims::default(), Vec::<(Range, Option<u8>)>::new());
            for (gpa, size, of) in wants {
                let range = Range::new(gpa, size).unwrap();
                let mut others = all.iter().filter(|(other, _)| other.overlaps(range));
                prop_assert_eq!(claims.is_free(range), others.clone().next().is_none());
                let free = others.all(|(other, by)| of.is_some() && *by == of && other.gpa() == gpa);
                prop_assert_eq!(claims.claim(range, of), free);
                all.extend(free.then_some((range, of)));
            }
        }
    }
}
