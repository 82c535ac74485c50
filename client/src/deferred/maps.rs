//! The VM's side of deferred maps.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use kvm_memslots_shim::memory::{Done, Op};
use kvm_memslots_shim::{Mapping, MemFlags};

use super::Deferral;
use super::life::Life;
use super::policy::Estimate;
use super::serving::Serving;
use super::table::{Entry, Table};
use crate::RegionId;
use crate::dirty::Overlay;
use crate::vm::{self, Record, SlotTable};

/// What vCPU threads are to see of a region.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(super) mapping: Mapping,
    /// Whether accesses never fault.
    pub(super) never_faults: bool,
    /// Whether it waits for its slot.
    pub(super) waits: bool,
}

impl Shown {
    /// Of a region, if it is deferrable.
    pub(super) fn of(record: &Record) -> Option<Self> {
        let never_faults = record.extra.as_ref().is_some_and(|extra| extra.never_faults);
        let is = record.deferral != vm::Deferral::Never;
        is.then_some(Self { mapping: record.mapping, never_faults, waits: record.waits() })
    }
}

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
                due: Mutex::new(Vec::new()),
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
    /// slot has just that memory, and with `whole` no more.
    pub(crate) fn waits(&self, mapping: &Mapping, whole: bool, slots: &SlotTable) -> bool {
        let range = mapping.range();
        let has_it = |slot: &kvm_memslots_shim::Slot| {
            let there = slot.mapping.range();
            slot.mapping.flags() == mapping.flags()
                && slot.mapping.same_host_pages_as(mapping)
                && there.gpa() <= range.gpa()
                && there.end() >= range.end()
                && (!whole || there == range)
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
        let mut regions =
            regions.filter(|(id, now)| now.is_some() || lives.contains_key(id)).peekable();
        if regions.peek().is_none() {
            return;
        }
        let regions: Vec<_> = regions.collect();
        let mut table: Table = self.serving.table.load().as_ref().clone();
        let (mut over, mut come) = (Vec::new(), Vec::new());
        for (id, now) in regions {
            let before = lives.get(&id).cloned();
            // All that go go before the first one comes.
            if let Some(life) = &before {
                table.remove(life.range.gpa());
            }
            let Some(Shown { mapping, never_faults, waits }) = now else {
                lives.remove(&id);
                over.extend(before);
                continue;
            };
            let life = match before {
                Some(life) if life.fits(&mapping) => life,
                before => {
                    over.extend(before);
                    let life = Arc::new(Life::new(id, &mapping, page_size));
                    lives.insert(id, Arc::clone(&life));
                    life
                }
            };
            come.push(Entry {
                range: mapping.range(),
                hva: mapping.hva(),
                read_only: mapping.flags().contains(MemFlags::READONLY),
                never_faults,
                waits,
                life,
            });
        }
        for entry in come {
            table.insert(entry);
        }
        self.replace(table);
        for life in over {
            life.harvest(overlay);
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
