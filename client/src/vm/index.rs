//! The edits of a large set, by name and by region.

use crate::RegionId;
use crate::by_id::ById;

/// Where in a set of many edits each one is.
#[derive(Debug, Default)]
pub(super) struct Index {
    by_id: ById<u64, usize>,
    /// A bit a region that is applied: 1 where the set has something to say about it.
    hidden: Vec<u64>,
}

impl Index {
    /// With room for so many.
    pub(super) fn new(edits: usize) -> Self {
        let mut index = Self::default();
        index.by_id.reserve(edits);
        index
    }

    /// Notes the edit `at`, of the region of that name, and which one it is if it is
    /// applied.
    pub(super) fn enter(&mut self, at: usize, id: RegionId, region: Option<u32>) {
        self.by_id.insert(id.to_raw(), at);
        let Some(region) = region else { return };
        let word = region as usize / 64;
        if self.hidden.len() <= word {
            self.hidden.resize(word + 1, 0);
        }
        self.hidden[word] |= 1 << (region % 64);
    }

    pub(super) fn find(&self, id: RegionId) -> Option<usize> {
        self.by_id.get(&id.to_raw()).copied()
    }

    pub(super) fn hides(&self, region: u32) -> bool {
        let word = self.hidden.get(region as usize / 64);
        word.is_some_and(|word| word & 1 << (region % 64) != 0)
    }
}
