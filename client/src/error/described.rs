//! The region that an error is about.

use std::fmt;
use std::sync::Arc;

use kvm_memslots_shim::Kind;

use crate::RegionId;

/// A region, as an error names it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Described {
    /// Its id.
    pub id: RegionId,
    /// Its label, if it has one.
    pub label: Option<Arc<str>>,
    /// The VMM's own name, if it has one.
    pub tag: Option<u64>,
    /// What it is.
    pub kind: Kind,
    /// Its address space.
    pub as_id: u16,
    /// Its first guest address.
    pub gpa: u64,
    /// Its size in bytes. `gpa + size` may wrap: that may be what is wrong.
    pub size: u64,
    /// The host virtual address behind `gpa`.
    pub hva: u64,
}

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(label) = &self.label {
            write!(f, " \"{label}\"")?;
        }
        write!(f, " ({}", self.id)?;
        if let Some(tag) = self.tag {
            write!(f, ", tag {tag:#x}")?;
        }
        if self.as_id != 0 {
            write!(f, ", address space {}", self.as_id)?;
        }
        write!(f, ") at GPA {:#x}, size {:#x}, HVA {:#x}", self.gpa, self.size, self.hva)
    }
}

/// Which number of a region is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The guest physical address.
    Gpa,
    /// The host virtual address.
    Hva,
    /// The size.
    Size,
    /// The offset into the `guest_memfd`.
    MemfdOffset,
    /// Where to split.
    SplitOffset,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gpa => "GPA",
            Self::Hva => "HVA",
            Self::Size => "size",
            Self::MemfdOffset => "guest_memfd offset",
            Self::SplitOffset => "split offset",
        })
    }
}
