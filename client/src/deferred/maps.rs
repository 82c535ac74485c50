//! The VM's side of deferred maps.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use kvm_memslots_shim::memory::{Done, Op};
use kvm_memslots_shim::{Mapping, MemFlags};

use super::Deferral;
use super::policy::Estimate;
use super::serving::{Entry, Life, Serving, Table};
use crate::RegionId;
use crate::dirty::Overlay;
use crate::vm::SlotTable;

/// The VM's side of deferred maps, of one address space.
#[derive(Debug)]
pub(crate) struct DeferredMaps {
    pub(super) serving: Arc<Serving>,
    pub(super) only_due: bool,
    map: Estimate,
    unmap: Estimate,
}

impl DeferredMaps {
    pub(crate) fn new(deferral: &Deferral) -> Self {
        let costs = deferral.costs.unwrap_or_default();
        let exit_ns = deferral.costs.map_or(u64::MAX, |costs| costs.exit_ns.max(1));
        Self {
            serving: Arc::new(Serving {
                table: ArcSwap::from_pointee(Table::default()),
                policy: deferral.policy,
                slot_ns: AtomicU64::new(costs.slot_ns()),
                exit_ns: AtomicU64::new(exit_ns),
                measures: deferral.costs.is_none(),
                promotions: AtomicU64::new(0),
                // 0 is no process: nothing is read then.
                pid: libc::pid_t::try_from(std::process::id()).unwrap_or(0),
                lives: Mutex::new(HashMap::new()),
            }),
            only_due: deferral.only_due,
            map: Estimate::default(),
            unmap: Estimate::default(),
        }
    }

    pub(crate) fn serving(&self) -> Arc<Serving> {
        Arc::clone(&self.serving)
    }

    /// Whether a deferrable region is to wait: nothing is gained by that where a
    /// slot has just that memory.
    pub(crate) fn waits(&self, mapping: &Mapping, alone: bool, slots: &SlotTable) -> bool {
        let range = mapping.range();
        let has_it = |slot: &kvm_memslots_shim::Slot| {
            let whole = slot.mapping.range();
            slot.mapping.flags() == mapping.flags()
                && slot.mapping.same_host_pages_as(mapping)
                && whole.gpa() <= range.gpa()
                && whole.end() >= range.end()
                && (!alone || whole == range)
        };
        !self.serving.is_due(0) && !slots.overlapping(range).any(|slot| has_it(&slot))
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

    /// Replaces the table by one of `regions`: name, mapping, whether accesses
    /// never fault, and whether it waits. When this returns, no thread uses the
    /// old one.
    ///
    /// What was written to regions that are no more, or no more the same, goes
    /// to `overlay`.
    pub(crate) fn publish(
        &mut self,
        regions: impl Iterator<Item = (RegionId, Mapping, bool, bool)>,
        page_size: u64,
        overlay: &mut Overlay,
    ) {
        let mut old = self.serving.lives.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lives = HashMap::new();
        let mut entries: Vec<Entry> = regions
            .map(|(id, mapping, never_faults, waits)| {
                let life = old
                    .get(&id)
                    .filter(|life| life.fits(&mapping))
                    .map_or_else(|| Arc::new(Life::new(&mapping, page_size)), Arc::clone);
                lives.insert(id, Arc::clone(&life));
                Entry {
                    range: mapping.range(),
                    hva: mapping.hva(),
                    read_only: mapping.flags().contains(MemFlags::READONLY),
                    never_faults,
                    waits,
                    life,
                }
            })
            .collect();
        entries.sort_unstable_by_key(|entry| entry.range.gpa());
        self.replace(Table { entries: entries.into() });
        for (id, life) in std::mem::replace(&mut *old, lives) {
            if old.get(&id).is_none_or(|now| !Arc::ptr_eq(now, &life)) {
                life.harvest(overlay);
            }
        }
    }

    /// Serves nothing any more.
    pub(crate) fn close(&mut self) {
        let mut lives = self.serving.lives.lock().unwrap_or_else(PoisonError::into_inner);
        if !lives.is_empty() {
            self.replace(Table::default());
            lives.clear();
        }
    }

    fn replace(&self, table: Table) {
        let mut old = self.serving.table.swap(Arc::new(table));
        // A reader that has the old table has a share in it: the swap saw to
        // that. It keeps it for as long as copying a few bytes takes.
        while let Err(shared) = Arc::try_unwrap(old) {
            old = shared;
            std::thread::yield_now();
        }
    }
}
