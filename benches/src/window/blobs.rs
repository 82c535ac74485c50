//! The blobs: parts of one file, which a VMM has mapped already.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use kvm_memslots::window::CheckedFile;
use kvm_memslots_kit::host::memfd;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// `count` blobs of one size.
#[derive(Debug)]
pub(super) struct Blobs {
    pub(super) file: CheckedFile,
    pub(super) size: u64,
    pub(super) count: u64,
    mapping: NonNull<libc::c_void>,
}

impl Blobs {
    pub(super) fn new(size: u64, count: u64) -> io::Result<Self> {
        let total = size.checked_mul(count).ok_or(io::ErrorKind::InvalidInput)?;
        let file = memfd(total)?;
        let length = usize::try_from(total).ok().and_then(NonZeroUsize::new);
        let length = length.ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, which is only given to guests.
        let mapping = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, file.as_fd(), 0) }?;
        let file = CheckedFile::new(file).map_err(io::Error::other)?;
        Ok(Self { file, size, count, mapping })
    }

    /// Where a blob is in the file.
    pub(super) const fn offset(&self, blob: u64) -> u64 {
        blob % self.count * self.size
    }

    /// Where it is in this process.
    pub(super) fn hva(&self, blob: u64) -> u64 {
        self.mapping.as_ptr().expose_provenance() as u64 + self.offset(blob)
    }
}

impl Drop for Blobs {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's; no guest that has it runs any more.
        let _ = unsafe { munmap(self.mapping, (self.size * self.count) as usize) };
    }
}
