//! Ranges of guest physical addresses.

use std::fmt;

/// A range of guest physical addresses, in bytes: not empty, and its end fits
/// a `u64`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    gpa: u64,
    size: u64,
}

impl Range {
    /// The range of `size` bytes from `gpa`; `None` if it is empty or wraps.
    #[must_use]
    pub const fn new(gpa: u64, size: u64) -> Option<Self> {
        if size == 0 || gpa.checked_add(size).is_none() { None } else { Some(Self { gpa, size }) }
    }

    /// The range from `gpa` up to, not including, `end`; `None` if that is
    /// nothing.
    #[must_use]
    pub const fn between(gpa: u64, end: u64) -> Option<Self> {
        if gpa < end { Some(Self { gpa, size: end - gpa }) } else { None }
    }

    /// The first address.
    #[must_use]
    pub const fn gpa(self) -> u64 {
        self.gpa
    }

    /// Length in bytes.
    #[must_use]
    pub const fn size(self) -> u64 {
        self.size
    }

    /// The first address behind the range.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.gpa + self.size
    }

    /// Whether the two share an address.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.gpa < other.end() && other.gpa < self.end()
    }

    /// Whether `gpa` lies in it.
    #[must_use]
    pub const fn contains(self, gpa: u64) -> bool {
        self.gpa <= gpa && gpa < self.end()
    }

    /// What the two share, if anything.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Option<Self> {
        let gpa = if self.gpa > other.gpa { self.gpa } else { other.gpa };
        let end = if self.end() < other.end() { self.end() } else { other.end() };
        Self::between(gpa, end)
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.gpa, self.end())
    }
}
