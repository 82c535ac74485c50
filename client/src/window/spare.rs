//! Room for undoing.

use std::ptr::null_mut;

use kvm_memslots_shim::Errno;
use libc::{MAP_ANONYMOUS, MAP_NORESERVE};

use super::host::{Failed, address, page_size, pointer};

/// Mappings of no use, in whose place there is room for others.
///
/// Near the limit of mappings (`vm.max_map_count`) the kernel refuses to take back
/// what it has just done: `mmap` counts before it looks what it is to replace, and
/// `mremap` wants room for several (`do_mmap()`, `mremap_to()`).
#[derive(Debug)]
pub(super) struct Spare(u64);

impl Spare {
    /// How many: moving a mapping back takes room for three.
    const MAPPINGS: u64 = 5;

    pub(super) fn new() -> Result<Self, Failed> {
        // Shared, it is never made one with its neighbours.
        let how = libc::MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE;
        let (page, size) = (page_size(), (Self::MAPPINGS * page_size()) as usize);
        // SAFETY: a new mapping, at addresses that the kernel chooses.
        let at = unsafe { libc::mmap(null_mut(), size, libc::PROT_NONE, how, -1, 0) };
        let spare = Self(address(at, "mmap")?);
        for n in (1..Self::MAPPINGS).step_by(2) {
            let at = pointer(spare.0 + n * page);
            // SAFETY: in the new mapping, of which it makes several.
            if unsafe { libc::madvise(at, page as usize, libc::MADV_DONTDUMP) } != 0 {
                return Err(("madvise", Errno::last()));
            }
        }
        Ok(spare)
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        let size = (Self::MAPPINGS * page_size()) as usize;
        // SAFETY: the mappings are this value's, and nobody knows of them.
        unsafe { libc::munmap(pointer(self.0), size) };
    }
}
