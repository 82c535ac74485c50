//! Host memory for guests: address space reserved, pages on first touch.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::FromRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// Bytes of a large page of x86-64, and the alignment of every [`HostMemory`].
pub const LARGE_PAGE: u64 = 2 << 20;

/// Bytes of a small page.
pub const SMALL_PAGE: u64 = 4096;

/// A file of shared memory, `size` bytes of it.
///
/// # Errors
/// What the kernel says.
pub fn memfd(size: u64) -> io::Result<File> {
    // SAFETY: takes a name.
    let fd = unsafe { libc::memfd_create(c"memslots".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file)
}

/// Which pages stand behind the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// 4 KiB only (`MADV_NOHUGEPAGE`).
    Small,
    /// 2 MiB where the host has transparent huge pages (`MADV_HUGEPAGE`).
    Huge,
}

/// Anonymous private memory that is mapped, but costs nothing until touched
/// (`MAP_NORESERVE`). Aligned to [`LARGE_PAGE`], zero at first, unmapped on
/// drop.
///
/// Guests write it behind Rust's back, so it is only ever reached through
/// atomics and never lent out as a slice.
#[derive(Debug)]
pub struct HostMemory {
    mapping: NonNull<libc::c_void>,
    mapped: usize,
    base: NonNull<u8>,
    size: u64,
}

// SAFETY: the mapping belongs to this value alone, stays where it is from
// thread to thread, and all access to its content is atomic.
unsafe impl Send for HostMemory {}
// SAFETY: as above; `&self` gives out no plain references to the content.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// Reserves `size` bytes, rounded up to whole small pages; one page at
    /// least.
    ///
    /// # Errors
    /// The errno of `mmap`: `ENOMEM` where the address space has no such gap.
    pub fn reserve(size: u64, pages: Pages) -> Result<Self, Errno> {
        let size = size.max(1).checked_next_multiple_of(SMALL_PAGE).ok_or(Errno::ENOMEM)?;
        let length = size.checked_add(LARGE_PAGE).and_then(|bytes| usize::try_from(bytes).ok());
        let length = length.and_then(NonZeroUsize::new).ok_or(Errno::ENOMEM)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches
        // no memory that anything else uses.
        let mapping = unsafe { mmap_anonymous(None, length, protection, flags) }?;
        let skip = mapping.as_ptr().align_offset(LARGE_PAGE as usize);
        // SAFETY: `skip` is below LARGE_PAGE, and the mapping is LARGE_PAGE
        // longer than `size`.
        let base = unsafe { mapping.cast::<u8>().add(skip) };
        let memory = Self { mapping, mapped: length.get(), base, size };
        let advice = match pages {
            Pages::Small => MmapAdvise::MADV_NOHUGEPAGE,
            Pages::Huge => MmapAdvise::MADV_HUGEPAGE,
        };
        // A kernel without transparent huge pages refuses either advice, and
        // has small pages only: nothing is lost.
        // SAFETY: the advice changes which pages stand behind the mapping, not
        // what they hold.
        let _ = unsafe { madvise(mapping, length.get(), advice) };
        Ok(memory)
    }

    /// The host virtual address of the first byte.
    #[must_use]
    pub fn hva(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The word at `offset` bytes: `None` if that is not a multiple of 8, or
    /// beyond the end.
    #[must_use]
    pub fn word(&self, offset: u64) -> Option<&AtomicU64> {
        let inside = offset.is_multiple_of(8) && offset < self.size;
        // SAFETY: `offset` lies inside the mapping, which lives as long as
        // `self`; sizes are whole pages, so the whole word does.
        let place = inside.then(|| unsafe { self.base.add(offset as usize) })?;
        // SAFETY: the place is aligned to 8, initialised (zero pages) and only
        // ever accessed atomically by this program. What a guest does to it is
        // a data race with nobody: KVM maps the same page elsewhere.
        Some(unsafe { AtomicU64::from_ptr(place.as_ptr().cast()) })
    }

    /// Reads the word at `offset`; 0 where there is none.
    #[must_use]
    pub fn read(&self, offset: u64) -> u64 {
        self.word(offset).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Writes the word at `offset`; does nothing where there is none.
    pub fn write(&self, offset: u64, value: u64) {
        if let Some(word) = self.word(offset) {
            word.store(value, Ordering::Release);
        }
    }

    /// Copies `bytes` to `offset`, padded with zeros to whole words; what is
    /// beyond the end is left out.
    pub fn write_bytes(&self, offset: u64, bytes: &[u8]) {
        for (chunk, place) in bytes.chunks(8).zip((offset..).step_by(8)) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write(place, u64::from_le_bytes(word));
        }
    }

    /// Gives the pages of `[offset, offset + size)` back to the host
    /// (`MADV_DONTNEED`): they read as zero and are faulted in again on the
    /// next touch, the guest's included.
    ///
    /// # Errors
    /// `EINVAL` where the range is not whole small pages inside the memory,
    /// else the errno of `madvise`.
    pub fn discard(&self, offset: u64, size: u64) -> Result<(), Errno> {
        let end = offset.checked_add(size).ok_or(Errno::EINVAL)?;
        if end > self.size || !offset.is_multiple_of(SMALL_PAGE) || !size.is_multiple_of(SMALL_PAGE)
        {
            return Err(Errno::EINVAL);
        }
        // SAFETY: `offset` lies inside the mapping.
        let start = unsafe { self.base.add(offset as usize) };
        // SAFETY: the range lies inside the mapping, which nobody holds plain
        // references into; its content is free to become zero.
        unsafe { madvise(start.cast(), size as usize, MmapAdvise::MADV_DONTNEED) }
    }
}

// SAFETY: mapped where it is until dropped, and accessed atomically.
unsafe impl kvm_memslots::HostMemory for HostMemory {
    fn range(&self) -> (u64, u64) {
        (self.hva(), self.size)
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `mmap` returned; references into it
        // borrow `self`. A VM that still maps it faults on it from here on
        // (its user was told to drop the VM first), which harms only the guest.
        let _ = unsafe { munmap(self.mapping, self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_zero_and_bounded() {
        let memory = HostMemory::reserve(LARGE_PAGE + 1, Pages::Small).expect("2 MiB");
        assert_eq!(memory.hva() % LARGE_PAGE, 0);
        assert_eq!(memory.size(), LARGE_PAGE + SMALL_PAGE);
        memory.write(memory.size() - 8, 7);
        assert_eq!(memory.read(memory.size() - 8), 7);
        assert!(memory.word(memory.size()).is_none());
        assert!(memory.word(u64::MAX - 7).is_none());
        assert!(memory.word(4).is_none());
    }

    #[test]
    fn discarded_pages_read_as_zero() {
        let memory = HostMemory::reserve(2 * SMALL_PAGE, Pages::Small).expect("two pages");
        memory.write(0, 1);
        memory.write(SMALL_PAGE, 2);
        memory.discard(0, SMALL_PAGE).expect("a page");
        assert_eq!((memory.read(0), memory.read(SMALL_PAGE)), (0, 2));
        assert_eq!(memory.discard(0, 3 * SMALL_PAGE), Err(Errno::EINVAL));
        assert_eq!(memory.discard(8, SMALL_PAGE), Err(Errno::EINVAL));
    }

    #[test]
    fn bytes_land_where_they_were_put() {
        let memory = HostMemory::reserve(SMALL_PAGE, Pages::Small).expect("a page");
        memory.write_bytes(16, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(memory.read(16), 0x0807_0605_0403_0201);
        assert_eq!(memory.read(24), 9);
        memory.write_bytes(SMALL_PAGE - 8, &[7; 9]);
        assert_eq!(memory.read(SMALL_PAGE - 8), 0x0707_0707_0707_0707);
    }
}
