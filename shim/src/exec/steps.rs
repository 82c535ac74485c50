//! The calls of a plan, one after the other.

use kvm_memslots_uapi::{
    MAX_ENTRIES, MemoryRegions, MemoryRegionsFlags, kvm_userspace_memory_region2,
};

use super::How;
use crate::Op;
use crate::backend::{Errno, Memslots};

/// A plan's changes as calls: one a change, or one a chunk of them. Step n is
/// call n.
pub(super) struct Steps<'a, B: ?Sized> {
    pub(super) backend: &'a mut B,
    pub(super) as_id: u16,
    ops: &'a [Op],
    batch: Option<Batch>,
}

struct Batch {
    /// Changes a call.
    size: usize,
    /// Used again by each call.
    regions: MemoryRegions,
}

/// KVM said no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Which change of the plan.
    pub(super) index: Option<usize>,
    pub(super) errno: Errno,
}

impl<'a, B: Memslots + ?Sized> Steps<'a, B> {
    pub(super) fn new(backend: &'a mut B, as_id: u16, ops: &'a [Op], how: How) -> Self {
        let batch = match how {
            How::PerRegion => None,
            How::Batch { max_entries } => {
                let size = (max_entries as usize).clamp(1, MAX_ENTRIES);
                let flags = MemoryRegionsFlags::empty();
                let regions = MemoryRegions::with_capacity(as_id, flags, size.min(ops.len()));
                Some(Batch { size, regions })
            }
        };
        Self { backend, as_id, ops, batch }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        match &self.batch {
            None => self.ops.len(),
            Some(batch) => self.ops.len().div_ceil(batch.size),
        }
    }

    /// Whether KVM makes all changes visible at once, and takes dirty bits
    /// along.
    pub(super) fn is_atomic(&self) -> bool {
        self.batch.is_some() && self.count() <= 1
    }

    /// The changes that all steps make, in order.
    pub(super) fn ops(&self) -> &'a [Op] {
        self.ops
    }

    /// The changes that `step` makes, in order.
    pub(super) fn ops_of(&self, step: usize) -> &'a [Op] {
        let size = self.size();
        let start = (step * size).min(self.ops.len());
        &self.ops[start..self.ops.len().min(start + size)]
    }

    fn size(&self) -> usize {
        self.batch.as_ref().map_or(1, |batch| batch.size)
    }

    /// Takes `step`.
    ///
    /// # Safety
    /// [`Memslots::set_region`] for what the step's changes map.
    pub(super) unsafe fn take(&mut self, step: usize) -> Result<(), Refusal> {
        let ops = self.ops_of(step);
        let first = step * self.size();
        let Some(batch) = &mut self.batch else {
            let region = region(self.as_id, &self.ops[step]);
            // SAFETY: the caller's promise is the same.
            let answer = unsafe { self.backend.set_region(&region) };
            return answer.map_err(|errno| Refusal { index: Some(step), errno });
        };
        batch.fill(ops.iter().copied());
        // SAFETY: the caller's promise is the same.
        unsafe { self.backend.set_regions(&mut batch.regions) }.map_err(|errno| {
            let failed = batch.regions.failed_entry();
            Refusal { index: failed.map(|(entry, _)| first + entry), errno }
        })
    }

    /// Takes `step` back.
    ///
    /// # Safety
    /// [`Memslots::set_region`] for what was mapped before the step.
    pub(super) unsafe fn take_back(&mut self, step: usize) -> Result<(), Errno> {
        let ops = self.ops_of(step);
        let Some(batch) = &mut self.batch else {
            let region = region(self.as_id, &self.ops[step].inverse());
            // SAFETY: the caller's promise is the same.
            return unsafe { self.backend.set_region(&region) };
        };
        batch.fill(ops.iter().rev().map(Op::inverse));
        // SAFETY: the caller's promise is the same.
        unsafe { self.backend.set_regions(&mut batch.regions) }
    }

    /// Has KVM check the first step, which is not taken.
    pub(super) fn check_first(&mut self) -> Result<(), Refusal> {
        let ops = self.ops_of(0);
        let Some(batch) = &mut self.batch else { return Ok(()) };
        batch.fill(ops.iter().copied());
        batch.regions.set_flags(MemoryRegionsFlags::DRY_RUN);
        // SAFETY: nothing is asked of a dry run, which maps nothing.
        unsafe { self.backend.set_regions(&mut batch.regions) }.map_err(|errno| {
            let failed = batch.regions.failed_entry();
            Refusal { index: failed.map(|(entry, _)| entry), errno }
        })
    }
}

impl Batch {
    fn fill(&mut self, ops: impl Iterator<Item = Op>) {
        self.regions.clear();
        for op in ops {
            // The address space is in the header, and `size` is within bounds:
            // there is nothing to refuse.
            let pushed = self.regions.push(&region(0, &op));
            debug_assert_eq!(pushed, Ok(()));
        }
        // A kernel that does not get as far as the entries blames none.
        self.regions.set_failed(u32::MAX);
    }
}

/// `op` as KVM takes it.
fn region(as_id: u16, op: &Op) -> kvm_userspace_memory_region2 {
    match op {
        Op::Create(slot) => slot.to_kvm(as_id),
        Op::Delete(slot) => kvm_userspace_memory_region2 {
            slot: u32::from(as_id) << 16 | u32::from(slot.id),
            guest_phys_addr: slot.mapping.range.gpa,
            memory_size: 0,
            userspace_addr: slot.mapping.hva,
            ..Default::default()
        },
        Op::Move { from, gpa } => {
            kvm_userspace_memory_region2 { guest_phys_addr: *gpa, ..from.to_kvm(as_id) }
        }
        Op::SetFlags { from, flags } => {
            kvm_userspace_memory_region2 { flags: flags.bits(), ..from.to_kvm(as_id) }
        }
    }
}
