//! Sets of events, and relations between them, as the kernel's model has them.

use std::ops::{BitAnd, BitOr};

/// Events, by their numbers: at most 64.
pub(super) type Set = u64;

/// A relation: for each event those that it is related to.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Relation(Vec<Set>);

/// The numbers in `set`.
fn members(set: Set) -> impl Iterator<Item = usize> {
    (0..64).filter(move |&event| set >> event & 1 == 1)
}

impl Relation {
    /// Of `events` events, the pairs that `holds` is true of.
    pub(super) fn of(events: usize, holds: impl Fn(usize, usize) -> bool) -> Self {
        let row = |from| (0..events).filter(|&to| holds(from, to)).fold(0, |row, to| row | 1 << to);
        Self((0..events).map(row).collect())
    }

    /// The identity on `set`.
    pub(super) fn on(events: usize, set: Set) -> Self {
        Self((0..events).map(|event| set & 1 << event).collect())
    }

    pub(super) fn holds(&self, from: usize, to: usize) -> bool {
        self.0[from] >> to & 1 == 1
    }

    pub(super) fn add(&mut self, from: usize, to: usize) {
        self.0[from] |= 1 << to;
    }

    /// `self ; next`
    pub(super) fn then(&self, next: &Self) -> Self {
        let row = |&row: &Set| members(row).fold(0, |all, middle| all | next.0[middle]);
        Self(self.0.iter().map(row).collect())
    }

    /// `[from] ; self ; [to]`
    pub(super) fn between(&self, from: Set, to: Set) -> Self {
        let row = |(event, &row): (usize, &Set)| if from >> event & 1 == 1 { row & to } else { 0 };
        Self(self.0.iter().enumerate().map(row).collect())
    }

    /// `self^-1`
    pub(super) fn inverse(&self) -> Self {
        Self::of(self.0.len(), |from, to| self.holds(to, from))
    }

    /// `self?`
    pub(super) fn maybe(&self) -> Self {
        self | &Self::on(self.0.len(), Set::MAX)
    }

    /// `self*`
    pub(super) fn any(&self) -> Self {
        let mut all = self.maybe();
        loop {
            let more = all.then(&all);
            if more == all {
                return all;
            }
            all = more;
        }
    }

    /// `self \ other`
    pub(super) fn without(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(this, other)| this & !other).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|&row| row == 0)
    }

    pub(super) fn is_irreflexive(&self) -> bool {
        (0..self.0.len()).all(|event| !self.holds(event, event))
    }

    pub(super) fn is_acyclic(&self) -> bool {
        self.then(&self.any()).is_irreflexive()
    }
}

impl BitOr for &Relation {
    type Output = Relation;

    fn bitor(self, other: Self) -> Relation {
        Relation(self.0.iter().zip(&other.0).map(|(this, other)| this | other).collect())
    }
}

impl BitAnd for &Relation {
    type Output = Relation;

    fn bitand(self, other: Self) -> Relation {
        Relation(self.0.iter().zip(&other.0).map(|(this, other)| this & other).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_and_a_circle() {
        let mut next = Relation::of(4, |from, to| from + 1 == to);
        assert!(next.is_acyclic() && next.is_irreflexive());
        assert!(next.any().holds(0, 3) && next.any().holds(2, 2) && !next.any().holds(3, 0));
        assert!(next.then(&next).holds(0, 2) && !next.then(&next).holds(0, 1));
        assert!(next.inverse().holds(3, 2));
        assert!(next.between(0b1, 0b10).without(&next).is_empty());
        next.add(3, 0);
        assert!(!next.is_acyclic() && next.is_irreflexive());
    }
}
