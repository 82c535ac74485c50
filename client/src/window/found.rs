//! What a guest finds at an address that a window may be at.

use kvm_memslots_shim::Range;

use super::{Placement, Window};
use crate::Vm;

impl Window {
    /// Where in this window a range of guest addresses is, if all of it is there.
    pub(crate) fn offset_of(&self, vm: &Vm, as_id: u16, range: Range) -> Option<u64> {
        let (mut gpa, mut offset) = (range.gpa(), None);
        // The window's region may have been split.
        while gpa < range.end() {
            let region = vm.region_at(as_id, gpa)?;
            let hva = region.hva + (gpa - region.range.gpa());
            let at = hva.checked_sub(self.inner.host.base()).filter(|at| *at < self.size())?;
            let start = *offset.get_or_insert(at);
            if at.checked_sub(start) != Some(gpa - range.gpa()) {
                return None;
            }
            gpa = region.range.end();
        }
        offset
    }

    /// What a guest finds at an address of an address space of `vm`, if this
    /// window is there: to tell an access to a gap from a mistake of the VMM's.
    #[must_use]
    pub fn found(&self, vm: &Vm, as_id: u16, gpa: u64) -> Option<Found> {
        let offset = self.offset_at(vm, as_id, gpa)?;
        Some(self.at(offset).map_or(Found::Gap { offset }, Found::Placed))
    }

    /// Where in the window an address of an address space of `vm` is, if it is.
    #[must_use]
    pub fn offset_at(&self, vm: &Vm, as_id: u16, gpa: u64) -> Option<u64> {
        self.offset_of(vm, as_id, Range::new(gpa, 1)?)
    }
}

/// What is at a guest address that is in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Gap {
        /// Where in the window.
        offset: u64,
    },
    /// This. An access that failed came before it was placed, or wrote to what is
    /// read-only, or its memory is not there: behind the end of a file.
    Placed(Placement),
}
