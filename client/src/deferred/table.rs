//! What vCPU threads find a region by.

use std::sync::Arc;

use kvm_memslots_shim::Range;

use super::life::Life;
use crate::by_gpa::ByGpa;

/// A deferrable region.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) range: Range,
    pub(super) hva: u64,
    pub(super) read_only: bool,
    pub(super) never_faults: bool,
    /// Whether it has no slot yet.
    pub(super) waits: bool,
    pub(super) life: Arc<Life>,
}

/// All of them. None overlaps another.
pub(super) type Table = ByGpa<Arc<Entry>>;

/// The region at `gpa`, or where the next one starts.
pub(super) fn at(table: &Table, gpa: u64) -> Result<&Entry, Option<u64>> {
    match table.last_until(gpa) {
        Some((_, entry)) if entry.range.contains(gpa) => Ok(entry),
        _ => Err(table.starting(gpa).next().map(|(next, _)| next)),
    }
}

/// Puts new entries in place of those at `gone`.
pub(super) fn change(table: &mut Table, gone: &[u64], come: &[Arc<Entry>]) {
    for gpa in gone {
        table.remove(*gpa);
    }
    for entry in come {
        table.insert(entry.range.gpa(), Arc::clone(entry));
    }
}
