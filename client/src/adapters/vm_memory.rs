//! Guest memory of the `vm-memory` crate.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use crate::{Access, Backing, FileRange, HostMemory, RegionSpec, at};

/// A region of `vm-memory`, and what keeps its mapping.
struct Region<K> {
    _keeps_alive: Arc<K>,
    hva: u64,
    size: u64,
    file: Option<FileRange>,
    never_faults: bool,
}

impl<K> Region<K> {
    /// `None` if it has no host address.
    fn of(region: &impl GuestMemoryRegion, keeps_alive: Arc<K>) -> Option<Self> {
        let hva = region.get_host_address(MemoryRegionAddress(0)).ok()?;
        let file = region
            .file_offset()
            .map(|offset| FileRange { fd: offset.file().as_raw_fd(), offset: offset.start() });
        Some(Self {
            hva: hva.expose_provenance() as u64,
            size: region.len(),
            file,
            _keeps_alive: keeps_alive,
            never_faults: false,
        })
    }
}

// SAFETY: whoever makes one as the backing of guest memory vouches that the
// mapping stays where it is until what it keeps is dropped; `vm-memory` gives
// access to it through volatile and atomic operations only, as it expects the
// guest to write it.
unsafe impl<K: Send + Sync> HostMemory for Region<K> {
    fn range(&self) -> (u64, u64) {
        (self.hva, self.size)
    }

    fn access(&self) -> Access {
        Access::ReadWrite
    }

    fn never_faults(&self) -> bool {
        self.never_faults
    }

    fn file(&self) -> Option<FileRange> {
        self.file
    }
}

/// Whether no access to `region` faults: it is anonymous memory that it has mapped
/// itself. Huge pages can run out, and files can be truncated.
fn never_faults<B: Bitmap>(region: &GuestRegionMmap<B>) -> bool {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let kind = region.flags() & (libc::MAP_ANONYMOUS | libc::MAP_HUGETLB);
    region.owned() && region.prot() & access == access && kind == libc::MAP_ANONYMOUS
}

impl Backing {
    /// The memory of a region of `vm-memory`, which is held for as long as KVM
    /// maps it, and no longer: the others go on living by themselves. Nothing if
    /// the region has no host address.
    ///
    /// The region may be in a `GuestMemoryMmap` (`iter()`) or in an `Arc`: its mapping
    /// is held (`GuestRegionMmap::get_mmap`).
    ///
    /// Anonymous memory [never faults](HostMemory::never_faults), so exits are served
    /// from it without a system call; memory in files, and huge pages, may.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use kvm_memslots::{Changes, RegionSpec};
    /// use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};
    ///
    /// let mapping = MmapRegion::<()>::new(0x10000)?;
    /// let region = GuestRegionMmap::new(mapping, GuestAddress(0)).ok_or("wraps")?;
    /// let mut c = Changes::new();
    /// c.map(RegionSpec::vm_memory(&region).ok_or("no host address")?.permanent());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn vm_memory<B>(region: &GuestRegionMmap<B>) -> Option<Self>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let memory = Region::of(region, region.get_mmap())?;
        let memory = Region { never_faults: never_faults(region), ..memory };
        Some(Self::owned(Arc::new(memory), 0))
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
        Some(Self::owned(Arc::new(Region::of(&**region, Arc::clone(region))?), 0))
    }
}

impl RegionSpec {
    /// A region of `vm-memory`, as RAM at its guest addresses:
    /// [`Backing::vm_memory`].
    #[must_use]
    pub fn vm_memory<B>(region: &GuestRegionMmap<B>) -> Option<Self>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let span = at(region.start_addr().0, region.len());
        Some(Self::ram(span, Backing::vm_memory(region)?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use vm_memory::{FileOffset, GuestAddress, MmapRegion};

    use super::*;

    fn region(mapping: MmapRegion<()>) -> GuestRegionMmap<()> {
        GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap()
    }

    #[test]
    fn only_anonymous_memory_never_faults() {
        const SIZE: usize = 0x1000;
        let build = |prot, flags| region(MmapRegion::build(None, SIZE, prot, flags).unwrap());
        let both = libc::PROT_READ | libc::PROT_WRITE;
        assert!(never_faults(&region(MmapRegion::new(SIZE).unwrap())));
        assert!(never_faults(&build(both, libc::MAP_ANONYMOUS | libc::MAP_SHARED)));
        assert!(!never_faults(&build(libc::PROT_NONE, libc::MAP_ANONYMOUS | libc::MAP_PRIVATE)));
        assert!(!never_faults(&build(libc::PROT_READ, libc::MAP_ANONYMOUS | libc::MAP_PRIVATE)));
        let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        let offset = Some(FileOffset::new(file, 0));
        let mapping = MmapRegion::build(offset, SIZE, both, libc::MAP_PRIVATE).unwrap();
        assert!(!never_faults(&region(mapping)));
    }
}
