//! Dirty pages that would be lost with a slot that goes.

use std::collections::{BTreeMap, HashSet};

use kvm_memslots_uapi::MemFlags;

use super::steps::{Refusal, Steps};
use super::undo::{Undone, at_start};
use crate::bits;
use crate::errno::Errno;
use crate::guard::guarded;
use crate::limits::Limits;
use crate::mapping::Slot;
use crate::memory::op::Op;
use crate::memory::plan::Carry;
use crate::range::Range;

/// Dirty pages that KVM has forgotten: its log was read, or went with its slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedDirty {
    /// The pages, in bytes.
    pub range: Range,
    /// A bit a page of `range`, lowest first; `None` where it is not known
    /// which pages are dirty, so that all count as dirty.
    pub pages: Option<Vec<u64>>,
}

/// What is saved of the dirty logs while a plan is carried out.
///
/// A log that was read is in `saved` from then on, for its whole slot, since
/// KVM has forgotten it: whatever happens next, no page is lost. Only when the
/// plan is done is it cut down to the carried pages.
pub(super) struct DirtyLogs<'a> {
    saved: &'a mut Vec<SavedDirty>,
    /// Where in `saved` the own entries start.
    first: usize,
    carries: &'a [Carry],
    /// The slots whose logs were read, with the index of their own entry.
    read: BTreeMap<u16, (Slot, usize)>,
    limits: Limits,
}

impl<'a> DirtyLogs<'a> {
    pub(super) fn new(
        saved: &'a mut Vec<SavedDirty>,
        carries: &'a [Carry],
        limits: Limits,
    ) -> Self {
        let first = saved.len();
        Self { saved, first, carries, read: BTreeMap::new(), limits }
    }

    /// Reads the log of each slot that has something to carry. Only of use
    /// while no vCPU runs: what is written later is in no log.
    pub(super) fn read(&mut self, steps: &Steps<'_>) -> Result<(), (Slot, Refusal)> {
        for Carry { slot, .. } in self.carries {
            if self.read.contains_key(&slot.id) {
                continue;
            }
            match self.log_of(steps, slot) {
                Ok(bits) => {
                    self.read.insert(slot.id, (*slot, self.saved.len() - self.first));
                    self.push(slot, Some(bits));
                }
                // A dirty ring: what it holds for the slot, only the VMM knows.
                Err(Refusal { errno: Errno::ENXIO, .. }) => {}
                Err(refusal) => {
                    // KVM clears the log before it copies it out.
                    self.push(slot, None);
                    return Err((*slot, refusal));
                }
            }
        }
        Ok(())
    }

    fn log_of(&self, steps: &Steps<'_>, slot: &Slot) -> Result<Vec<u64>, Refusal> {
        let refused = |errno, panic| Refusal { index: None, errno, panic };
        let words = self.pages(slot.mapping.range().size()).div_ceil(64);
        let mut bits = Vec::new();
        let room = usize::try_from(words).is_ok_and(|words| bits.try_reserve_exact(words).is_ok());
        if !room {
            return Err(refused(Errno::ENOMEM, None));
        }
        let mut look = |log: &[u64]| bits.extend_from_slice(log);
        match guarded(|| steps.calls.dirty_log(steps.as_id, slot, &mut look)) {
            Ok(Ok(())) => Ok(bits),
            Ok(Err(errno)) => Err(refused(errno, None)),
            Err(panic) => Err(refused(Errno::EIO, Some(panic))),
        }
    }

    /// The plan is done: the carried pages are what counts.
    pub(super) fn keep_carried(self) {
        let logs = self.saved.split_off(self.first);
        for Carry { slot, range } in self.carries {
            let from = slot.mapping.range();
            let Some(range) = from.intersection(*range) else { continue };
            let log = match self.read.get(&slot.id) {
                Some((read, log)) if read == slot => logs[*log].pages.as_deref(),
                _ => None,
            };
            let (skipped, pages) = (self.pages(range.gpa() - from.gpa()), self.pages(range.size()));
            let pages = log.map(|log| {
                let mut cut = vec![0; pages.div_ceil(64) as usize];
                bits::copy(&mut cut, 0, log, skipped, pages);
                cut
            });
            self.saved.push(SavedDirty { range, pages });
        }
    }

    /// The first `taken` steps were taken, or may have been, and then taken
    /// back as far as `undone` says. A slot that is created again has an empty
    /// log, and one whose log was off for a while has a gap: all of it counts as
    /// dirty, unless it was read while no vCPU ran.
    pub(super) fn keep_undone(mut self, steps: &Steps<'_>, taken: usize, undone: &Undone) {
        let start = at_start(steps.ops);
        let ops = || (0..taken).flat_map(|step| steps.ops_of(step));
        let mut lost: Vec<Slot> = Vec::new();
        // A slot that was moved has its log elsewhere. Who puts that right may make it
        // another one, with the same memory.
        let strays = |op: &Op| !undone.is_complete() && matches!(op, Op::Move { .. });
        for op in ops().filter(|op| loses_log(op) || strays(op)) {
            lost.extend(start.get(&op.slot_id()).copied().flatten());
            if !undone.is_complete() {
                // Other slots may be there, with the same memory.
                lost.extend(op.before());
            }
        }
        if !undone.is_complete() {
            // Slots that lost their log, or whose log was read, and that got
            // to another place.
            let forgotten: HashSet<u16> =
                lost.iter().map(|slot| slot.id).chain(self.read.keys().copied()).collect();
            lost.extend(undone.live.iter().filter(|slot| forgotten.contains(&slot.id)));
            // Nobody can read the log of a slot that may be another one.
            let unsure = ops().filter(|op| undone.unsure.contains(&op.slot_id()));
            lost.extend(unsure.flat_map(|op| op.before().into_iter().chain(op.after())));
        }
        lost.retain(|slot| slot.mapping.is_logged());
        lost.sort_unstable_by_key(|slot| (slot.id, slot.mapping.range()));
        lost.dedup();
        for slot in lost {
            if self.read.get(&slot.id).is_none_or(|(read, _)| *read != slot) {
                self.push(&slot, None);
            }
        }
    }

    fn push(&mut self, slot: &Slot, pages: Option<Vec<u64>>) {
        self.saved.push(SavedDirty { range: slot.mapping.range(), pages });
    }

    fn pages(&self, bytes: u64) -> u64 {
        bytes / self.limits.page_size.max(1)
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
