//! What KVM has forgotten.

use crate::range::Range;

/// Dirty pages that KVM has forgotten: its log was read, or went with its slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedDirty {
    /// The pages, in bytes.
    pub range: Range,
    /// A bit a page of `range`, lowest first; `None` where it is not known
    /// which pages are dirty, so that all count as dirty.
    pub pages: Option<Vec<u64>>,
}
