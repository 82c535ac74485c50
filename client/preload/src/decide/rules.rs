//! Which slots are treated in which way.

use super::region::READONLY;

/// How a slot that churns is taken away and brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// As the VMM asks for it.
    AsAsked,
    /// It stays, and its trap bit is set and cleared.
    Trap,
    /// It is removed; it is brought back when that has become worth it.
    Defer,
}

/// Which slots are treated so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) way: Way,
    /// How many flips of a slot are let through: removals, and additions of the
    /// same that was removed.
    pub(crate) flips: u32,
    /// Also slots that the guest may write to.
    pub(crate) writable: bool,
}

impl Rules {
    /// Whether a slot with these flags can be one that is treated so.
    pub(crate) const fn allow(self, flags: u32) -> bool {
        flags == READONLY || flags == 0 && self.writable
    }
}
