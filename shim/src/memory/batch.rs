//! Changes as the batch ioctl takes them.

use kvm_memslots_uapi::{MemoryRegions, MemoryRegionsFlags};

use super::op::Op;
use crate::errno::Errno;

/// Nobody is to blame until a kernel says so: one that does not get as far as
/// the entries says nothing.
pub(super) const NOBODY: u32 = u32::MAX;

/// `ops` as a batch.
///
/// # Errors
/// `E2BIG`: more than a batch can hold.
pub(super) fn regions(
    as_id: u16,
    flags: MemoryRegionsFlags,
    ops: &[Op],
) -> Result<MemoryRegions, Errno> {
    let mut regions = MemoryRegions::with_capacity(as_id, flags, ops.len());
    for op in ops {
        // The address space is in the header.
        regions.push(&op.to_kvm(0)).map_err(|_| Errno::E2BIG)?;
    }
    regions.set_failed(NOBODY);
    Ok(regions)
}
