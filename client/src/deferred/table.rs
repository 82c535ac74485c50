//! What vCPU threads look up: the deferrable regions as one table, replaced as a
//! whole.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use kvm_memslots_shim::exec::Done;
use kvm_memslots_shim::{Mapping, MemFlags, Op, Range};

use super::Deferral;
use super::policy::{Costs, Estimate, Policy};
use crate::dirty::Overlay;

/// What is kept of a region from when it is mapped to when it is unmapped, or
/// changes its size or its logging.
#[derive(Debug)]
pub(super) struct Life {
    /// Exits served, of those that a slot would have spared.
    pub(super) exits: AtomicU64,
    /// A bit a page that was written; none where writes are not logged.
    dirty: Box<[AtomicU64]>,
    page_size: u64,
    range: Range,
}

impl Life {
    fn new(mapping: &Mapping, page_size: u64) -> Self {
        let pages = mapping.range.size / page_size;
        let words = if mapping.is_logged() { pages.div_ceil(64) } else { 0 };
        let dirty = (0..words).map(|_| AtomicU64::new(0)).collect();
        Self { exits: AtomicU64::new(0), dirty, page_size, range: mapping.range }
    }

    fn fits(&self, mapping: &Mapping) -> bool {
        self.range == mapping.range && self.dirty.is_empty() != mapping.is_logged()
    }

    /// Marks what was written. Only after it was: whoever reads the log may
    /// copy the page right away.
    pub(super) fn mark(&self, offset: u64, len: u64) {
        if self.dirty.is_empty() || len == 0 {
            return;
        }
        for page in offset / self.page_size..=(offset + len - 1) / self.page_size {
            if let Some(word) = self.dirty.get((page / 64) as usize) {
                word.fetch_or(1 << (page % 64), Ordering::Release);
            }
        }
    }

    /// Moves what is marked to `overlay`.
    fn harvest(&self, overlay: &mut Overlay) {
        let bits: Vec<u64> = self.dirty.iter().map(|w| w.swap(0, Ordering::Acquire)).collect();
        if !bits.is_empty() {
            let pages = self.range.size / self.page_size;
            overlay.or(self.range.gpa / self.page_size, &bits, 0, pages);
        }
    }
}

/// A deferrable region.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) range: Range,
    pub(super) hva: u64,
    pub(super) read_only: bool,
    /// Whether it has no slot yet.
    pub(super) waits: bool,
    pub(super) life: Arc<Life>,
}

/// All of them, by guest address.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Box<[Entry]>,
}

impl Table {
    /// The region at `gpa`, or where the next one starts.
    pub(super) fn at(&self, gpa: u64) -> Result<&Entry, Option<u64>> {
        let next = self.entries.partition_point(|entry| entry.range.gpa <= gpa);
        match next.checked_sub(1).map(|index| &self.entries[index]) {
            Some(entry) if gpa - entry.range.gpa < entry.range.size => Ok(entry),
            _ => Err(self.entries.get(next).map(|entry| entry.range.gpa)),
        }
    }
}

/// What the address space and the vCPU threads share.
#[derive(Debug)]
pub(super) struct Shared {
    /// A reader has a share in the table for as long as it touches the memory of
    /// a region. It takes no lock for that.
    pub(super) table: ArcSwap<Table>,
    pub(super) policy: Policy,
    /// What a slot costs, in nanoseconds.
    slot_ns: AtomicU64,
    /// What an exit costs, in nanoseconds; [`u64::MAX`] before it is known.
    exit_ns: AtomicU64,
    /// Whether that is measured.
    pub(super) measures: bool,
    /// How often regions were promoted.
    pub(super) promotions: AtomicU64,
}

/// No exit to userspace and back is faster than this, in nanoseconds: what
/// seems to be is not one, such as the second part of one access.
const FASTEST_EXIT_NS: u64 = 500;

impl Shared {
    pub(super) fn is_due(&self, exits: u64) -> bool {
        let exit_ns = match self.exit_ns.load(Ordering::Relaxed) {
            u64::MAX => Costs::UNMEASURED.exit_ns,
            exit_ns => exit_ns,
        };
        exits >= self.policy.exits(self.slot_ns.load(Ordering::Relaxed), exit_ns)
    }

    /// Takes in that an exit took `ns`, and a little of the guest.
    pub(super) fn note_exit(&self, ns: u64) {
        self.exit_ns.fetch_min(ns.max(FASTEST_EXIT_NS), Ordering::Relaxed);
    }

    pub(super) fn costs(&self) -> (u64, Option<u64>) {
        let exit_ns = self.exit_ns.load(Ordering::Relaxed);
        (self.slot_ns.load(Ordering::Relaxed), (exit_ns != u64::MAX).then_some(exit_ns))
    }
}

/// The address space's side of deferred maps.
#[derive(Debug)]
pub(crate) struct DeferredMaps {
    pub(super) shared: Arc<Shared>,
    pub(super) only_due: bool,
    /// By index of the region.
    pub(super) lives: HashMap<u32, Arc<Life>>,
    map: Estimate,
    unmap: Estimate,
}

impl DeferredMaps {
    pub(crate) fn new(deferral: &Deferral) -> Self {
        let costs = deferral.costs.unwrap_or_default();
        let exit_ns = deferral.costs.map_or(u64::MAX, |costs| costs.exit_ns.max(1));
        Self {
            shared: Arc::new(Shared {
                table: ArcSwap::from_pointee(Table::default()),
                policy: deferral.policy,
                slot_ns: AtomicU64::new(costs.slot_ns()),
                exit_ns: AtomicU64::new(exit_ns),
                measures: deferral.costs.is_none(),
                promotions: AtomicU64::new(0),
            }),
            only_due: deferral.only_due,
            lives: HashMap::new(),
            map: Estimate::default(),
            unmap: Estimate::default(),
        }
    }

    /// Learns from a commit what a slot costs.
    pub(crate) fn note_commit(&mut self, ops: &[Op], done: &Done) {
        /// Metadata of larger slots takes longer than their grace periods.
        const LARGE: u64 = 256 << 20;
        if !self.shared.measures || done.ioctls == 0 || done.paused {
            return;
        }
        let small = |op: &Op| op.range().size < LARGE;
        let sample = done.elapsed.as_nanos() as u64 / done.ioctls;
        if ops.iter().all(|op| matches!(op, Op::Create(_)) && small(op)) {
            self.map.add(sample);
        } else if ops.iter().all(|op| matches!(op, Op::Delete(_)) && small(op)) {
            self.unmap.add(sample);
        } else {
            return;
        }
        // A delete waits for two grace periods, a create for one.
        let (map, unmap) = match (self.map.ns(), self.unmap.ns()) {
            (Some(map), Some(unmap)) => (map, unmap),
            (Some(map), None) => (map, map.saturating_mul(2)),
            (None, Some(unmap)) => (unmap / 2, unmap),
            (None, None) => return,
        };
        self.shared.slot_ns.store(map.saturating_add(unmap), Ordering::Relaxed);
    }

    /// Replaces the table by one of `regions`: index, mapping, and whether it
    /// waits. When this returns, no thread uses the old one.
    ///
    /// What was written to regions that are no more, or no more the same, goes
    /// to `overlay`.
    pub(crate) fn publish(
        &mut self,
        regions: impl Iterator<Item = (u32, Mapping, bool)>,
        page_size: u64,
        overlay: &mut Overlay,
    ) {
        let mut lives = HashMap::new();
        let mut entries: Vec<Entry> = regions
            .map(|(index, mapping, waits)| {
                let life = self
                    .lives
                    .get(&index)
                    .filter(|life| life.fits(&mapping))
                    .map_or_else(|| Arc::new(Life::new(&mapping, page_size)), Arc::clone);
                lives.insert(index, Arc::clone(&life));
                Entry {
                    range: mapping.range,
                    hva: mapping.hva,
                    read_only: mapping.flags.contains(MemFlags::READONLY),
                    waits,
                    life,
                }
            })
            .collect();
        entries.sort_unstable_by_key(|entry| entry.range.gpa);
        self.replace(Table { entries: entries.into() });
        for (index, life) in std::mem::replace(&mut self.lives, lives) {
            if self.lives.get(&index).is_none_or(|now| !Arc::ptr_eq(now, &life)) {
                life.harvest(overlay);
            }
        }
    }

    /// Serves nothing any more.
    pub(crate) fn close(&mut self) {
        if !self.lives.is_empty() {
            self.replace(Table::default());
            self.lives.clear();
        }
    }

    /// Moves what was served of a region's writes to `overlay`.
    pub(crate) fn harvest(&self, index: u32, overlay: &mut Overlay) {
        if let Some(life) = self.lives.get(&index) {
            life.harvest(overlay);
        }
    }

    fn replace(&self, table: Table) {
        let mut old = self.shared.table.swap(Arc::new(table));
        // A reader that has the old table has a share in it: the swap saw to
        // that. It keeps it for as long as copying a few bytes takes.
        while let Err(shared) = Arc::try_unwrap(old) {
            old = shared;
            std::thread::yield_now();
        }
    }
}
