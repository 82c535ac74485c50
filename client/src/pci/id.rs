//! Names of functions.

use std::sync::atomic::{AtomicU64, Ordering};

/// Names a function of a [`PciBars`](super::PciBars). Lower for those that were
/// added earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FunctionId(u64);

impl FunctionId {
    /// One that no other `PciBars` has.
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The name behind a number from [`to_raw`](Self::to_raw).
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// As a number, for languages that have no such type; never 0.
    #[must_use]
    pub const fn to_raw(self) -> u64 {
        self.0
    }
}
