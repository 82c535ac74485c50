//! Guest memory of the `vm-memory` crate.

use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::{Error, HostMemory, RegionId, RegionSpec, Transaction};

/// One region's memory, kept alive by the whole it belongs to.
struct Part<B> {
    _whole: GuestMemoryMmap<B>,
    hva: u64,
    size: u64,
}

// SAFETY: a clone of the guest memory shares its mappings, which stay where they
// are until the last one goes; vm-memory gives access to them through volatile
// and atomic operations only, as it expects the guest to write them.
unsafe impl<B: Send + Sync> HostMemory for Part<B> {
    fn range(&self) -> (u64, u64) {
        (self.hva, self.size)
    }
}

/// Maps all regions of `memory` as RAM at their guest addresses, and returns
/// their ids in the same order. `memory` stays mapped for as long as they are.
///
/// # Errors
/// As [`Transaction::map_owned`]; regions before the one that was refused stay
/// part of the transaction.
pub fn map_guest_memory<B>(
    tx: &mut Transaction<'_>,
    memory: &GuestMemoryMmap<B>,
) -> Result<Vec<RegionId>, Error>
where
    B: Bitmap + Send + Sync + 'static,
    GuestMemoryMmap<B>: Clone + GuestMemoryBackend,
{
    memory
        .iter()
        .map(|region| {
            let gpa = region.start_addr().0;
            let hva = region
                .get_host_address(vm_memory::MemoryRegionAddress(0))
                .map_err(|error| Error::Internal(error.to_string()))? as u64;
            let size = region.len();
            let part = Part { _whole: memory.clone(), hva, size };
            tx.map_owned(RegionSpec::ram(gpa, size, hva), Arc::new(part))
        })
        .collect()
}
