//! What is known of dirty pages beside KVM.

use kvm_memslots_shim::memory::SavedDirty;

use super::Overlay;

/// Dirty pages that KVM does not know any more, for each address space.
#[derive(Debug)]
pub(crate) struct DirtyState(Vec<Overlay>);

impl DirtyState {
    pub(crate) fn new(address_spaces: usize) -> Self {
        Self((0..address_spaces).map(|_| Overlay::default()).collect())
    }

    pub(crate) fn overlay(&mut self, as_id: u16) -> &mut Overlay {
        &mut self.0[usize::from(as_id)]
    }

    /// Keeps what was read of logs that went.
    pub(crate) fn keep(&mut self, as_id: u16, saved: Vec<SavedDirty>, page_size: u64) {
        for SavedDirty { range, pages } in saved {
            let (gfn, count) = (range.gpa() / page_size, range.size() / page_size);
            match pages {
                Some(bits) => self.overlay(as_id).or(gfn, &bits, 0, count),
                None => self.overlay(as_id).set(gfn, count),
            }
        }
    }
}
