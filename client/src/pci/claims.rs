//! Who gets which guest addresses.

use kvm_memslots_shim::Range;

/// Ranges that do not overlap.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// In ascending order. (All are claimed anew with each change: a tree is slower.)
    taken: Vec<Range>,
}

impl Claims {
    /// Claims the range, unless part of it is taken.
    pub(super) fn claim(&mut self, range: Range) -> bool {
        let at = self.first_behind(range);
        let free = self.is_free_before(at, range);
        if free {
            self.taken.insert(at, range);
        }
        free
    }

    /// Whether nobody has claimed any of it.
    pub(super) fn is_free(&self, range: Range) -> bool {
        self.is_free_before(self.first_behind(range), range)
    }

    /// The first that starts behind the range.
    fn first_behind(&self, range: Range) -> usize {
        self.taken.partition_point(|taken| taken.gpa() < range.end())
    }

    fn is_free_before(&self, at: usize, range: Range) -> bool {
        at.checked_sub(1).is_none_or(|last| self.taken[last].end() <= range.gpa())
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
        fn what_is_claimed_overlaps_nothing(wants in prop::collection::vec((0..60_u64, 1..8_u64), 0..30)) {
            let (mut claims, mut all) = (Claims::default(), Vec::<Range>::new());
            for (gpa, size) in wants {
                let range = Range::new(gpa, size).unwrap();
                let free = !all.iter().any(|other| other.overlaps(range));
                prop_assert_eq!(claims.is_free(range), free);
                prop_assert_eq!(claims.claim(range), free);
                all.extend(free.then_some(range));
            }
        }
    }
}
