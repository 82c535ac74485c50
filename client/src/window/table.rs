//! What is placed where.

use std::collections::BTreeMap;
use std::fmt;

use crate::Access;

/// What is at some offset of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Placement {
    /// From where in the window on, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// What the guest may do with it.
    pub access: Access,
    /// Where in its file the first byte is, if it was placed from a descriptor.
    pub file_offset: Option<u64>,
}

impl Placement {
    pub(crate) const fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// The part of it that is in `from..to`, which overlaps it.
    fn part(&self, from: u64, to: u64) -> Self {
        let offset = self.offset.max(from);
        let file_offset = self.file_offset.map(|file| file + (offset - self.offset));
        Self { offset, len: self.end().min(to) - offset, file_offset, ..*self }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a placement of {:#x} bytes at offset {:#x}", self.len, self.offset)
    }
}

/// Placements by offset; no two overlap.
#[derive(Debug, Default)]
pub(super) struct Table(BTreeMap<u64, Placement>);

/// What [`Table::cut`] did: taken back by [`Table::undo`].
#[derive(Debug)]
pub(super) struct Cut {
    before: Vec<Placement>,
    left: Vec<u64>,
    /// What was cut out.
    pub(super) pieces: Vec<Placement>,
}

impl Table {
    pub(super) fn iter(&self) -> impl Iterator<Item = Placement> + '_ {
        self.0.values().copied()
    }

    pub(super) fn at(&self, offset: u64) -> Option<Placement> {
        let (_, last) = self.0.range(..=offset).next_back()?;
        (offset < last.end()).then_some(*last)
    }

    /// Those that are in `len` bytes from `offset` on.
    pub(super) fn all_in(&self, offset: u64, len: u64) -> impl Iterator<Item = Placement> + '_ {
        let reaches_in = self.0.range(..offset).next_back().map(|(_, last)| *last);
        let start_there = self.0.range(offset..offset + len).map(|(_, next)| *next);
        reaches_in.into_iter().filter(move |last| offset < last.end()).chain(start_there)
    }

    /// The first of them.
    pub(super) fn first_in(&self, offset: u64, len: u64) -> Option<Placement> {
        self.all_in(offset, len).next()
    }

    pub(super) fn insert(&mut self, placement: Placement) {
        self.0.insert(placement.offset, placement);
    }

    pub(super) fn forget(&mut self, offset: u64) {
        self.0.remove(&offset);
    }

    /// Cuts `len` bytes from `offset` on out of what is there, all of which must
    /// be something; else says where nothing is.
    pub(super) fn cut(&mut self, offset: u64, len: u64) -> Result<Cut, u64> {
        let end = offset + len;
        let mut cut = Cut { before: Vec::new(), left: Vec::new(), pieces: Vec::new() };
        let mut at = offset;
        while at < end {
            let there = self.at(at).ok_or(at)?;
            cut.before.push(there);
            cut.pieces.push(there.part(offset, end));
            at = there.end();
        }
        for there in &cut.before {
            self.0.remove(&there.offset);
            for (from, to) in [(there.offset, offset), (end, there.end())] {
                if from < to {
                    let left = there.part(from, to);
                    cut.left.push(left.offset);
                    self.insert(left);
                }
            }
        }
        Ok(cut)
    }

    pub(super) fn undo(&mut self, cut: &Cut) {
        cut.left.iter().for_each(|offset| self.forget(*offset));
        cut.before.iter().for_each(|there| self.insert(*there));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn placement(offset: u64, len: u64) -> Placement {
        Placement { offset, len, access: Access::Read, file_offset: Some(100 + offset) }
    }

    fn table() -> Table {
        let mut table = Table::default();
        for (offset, len) in [(2, 4), (6, 2), (10, 1)] {
            table.insert(placement(offset, len));
        }
        table
    }

    fn all(table: &Table) -> Vec<Placement> {
        table.iter().collect()
    }

    #[test]
    fn lookups() {
        let table = table();
        let found = [0, 2, 5, 6, 8, 10, 11].map(|at| table.at(at).map(|p| p.offset));
        assert_eq!(found, [None, Some(2), Some(2), Some(6), None, Some(10), None]);
        let first = [(0, 2), (0, 3), (5, 1), (8, 2), (8, 3)].map(|(o, l)| table.first_in(o, l));
        let first = first.map(|p| p.map(|p| p.offset));
        assert_eq!(first, [None, Some(2), Some(2), None, Some(10)]);
    }

    #[test]
    fn a_cut_leaves_what_is_beside_it_and_can_be_undone() {
        let mut table = table();
        let before = all(&table);
        let cut = table.cut(3, 4).unwrap();
        assert_eq!(cut.pieces, [placement(3, 3), placement(6, 1)]);
        assert_eq!(all(&table), [placement(2, 1), placement(7, 1), placement(10, 1)]);
        table.undo(&cut);
        assert_eq!(all(&table), before);
        let cut = table.cut(3, 1).unwrap();
        assert_eq!(all(&table)[..2], [placement(2, 1), placement(4, 2)]);
        table.undo(&cut);
        assert_eq!(all(&table), before);
    }

    #[test]
    fn a_cut_of_what_is_not_there_changes_nothing() {
        let mut table = table();
        let before = all(&table);
        assert_eq!(
            [(0, 3), (7, 2), (7, 4), (11, 1)].map(|(o, l)| table.cut(o, l).unwrap_err()),
            [0, 8, 8, 11]
        );
        assert_eq!(all(&table), before);
    }
}
