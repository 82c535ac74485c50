//! The model of memslots, and somebody who is told of each call before it is made.
#![allow(unreachable_pub)]

use kvm_memslots::backend::{BatchRefusal, MemoryCalls, MemoryModel, Op};
use kvm_memslots::{Errno, Limits, Slot};

/// What is asked of KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Change,
    Log,
    Name,
}

pub struct Told<F> {
    model: MemoryModel,
    of: F,
}

impl<F: Fn(Call) + Send + Sync> Told<F> {
    pub fn new(of: F) -> Self {
        Self { model: MemoryModel::new(Limits::x86()), of }
    }
}

impl<F: Fn(Call) + Send + Sync> MemoryCalls for Told<F> {
    fn limits(&self) -> Limits {
        MemoryCalls::limits(&self.model)
    }

    fn name(&self) -> &'static str {
        (self.of)(Call::Name);
        "told"
    }

    unsafe fn change(&self, as_id: u16, op: &Op) -> Result<(), Errno> {
        (self.of)(Call::Change);
        // SAFETY: as the caller says.
        unsafe { self.model.change(as_id, op) }
    }

    unsafe fn change_all(&self, as_id: u16, ops: &[Op]) -> Result<(), BatchRefusal> {
        (self.of)(Call::Change);
        // SAFETY: as the caller says.
        unsafe { self.model.change_all(as_id, ops) }
    }

    fn check_all(&self, as_id: u16, ops: &[Op]) -> Result<(), BatchRefusal> {
        self.model.check_all(as_id, ops)
    }

    fn dirty_log(
        &self,
        as_id: u16,
        slot: &Slot,
        look: &mut dyn FnMut(&[u64]),
    ) -> Result<(), Errno> {
        (self.of)(Call::Log);
        self.model.dirty_log(as_id, slot, look)
    }

    fn clear_dirty_log(
        &self,
        as_id: u16,
        slot: &Slot,
        first: u64,
        pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        (self.of)(Call::Log);
        MemoryCalls::clear_dirty_log(&self.model, as_id, slot, first, pages, bitmap)
    }
}
