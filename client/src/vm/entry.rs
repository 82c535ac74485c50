//! A region as it is kept.

use std::collections::BTreeSet;

use kvm_memslots_shim::{Kind, Range};

use super::record::{Deferral, Record};
use crate::RegionId;

pub(super) const ALONE: u8 = 1;
pub(super) const PERMANENT: u8 = 2;
pub(super) const DEFERRABLE: u8 = 4;
pub(super) const WAITS: u8 = 8;
/// There is an [`Extra`](super::record::Extra) of it.
pub(super) const EXTRA: u8 = 16;
/// The entry is no region's.
pub(super) const FREE: u8 = 32;

/// A region in 40 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) gpa: u64,
    pub(super) size: u64,
    pub(super) hva: u64,
    pub(super) id: u64,
    pub(super) flags: u16,
    /// KVM has two address spaces at most.
    pub(super) as_id: u8,
    pub(super) kind: Kind,
    pub(super) bits: u8,
}

impl Entry {
    pub(super) fn new(id: RegionId, record: &Record) -> Self {
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        Self {
            gpa: record.range().gpa(),
            size: record.range().size(),
            hva: record.mapping.hva(),
            id: id.to_raw(),
            // KVM_MEM_* that userspace may set are bits 0 to 15.
            flags: record.mapping.flags().bits() as u16,
            as_id: record.as_id as u8,
            kind: record.mapping.kind(),
            bits: bit(record.alone, ALONE)
                | bit(record.permanent, PERMANENT)
                | bit(record.deferral != Deferral::Never, DEFERRABLE)
                | bit(record.waits(), WAITS)
                | bit(record.extra.is_some(), EXTRA),
        }
    }

    pub(super) const fn has(&self, bit: u8) -> bool {
        self.bits & bit != 0
    }

    /// Whether both are found by the same, but for what is beside them.
    pub(super) const fn is_found_like(&self, other: &Self) -> bool {
        self.gpa == other.gpa
            && self.size == other.size
            && self.hva == other.hva
            && self.as_id == other.as_id
            && (self.bits ^ other.bits) & (DEFERRABLE | WAITS) == 0
    }

    pub(super) const fn overlaps(&self, range: Range) -> bool {
        // An entry was a valid range once: nothing overflows.
        self.gpa < range.end() && range.gpa() < self.gpa + self.size
    }
}

/// Regions by host address.
#[derive(Debug, Default)]
pub(super) struct ByHva {
    pub(super) starts: BTreeSet<(u64, u32)>,
    /// No region is or was larger.
    pub(super) largest: u64,
}

impl ByHva {
    pub(super) fn insert(&mut self, entry: &Entry, index: u32) {
        self.starts.insert((entry.hva, index));
        self.largest = self.largest.max(entry.size);
    }
}
