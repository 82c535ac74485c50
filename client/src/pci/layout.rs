//! Which BARs are in each other's way.

use std::collections::{BTreeMap, BTreeSet};

use super::bells::BarKey;

/// Where a BAR is: its first address, and its size.
pub(super) type Place = (u64, u64);

/// BARs that are somewhere. Each is as long as a power of two and aligned to that:
/// of two that overlap one has the other in it.
#[derive(Debug, Default)]
pub(super) struct Layout {
    places: BTreeMap<BarKey, Place>,
    bars: BTreeMap<Place, BTreeSet<BarKey>>,
    /// A bit for each size that there ever was.
    sizes: u64,
}

impl Layout {
    pub(super) fn get(&self, bar: &BarKey) -> Option<Place> {
        self.places.get(bar).copied()
    }

    pub(super) fn put(&mut self, bar: BarKey, place: Option<Place>) {
        if let Some(old) = self.places.remove(&bar) {
            let there = self.bars.entry(old).or_default();
            there.remove(&bar);
            if there.is_empty() {
                self.bars.remove(&old);
            }
        }
        if let Some(new) = place {
            self.places.insert(bar, new);
            self.bars.entry(new).or_default().insert(bar);
            self.sizes |= new.1;
        }
    }

    /// The places that an address is in, the smallest first.
    fn around(&self, gpa: u64) -> impl DoubleEndedIterator<Item = Place> {
        let sizes = (0..u64::BITS).map(|bit| 1 << bit).filter(|size| self.sizes & size != 0);
        let places = sizes.map(move |size: u64| (gpa & !(size - 1), size));
        places.filter(|place| self.bars.contains_key(place))
    }

    /// The BAR that has an address, the first of several.
    pub(super) fn first_at(&self, gpa: u64) -> Option<(BarKey, u64)> {
        let first = |place: Place| Some((*self.bars[&place].first()?, gpa - place.0));
        self.around(gpa).filter_map(first).min()
    }

    /// The largest place that has this one in it, or itself.
    pub(super) fn whole(&self, place: Place) -> Place {
        self.around(place.0).next_back().filter(|whole| whole.1 > place.1).unwrap_or(place)
    }

    /// What is in a place.
    pub(super) fn within(&self, (base, size): Place) -> impl Iterator<Item = BarKey> {
        let bars = self.bars.range((base, 0)..(base.saturating_add(size), 0));
        bars.flat_map(|(_, bars)| bars).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::id::FunctionId;
    use super::*;

    const BAR: usize = 2;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_overlaps_is_found(
            moves in prop::collection::vec((0..12_u64, prop::option::of((0..64_u64, 4..9_u32))), 1..60),
            gpa in 0..1024_u64,
        ) {
            let (mut layout, mut all) = (Layout::default(), BTreeMap::new());
            for (function, place) in moves {
                let bar = (FunctionId::from_raw(function), BAR);
                let place = place.map(|(at, bits)| (((at * 16) >> bits) << bits, 1_u64 << bits));
                layout.put(bar, place);
                all.remove(&bar);
                all.extend(place.map(|place| (bar, place)));
                prop_assert_eq!(layout.get(&bar), place);
            }
            let meet = |a: &Place, b: &Place| a.0 < b.0 + b.1 && b.0 < a.0 + a.1;
            let at = all.iter().filter(|(_, place)| meet(place, &(gpa, 1)));
            let first = at.map(|(bar, place)| (*bar, gpa - place.0)).next();
            prop_assert_eq!(layout.first_at(gpa), first);
            for place in all.values() {
                // What meets it, what meets that, and so on.
                let mut found: BTreeSet<BarKey> = BTreeSet::new();
                let mut places = vec![*place];
                while let Some(place) = places.pop() {
                    let there = all.iter().filter(|(_, other)| meet(other, &place));
                    places.extend(there.filter(|(bar, _)| found.insert(**bar)).map(|(_, at)| *at));
                }
                prop_assert_eq!(layout.within(layout.whole(*place)).collect::<BTreeSet<_>>(), found);
            }
            for bar in all.keys() {
                layout.put(*bar, None);
            }
            prop_assert!(layout.places.is_empty() && layout.bars.is_empty());
        }
    }
}
