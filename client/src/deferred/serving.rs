//! What a VM and its vCPU threads share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use kvm_memslots_shim::{Mapping, Range};

use super::policy::{Costs, Policy};
use super::table::Table;
use crate::RegionId;
use crate::dirty::Overlay;

/// What is kept of a region from when it is mapped to when it is unmapped, or
/// changes its size or its logging.
#[derive(Debug)]
pub(super) struct Life {
    id: RegionId,
    /// Whether it is among those that are [due](Serving::due).
    queued: AtomicBool,
    /// Exits served, of those that a slot would have spared.
    pub(super) exits: AtomicU64,
    /// What it has earned its slot with, where slots are short.
    pub(super) earned: AtomicU64,
    /// The promotion that it had a slot from last.
    pub(super) turn: AtomicU64,
    /// So many exits have to be served before it is due again.
    pub(super) again: AtomicU64,
    /// A bit a page that was written; none where writes are not logged.
    dirty: Box<[AtomicU64]>,
    page_size: u64,
    pub(super) range: Range,
}

impl Life {
    pub(super) fn new(id: RegionId, mapping: &Mapping, page_size: u64) -> Self {
        let pages = mapping.range().size() / page_size;
        let words = if mapping.is_logged() { pages.div_ceil(64) } else { 0 };
        let dirty = (0..words).map(|_| AtomicU64::new(0)).collect();
        Self {
            id,
            queued: AtomicBool::new(false),
            exits: AtomicU64::new(0),
            earned: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            again: AtomicU64::new(0),
            dirty,
            page_size,
            range: mapping.range(),
        }
    }

    pub(super) fn fits(&self, mapping: &Mapping) -> bool {
        self.range == mapping.range() && self.dirty.is_empty() != mapping.is_logged()
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
    pub(super) fn harvest(&self, overlay: &mut Overlay) {
        let bits: Vec<u64> = self.dirty.iter().map(|w| w.swap(0, Ordering::Acquire)).collect();
        if !bits.is_empty() {
            let pages = self.range.size() / self.page_size;
            overlay.or(self.range.gpa() / self.page_size, &bits, 0, pages);
        }
    }
}

/// What a VM and its vCPU threads share, of one address space.
#[derive(Debug)]
pub(crate) struct Serving {
    /// A reader has a share in the table for as long as it touches the memory of
    /// a region. It takes no lock for that.
    pub(super) table: ArcSwap<Table>,
    pub(super) policy: Policy,
    /// What a slot costs, in nanoseconds.
    pub(super) slot_ns: AtomicU64,
    /// What an exit costs, in nanoseconds; [`u64::MAX`] before it is known.
    pub(super) exit_ns: AtomicU64,
    /// Whether that is measured.
    pub(super) measures: bool,
    /// How often regions were promoted.
    pub(super) promotions: AtomicU64,
    /// This process, for reading memory that may fault.
    pub(super) pid: libc::pid_t,
    pub(super) lives: Mutex<HashMap<RegionId, Arc<Life>>>,
    /// Regions that have become due; not waited for by vCPU threads.
    pub(super) due: Mutex<Vec<RegionId>>,
}

/// No exit to userspace and back is faster than this, in nanoseconds: what
/// seems to be is not one, such as the second part of one access.
const FASTEST_EXIT_NS: u64 = 500;

impl Serving {
    pub(super) fn life(&self, id: RegionId) -> Option<Arc<Life>> {
        self.all_lives().get(&id).cloned()
    }

    pub(super) fn all_lives(&self) -> MutexGuard<'_, HashMap<RegionId, Arc<Life>>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many exits were served for a region.
    pub(super) fn exits(&self, id: RegionId) -> u64 {
        self.life(id).map_or(0, |life| life.exits.load(Ordering::Relaxed))
    }

    /// Moves what was served of a region's writes to `overlay`.
    pub(crate) fn harvest(&self, id: RegionId, overlay: &mut Overlay) {
        if let Some(life) = self.life(id) {
            life.harvest(overlay);
        }
    }

    pub(super) fn is_due(&self, exits: u64) -> bool {
        exits >= self.threshold()
    }

    /// Whether a region that has cost so many exits is to be mapped now.
    pub(super) fn is_due_now(&self, life: &Life, exits: u64) -> bool {
        self.is_due(exits) && exits >= life.again.load(Ordering::Relaxed)
    }

    /// Notes that a region is due. Where another thread is at it, the next exit
    /// does.
    pub(super) fn queue(&self, life: &Life) {
        if !life.queued.swap(true, Ordering::Relaxed) {
            match self.due.try_lock() {
                Ok(mut due) => due.push(life.id),
                Err(_) => life.queued.store(false, Ordering::Relaxed),
            }
        }
    }

    /// The regions that have become due since this was called last.
    pub(super) fn take_due(&self) -> Vec<RegionId> {
        let due = std::mem::take(&mut *self.due.lock().unwrap_or_else(PoisonError::into_inner));
        let lives = self.all_lives();
        for life in due.iter().filter_map(|id| lives.get(id)) {
            life.queued.store(false, Ordering::Relaxed);
        }
        due
    }

    /// After so many exits a slot has been earned.
    pub(super) fn threshold(&self) -> u64 {
        let exit_ns = match self.exit_ns.load(Ordering::Relaxed) {
            u64::MAX => Costs::UNMEASURED.exit_ns,
            exit_ns => exit_ns,
        };
        self.policy.exits(self.slot_ns.load(Ordering::Relaxed), exit_ns)
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
