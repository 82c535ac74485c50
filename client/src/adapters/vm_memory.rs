//! Guest memory of the `vm-memory` crate.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use crate::{Access, Backing, FileRange, HostMemory, RegionSpec, at};

/// A region of `vm-memory`, kept alive by itself.
struct Region<R> {
    _keeps_alive: Arc<R>,
    hva: u64,
    size: u64,
    file: Option<FileRange>,
}

// SAFETY: a region's mapping stays where it is until it is dropped; `vm-memory`
// gives access to it through volatile and atomic operations only, as it expects
// the guest to write it.
unsafe impl<R: Send + Sync> HostMemory for Region<R> {
    fn range(&self) -> (u64, u64) {
        (self.hva, self.size)
    }

    fn access(&self) -> Access {
        Access::ReadWrite
    }

    fn file(&self) -> Option<FileRange> {
        self.file
    }
}

impl Backing {
    /// The memory of a region of `vm-memory`, which is held for as long as KVM
    /// maps it, and no longer: the others go on living by themselves. Nothing if
    /// the region has no host address.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::sync::Arc;
    ///
    /// use kvm_memslots::{Backing, Changes, RegionSpec};
    /// use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};
    ///
    /// let mapping = MmapRegion::<()>::new(0x10000)?;
    /// let region = GuestRegionMmap::new(mapping, GuestAddress(0)).ok_or("wraps")?;
    /// let region = Arc::new(region);
    /// let mut c = Changes::new();
    /// c.map(RegionSpec::vm_memory(&region).ok_or("no host address")?.permanent());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn vm_memory<B>(region: &Arc<GuestRegionMmap<B>>) -> Option<Self>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        // SAFETY: it is an `MmapRegion`, which unmaps when it is dropped.
        unsafe { Self::vm_memory_region(region) }
    }

    /// The same of any other kind of region.
    ///
    /// # Safety
    /// The host addresses that the region says, as many bytes as it says it has,
    /// are mapped for as long as it lives, and accessed through `vm-memory` only.
    #[must_use]
    pub unsafe fn vm_memory_region<R>(region: &Arc<R>) -> Option<Self>
    where
        R: GuestMemoryRegion + Send + Sync + 'static,
    {
        let hva = region.get_host_address(MemoryRegionAddress(0)).ok()?;
        let file = region
            .file_offset()
            .map(|offset| FileRange { fd: offset.file().as_raw_fd(), offset: offset.start() });
        let memory = Region {
            hva: hva.expose_provenance() as u64,
            size: region.len(),
            file,
            _keeps_alive: Arc::clone(region),
        };
        Some(Self::owned(Arc::new(memory), 0))
    }
}

impl RegionSpec {
    /// A region of `vm-memory`, as RAM at its guest addresses:
    /// [`Backing::vm_memory`].
    #[must_use]
    pub fn vm_memory<B>(region: &Arc<GuestRegionMmap<B>>) -> Option<Self>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let span = at(region.start_addr().0, region.len());
        Some(Self::ram(span, Backing::vm_memory(region)?))
    }
}
