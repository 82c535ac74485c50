//! Dirty pages that would be lost with a slot that goes.

use std::collections::{HashMap, HashSet};

use kvm_memslots_uapi::MemFlags;

use super::steps::Steps;
use super::undo::at_start;
use super::{ExecError, SavedDirty};
use crate::backend::{Errno, Memslots};
use crate::{Carry, Limits, Op, Slot};

/// What is saved of the dirty logs while a plan is carried out.
///
/// A log that was read is in `saved` from then on, for its whole slot, since
/// KVM has forgotten it: whatever happens next, also a panic, no page is lost.
/// Only when the plan is done is it cut down to the carried pages.
pub(super) struct DirtyLogs<'a> {
    saved: &'a mut Vec<SavedDirty>,
    /// Where in `saved` the own entries start.
    first: usize,
    carries: &'a [Carry],
    /// The slots whose logs were read, with the index of their own entry.
    read: HashMap<u16, (Slot, usize)>,
    limits: Limits,
}

impl<'a> DirtyLogs<'a> {
    pub(super) fn new(
        saved: &'a mut Vec<SavedDirty>,
        carries: &'a [Carry],
        limits: Limits,
    ) -> Self {
        let first = saved.len();
        Self { saved, first, carries, read: HashMap::new(), limits }
    }

    /// Reads the log of each slot that has something to carry. Only of use
    /// while no vCPU runs: what is written later is in no log.
    pub(super) fn read<B: Memslots + ?Sized>(
        &mut self,
        backend: &mut B,
        as_id: u16,
    ) -> Result<(), ExecError> {
        for carry in self.carries {
            let slot = carry.slot;
            if self.read.contains_key(&slot.id) {
                continue;
            }
            match self.log_of(backend, as_id, &slot) {
                Ok(bits) => {
                    self.read.insert(slot.id, (slot, self.saved.len() - self.first));
                    self.push(slot, Some(bits));
                }
                // A dirty ring: what it holds for the slot, only the VMM knows.
                Err(Errno::ENXIO) => {}
                Err(errno) => {
                    // KVM clears the log before it copies it out.
                    self.push(slot, None);
                    return Err(ExecError::DirtyLog { slot, errno });
                }
            }
        }
        Ok(())
    }

    fn log_of<B: Memslots + ?Sized>(
        &self,
        backend: &mut B,
        as_id: u16,
        slot: &Slot,
    ) -> Result<Vec<u64>, Errno> {
        let pages = self.pages(slot.mapping.range.size);
        if pages > self.limits.slot_pages {
            return Err(Errno::EINVAL);
        }
        let mut bits = vec![0; pages.div_ceil(64) as usize];
        backend.dirty_log(as_id, slot, &mut bits)?;
        Ok(bits)
    }

    /// The plan is done: the carried pages are what counts.
    pub(super) fn keep_carried(self) {
        let logs = self.saved.split_off(self.first);
        for Carry { slot, range } in self.carries {
            let Some(range) = slot.mapping.range.intersection(*range) else { continue };
            let log = match self.read.get(&slot.id) {
                Some((read, log)) if read == slot => logs[*log].pages.as_deref(),
                _ => None,
            };
            let skipped = self.pages(range.gpa - slot.mapping.range.gpa);
            let pages = log.map(|bits| cut(bits, skipped, self.pages(range.size)));
            self.saved.push(SavedDirty { range, pages });
        }
    }

    /// The first `done` steps were taken and then taken back; if that did not
    /// reach the start, `stuck` is what is live. A slot that is created again
    /// has an empty log, and one whose log was off for a while has a gap: all
    /// of it counts as dirty, unless it was read while vCPUs were paused.
    pub(super) fn keep_undone<B: Memslots + ?Sized>(
        mut self,
        steps: &Steps<'_, B>,
        done: usize,
        stuck: Option<&[Slot]>,
    ) {
        let start = at_start(steps.ops());
        let mut lost: Vec<Slot> = Vec::new();
        for op in (0..done).flat_map(|step| steps.ops_of(step)).filter(|op| loses_log(op)) {
            lost.extend(start.get(&op.slot_id()).copied().flatten());
            if stuck.is_some() {
                // Other slots may be there, with the same memory.
                lost.extend(op.before());
            }
        }
        if let Some(live) = stuck {
            // Slots that lost their log, or whose log was read, and that got
            // to another place.
            let forgotten: HashSet<u16> =
                lost.iter().map(|slot| slot.id).chain(self.read.keys().copied()).collect();
            lost.extend(live.iter().filter(|slot| forgotten.contains(&slot.id)));
        }
        lost.retain(|slot| slot.mapping.is_logged());
        lost.sort_unstable_by_key(|slot| (slot.id, slot.mapping.range));
        lost.dedup();
        for slot in lost {
            if self.read.get(&slot.id).is_none_or(|(read, _)| *read != slot) {
                self.push(slot, None);
            }
        }
    }

    fn push(&mut self, slot: Slot, pages: Option<Vec<u64>>) {
        self.saved.push(SavedDirty { range: slot.mapping.range, pages });
    }

    fn pages(&self, bytes: u64) -> u64 {
        bytes / self.limits.page_size
    }
}

/// Whether KVM forgets dirty pages with this change, which undoing does not
/// bring back. A move takes them along.
fn loses_log(op: &Op) -> bool {
    match op {
        Op::Delete(slot) => slot.mapping.is_logged(),
        Op::SetFlags { from, flags } => {
            from.mapping.is_logged() && !flags.contains(MemFlags::LOG_DIRTY_PAGES)
        }
        Op::Create(_) | Op::Move { .. } => false,
    }
}

/// `pages` bits from bit `first` on, as the lowest ones.
fn cut(bits: &[u64], first: u64, pages: u64) -> Vec<u64> {
    let (skip, shift) = ((first / 64) as usize, first % 64);
    let word = |index: usize| bits.get(index).copied().unwrap_or(0);
    let joined = |index| match shift {
        0 => word(index),
        _ => word(index) >> shift | word(index + 1) << (64 - shift),
    };
    let mut cut: Vec<u64> = (skip..).take(pages.div_ceil(64) as usize).map(joined).collect();
    if let (Some(last), 1..) = (cut.last_mut(), pages % 64) {
        *last &= !(!0 << (pages % 64));
    }
    cut
}
