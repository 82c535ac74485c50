//! The VM's side of deferred maps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use kvm_memslots_shim::memory::{Done, Op};
use kvm_memslots_shim::{Mapping, MemFlags};

use super::Deferral;
use super::life::Life;
use super::policy::Estimate;
use super::serving::Serving;
use super::table::{Entry, Table, change};
use crate::by_id::ById;
use crate::dirty::Overlay;
use crate::fork::Process;
use crate::region::RegionId;

/// What vCPU threads are to see of a region.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) mapping: Mapping,
    /// Whether accesses never fault.
    pub(crate) never_faults: bool,
    /// Whether it waits for its slot.
    pub(crate) waits: bool,
}

/// The VM's side of deferred maps, of one address space.
#[derive(Debug)]
pub(crate) struct DeferredMaps {
    serving: Arc<Serving>,
    /// The table that is not shown: the same as the one that is, and read by
    /// nobody. The next change is made in it, before the two change places.
    twin: Arc<Table>,
    pub(crate) only_due: bool,
    map: Estimate,
    unmap: Estimate,
}

impl DeferredMaps {
    pub(crate) fn new(deferral: &Deferral) -> Self {
        let costs = deferral.costs.unwrap_or_default();
        // 0 is no process: nothing is read then.
        let pid = libc::pid_t::try_from(std::process::id()).unwrap_or(0);
        let exit_ns = deferral.costs.map_or(u64::MAX, |costs| costs.exit_ns.max(1));
        Self {
            serving: Arc::new(Serving {
                table: ArcSwap::from_pointee(Table::default()),
                policy: deferral.policy,
                slot_ns: AtomicU64::new(costs.slot_ns()),
                exit_ns: AtomicU64::new(exit_ns),
                measures: deferral.costs.is_none(),
                promotions: AtomicU64::new(0),
                pid,
                process: Process::this(),
                can_try: OnceLock::new(),
                lives: Mutex::new(ById::default()),
                due: Mutex::new(Vec::new()),
            }),
            twin: Arc::default(),
            only_due: deferral.only_due,
            map: Estimate::default(),
            unmap: Estimate::default(),
        }
    }

    pub(crate) fn serving(&self) -> Arc<Serving> {
        Arc::clone(&self.serving)
    }

    /// Whether regions wait at all: not where a slot costs nothing, nor those whose
    /// accesses nobody can serve.
    pub(crate) fn defers(&self, never_faults: bool) -> bool {
        !self.serving.is_due(0) && self.serving.can_serve(never_faults)
    }

    /// Learns from a change what a slot costs.
    pub(crate) fn note_commit(&mut self, ops: &[Op], done: &Done, paused: bool) {
        /// Metadata of larger slots takes longer than their grace periods.
        const LARGE: u64 = 256 << 20;
        if !self.serving.measures || done.ioctls == 0 || paused {
            return;
        }
        let small = |op: &Op| op.range().size() < LARGE;
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
        self.serving.slot_ns.store(map.saturating_add(unmap), Ordering::Relaxed);
    }

    /// Follows changes of regions: name, and what it is now if it is deferrable
    /// still. When this returns, no thread uses what they were.
    ///
    /// What was written to regions that are no more, or no more the same, goes
    /// to `overlay`.
    pub(crate) fn publish(
        &mut self,
        regions: impl Iterator<Item = (RegionId, Option<Shown>)>,
        page_size: u64,
        overlay: &mut Overlay,
    ) {
        let mut lives = self.serving.lives.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut over, mut come) = (Vec::new(), Vec::new());
        for (id, now) in regions {
            let Some(Shown { mapping, never_faults, waits }) = now else {
                over.extend(lives.remove(&id));
                continue;
            };
            let fits = lives.get(&id).filter(|life| life.fits(&mapping)).cloned();
            let life = fits.unwrap_or_else(|| {
                let life = Arc::new(Life::new(id, &mapping, page_size));
                over.extend(lives.insert(id, Arc::clone(&life)));
                life
            });
            come.push(Arc::new(Entry {
                range: mapping.range(),
                hva: mapping.hva(),
                read_only: mapping.flags().contains(MemFlags::READONLY),
                never_faults,
                waits,
                life,
            }));
        }
        if over.is_empty() && come.is_empty() {
            return;
        }
        // All that go go before the first one comes. What only changes is replaced.
        let gone: Vec<u64> = over.iter().map(|life| life.range.gpa()).collect();
        change(alone(&mut self.twin), &gone, &come);
        self.twin = self.serving.table.swap(Arc::clone(&self.twin));
        change(alone(&mut self.twin), &gone, &come);
        for life in over {
            life.harvest(overlay);
        }
    }

    /// Serves nothing any more.
    pub(crate) fn close(&mut self) {
        self.serving.lives.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.twin = self.serving.table.swap(Arc::default());
        alone(&mut self.twin);
    }
}

/// The table, when nobody reads it any more. A reader has a share in what was
/// shown, for as long as copying a few bytes takes: to swap it saw to that.
fn alone(table: &mut Arc<Table>) -> &mut Table {
    while Arc::get_mut(table).is_none() {
        std::thread::yield_now();
    }
    // Nobody can get a share in it but from whoever has one.
    Arc::get_mut(table).unwrap_or_else(|| unreachable!("shared by nobody"))
}
