//! A VM in which everything goes, for measuring what is done beside its calls.

use crate::errno::Errno;
use crate::events::{self, EventCalls};
use crate::limits::{EventLimits, Limits};
use crate::mapping::Slot;
use crate::memory::{BatchRefusal, MemoryCalls, Op};

/// Says yes to every call, at once, and keeps nothing. What is left is the cost
/// of whoever calls.
#[derive(Debug, Clone, Copy)]
pub struct Yes(Limits);

impl Yes {
    /// What such a VM says it allows.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self(limits)
    }
}

impl MemoryCalls for Yes {
    fn limits(&self) -> Limits {
        self.0
    }

    fn name(&self) -> &'static str {
        "yes"
    }

    unsafe fn change(&self, _: u16, _: &Op) -> Result<(), Errno> {
        Ok(())
    }

    unsafe fn change_all(&self, _: u16, _: &[Op]) -> Result<(), BatchRefusal> {
        Ok(())
    }

    fn check_all(&self, _: u16, _: &[Op]) -> Result<(), BatchRefusal> {
        Ok(())
    }

    fn dirty_log(&self, _: u16, _: &Slot, _: &mut dyn FnMut(&[u64])) -> Result<(), Errno> {
        Ok(())
    }

    fn clear_dirty_log(&self, _: u16, _: &Slot, _: u64, _: u32, _: &[u64]) -> Result<(), Errno> {
        Ok(())
    }
}

impl EventCalls for Yes {
    fn limits(&self) -> EventLimits {
        EventLimits::x86()
    }

    fn name(&self) -> &'static str {
        "yes"
    }

    fn change(&self, _: &events::Op) -> Result<(), Errno> {
        Ok(())
    }
}
