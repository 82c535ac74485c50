//! Who gets which guest addresses.

use std::collections::BTreeMap;

use kvm_memslots_shim::Range;

/// Ranges that do not overlap.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// By start: the end.
    taken: BTreeMap<u64, u64>,
}

impl Claims {
    /// Claims the range, unless part of it is taken.
    pub(super) fn claim(&mut self, range: Range) -> bool {
        let free = self.is_free(range);
        if free {
            self.taken.insert(range.gpa(), range.end());
        }
        free
    }

    /// Whether nobody has claimed any of it.
    pub(super) fn is_free(&self, range: Range) -> bool {
        let before = self.taken.range(..range.end()).next_back();
        before.is_none_or(|(_, end)| *end <= range.gpa())
    }
}
