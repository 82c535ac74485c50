//! A table of routes that is cheap to hand on.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::types::Route;

/// Routes in order, each once. Cloning shares them: a VM has thousands, and a
/// change of one is planned, made and remembered.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Routes(Arc<Vec<Route>>);

impl Routes {
    /// Whether `route` is one of them.
    #[must_use]
    pub fn contains(&self, route: &Route) -> bool {
        self.0.binary_search(route).is_ok()
    }

    /// These without `gone` and with `come`; a route in both is there.
    #[must_use]
    pub fn changed(&self, gone: &BTreeSet<Route>, come: &BTreeSet<Route>) -> Self {
        let mut table = Vec::with_capacity(self.len() + come.len());
        if gone.is_empty() && self.last() < come.first() {
            table.extend_from_slice(self);
            table.extend(come);
            return Self(Arc::new(table));
        }
        let mut rest = &self.0[..];
        for route in gone.union(come) {
            let (before, from) = rest.split_at(rest.partition_point(|old| old < route));
            table.extend_from_slice(before);
            rest = match from {
                [old, behind @ ..] if old == route => behind,
                _ => from,
            };
            if come.contains(route) {
                table.push(*route);
            }
        }
        table.extend_from_slice(rest);
        Self(Arc::new(table))
    }

    /// Those that `other` lacks.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        if Arc::ptr_eq(&self.0, &other.0) {
            return Self::default();
        }
        self.iter().filter(|route| !other.contains(route)).copied().collect()
    }
}

impl Deref for Routes {
    type Target = [Route];

    fn deref(&self) -> &[Route] {
        &self.0
    }
}

impl FromIterator<Route> for Routes {
    fn from_iter<I: IntoIterator<Item = Route>>(routes: I) -> Self {
        let mut table: Vec<Route> = routes.into_iter().collect();
        table.sort_unstable();
        table.dedup();
        Self(Arc::new(table))
    }
}

impl<'a> IntoIterator for &'a Routes {
    type Item = &'a Route;
    type IntoIter = std::slice::Iter<'a, Route>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_set;
    use proptest::prelude::*;

    use super::*;

    fn table() -> impl Strategy<Value = BTreeSet<Route>> {
        btree_set((0..6_u32, 0..3_u32).prop_map(|(gsi, pin)| Route::irqchip(gsi, 2, pin)), 0..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn a_change_is_what_it_is_for_sets(live in table(), gone in table(), come in table()) {
            let routes: Routes = live.iter().copied().collect();
            let expected: BTreeSet<Route> = &(&live - &gone) | &come;
            let changed = routes.changed(&gone, &come);
            prop_assert!(changed.iter().eq(&expected));
            prop_assert!(changed.iter().all(|route| changed.contains(route)));
            let lost = routes.without(&changed);
            prop_assert!(lost.iter().eq(live.difference(&expected)));
        }
    }
}
