//! What a VM and its vCPU threads share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwap;

use super::access;
use super::life::Life;
use super::policy::{Costs, Policy};
use super::table::Table;
use crate::by_id::ById;
use crate::dirty::Overlay;
use crate::fork::Process;
use crate::region::RegionId;

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
    pub(crate) promotions: AtomicU64,
    /// This process, for reading memory that may fault.
    pub(super) pid: libc::pid_t,
    pub(super) process: Process,
    /// Whether such memory can be read at all, once somebody wanted to know.
    pub(super) can_try: OnceLock<bool>,
    pub(super) lives: Mutex<ById<RegionId, Arc<Life>>>,
    /// Regions that have become due; not waited for by vCPU threads.
    pub(super) due: Mutex<Vec<RegionId>>,
}

/// No exit to userspace and back is faster than this, in nanoseconds: what
/// seems to be is not one, such as the second part of one access.
const FASTEST_EXIT_NS: u64 = 500;

impl Serving {
    pub(crate) fn life(&self, id: RegionId) -> Option<Arc<Life>> {
        self.all_lives().get(&id).cloned()
    }

    pub(crate) fn all_lives(&self) -> MutexGuard<'_, ById<RegionId, Arc<Life>>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a region whose memory may fault, or not, can wait for its slot.
    pub(crate) fn can_serve(&self, never_faults: bool) -> bool {
        never_faults || *self.can_try.get_or_init(|| access::can_try(self.pid))
    }

    /// How many exits were served for a region.
    pub(crate) fn exits(&self, id: RegionId) -> u64 {
        self.life(id).map_or(0, |life| life.exits.load(Ordering::Relaxed))
    }

    /// Moves what was served of a region's writes to `overlay`.
    pub(crate) fn harvest(&self, id: RegionId, overlay: &mut Overlay) {
        if let Some(life) = self.life(id) {
            life.harvest(overlay);
        }
    }

    pub(crate) fn is_due(&self, exits: u64) -> bool {
        exits >= self.threshold()
    }

    /// Whether a region that has cost so many exits is to be mapped now.
    pub(crate) fn is_due_now(&self, life: &Life, exits: u64) -> bool {
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
    pub(crate) fn take_due(&self) -> Vec<RegionId> {
        let due = std::mem::take(&mut *self.due.lock().unwrap_or_else(PoisonError::into_inner));
        let lives = self.all_lives();
        for life in due.iter().filter_map(|id| lives.get(id)) {
            life.queued.store(false, Ordering::Relaxed);
        }
        due
    }

    /// After so many exits a slot has been earned.
    pub(crate) fn threshold(&self) -> u64 {
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

    pub(crate) fn costs(&self) -> (u64, Option<u64>) {
        let exit_ns = self.exit_ns.load(Ordering::Relaxed);
        (self.slot_ns.load(Ordering::Relaxed), (exit_ns != u64::MAX).then_some(exit_ns))
    }
}
