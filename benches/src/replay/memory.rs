//! Host addresses for the slots of a trace.

use anyhow::{Context as _, Result};
use kvm_memslots_shim::uapi::kvm_userspace_memory_region2;

use crate::trace::{Call, Trace};
use kvm_memslots_kit::host::{HostMemory, LARGE_PAGE, Pages};

/// Host memory for a trace: reserved, never touched, so that a trace of any
/// VM fits.
///
/// What lay next to each other in the VMM does here, and what did not does not:
/// slots can be joined exactly where they could have been. Addresses keep their
/// place within a large page, which decides how KVM may map them.
#[derive(Debug)]
pub struct TracedMemory {
    memory: HostMemory,
    pieces: Vec<Piece>,
}

/// A range of the VMM's addresses without gaps, and where it is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    from: u64,
    to: u64,
    offset: u64,
}

impl TracedMemory {
    /// Reserves host addresses for all slots of `trace`.
    ///
    /// # Errors
    /// There are not as many.
    pub fn reserve(trace: &Trace) -> Result<Self> {
        let slots = trace.made().filter(|call| !call.deletes()).map(|call| &call.region);
        let (pieces, bytes) = pieces(slots);
        let memory = HostMemory::reserve(bytes, Pages::Small)
            .with_context(|| format!("{bytes} bytes of host addresses for the trace's memory"))?;
        Ok(Self { memory, pieces })
    }

    /// The call, with the address of its memory here. The address in a delete,
    /// which means nothing, becomes 0 if it is of no slot.
    #[must_use]
    pub fn place(&self, call: &Call) -> Call {
        let hva = call.region.userspace_addr;
        let after = self.pieces.partition_point(|piece| piece.from <= hva);
        let piece = after.checked_sub(1).map(|index| self.pieces[index]);
        let piece = piece.filter(|piece| hva < piece.to);
        let userspace_addr =
            piece.map_or(0, |piece| self.memory.hva() + piece.offset + (hva - piece.from));
        Call { region: kvm_userspace_memory_region2 { userspace_addr, ..call.region }, ..*call }
    }
}

/// The ranges that slots lie in, and how many bytes they take together.
fn pieces<'a>(slots: impl Iterator<Item = &'a kvm_userspace_memory_region2>) -> (Vec<Piece>, u64) {
    let mut ranges: Vec<(u64, u64)> = slots
        .map(|slot| {
            let from = slot.userspace_addr;
            (from, from.saturating_add(slot.memory_size))
        })
        .collect();
    ranges.sort_unstable();
    let mut pieces: Vec<Piece> = Vec::new();
    let mut bytes = 0_u64;
    for (from, to) in ranges {
        match pieces.last_mut() {
            Some(last) if from <= last.to => {
                bytes += to.max(last.to) - last.to;
                last.to = last.to.max(to);
            }
            _ => {
                // At least a page from the last one, at the same place of a
                // large page.
                let gap = (bytes + 1).next_multiple_of(LARGE_PAGE);
                let offset = if pieces.is_empty() { 0 } else { gap } + from % LARGE_PAGE;
                pieces.push(Piece { from, to, offset });
                bytes = offset + (to - from);
            }
        }
    }
    (pieces, bytes)
}
