//! What can be placed.

use std::os::fd::{AsFd, BorrowedFd};

use libc::{PROT_READ, PROT_WRITE, c_int};

use crate::Access;

/// What is to be placed in a window, and what the guest may do with it.
///
/// ```
/// use std::fs::File;
///
/// use kvm_memslots::window::Contents;
///
/// # fn main() -> std::io::Result<()> {
/// # let blob = File::open("/proc/self/exe")?;
/// let code = Contents::file(&blob, 0x1000).read_only();
/// let scratch = Contents::anonymous();
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Contents<'fd> {
    pub(super) what: What<'fd>,
    pub(super) access: Access,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum What<'fd> {
    File { fd: BorrowedFd<'fd>, offset: u64, is_file: bool },
    Anonymous,
    Mapping { hva: u64 },
}

impl<'fd> Contents<'fd> {
    const fn new(what: What<'fd>) -> Self {
        Self { what, access: Access::ReadWrite }
    }

    /// What is in a file, shared, from `offset` bytes in it on: memory of
    /// `memfd_create`, a file of a file system. The offset is a multiple of the
    /// page size (of `hugetlbfs`: of its page size).
    ///
    /// The file may be shorter than what is placed. What the guest accesses
    /// behind its end fails as in a [`Gap::Fault`](super::Gap::Fault), as it does
    /// where the file is truncated later.
    ///
    /// The descriptor may be closed once it is placed.
    pub fn file(fd: &'fd impl AsFd, offset: u64) -> Self {
        Self::new(What::File { fd: fd.as_fd(), offset, is_file: true })
    }

    /// What else can be mapped, shared: a BAR of VFIO, a `dma-buf`.
    ///
    /// # Safety
    /// The guest may access what is mapped, at any time, as it wants to, until it
    /// is removed. No guest may have the rings of `io_uring`, or `kvm_run` of a
    /// vCPU, with which it could have this process's memory written.
    pub unsafe fn device(fd: &'fd impl AsFd, offset: u64) -> Self {
        Self::new(What::File { fd: fd.as_fd(), offset, is_file: false })
    }

    /// Zeroes, private to the guest. They are gone when they are removed.
    pub const fn anonymous() -> Contents<'static> {
        Contents::new(What::Anonymous)
    }

    /// What is at these addresses of this process, one mapping: `mremap` with
    /// `MREMAP_DONTUNMAP`. Shared memory is there twice afterwards. Private
    /// anonymous memory has moved to the window, and the addresses read as zeroes.
    /// Either way they stay mapped, and stay the caller's to unmap. Others the
    /// kernel refuses: private mappings of devices, and before Linux 5.13 those of
    /// files; mappings of devices are to be placed from their
    /// [descriptor](Self::device).
    ///
    /// It keeps the protection that it has, and [`read_only`](Self::read_only)
    /// only says so.
    ///
    /// # Safety
    /// - The addresses, as many bytes as are placed, are mapped, and nothing in
    ///   this process relies on what private memory there holds.
    /// - What [`Backing::borrowed`](crate::Backing::borrowed) asks for holds for
    ///   the memory from when it is placed until it has been removed.
    pub const unsafe fn mapping(hva: u64) -> Contents<'static> {
        Contents::new(What::Mapping { hva })
    }

    /// The guest may only read it. Where it writes, that fails as in a
    /// [`Gap::Fault`](super::Gap::Fault).
    pub const fn read_only(mut self) -> Self {
        self.access = Access::Read;
        self
    }

    pub(super) const fn file_offset(&self) -> Option<u64> {
        match self.what {
            What::File { offset, .. } => Some(offset),
            _ => None,
        }
    }

    pub(super) const fn protection(&self) -> c_int {
        match self.access {
            Access::Read => PROT_READ,
            Access::ReadWrite => PROT_READ | PROT_WRITE,
        }
    }
}
