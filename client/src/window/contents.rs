//! What can be placed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use kvm_memslots_shim::Errno;
use libc::{PROT_READ, PROT_WRITE, c_int};

use super::error::WindowErrorKind;
use super::host::{self, Named};
use crate::Access;

/// A file to be placed often, or parts of it: looked at once, so that each place
/// of shared memory is one call. Clones are the same descriptor.
///
/// That is so for `tmpfs` and `memfd_create` whose seals are fixed and not against
/// writing: without `MFD_ALLOW_SEALING`, or with `F_SEAL_SEAL`. Other files take
/// two calls each.
///
/// # Files that get shorter
/// Nothing here touches what is placed. A guest that does, behind the end of the
/// file, fails as in a [`Gap::Fault`](super::Gap::Fault). A VMM that does so in a
/// mapping of its own gets `SIGBUS`. `F_SEAL_SHRINK` is what keeps others that have
/// the file from doing that to either.
///
/// ```no_run
/// use std::fs::File;
///
/// use kvm_memslots::window::{CheckedFile, Contents, Window};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let window: Window = unimplemented!();
/// let blobs = CheckedFile::new(File::open("/dev/shm/blobs")?)?;
/// for n in 0..64 {
///     window.place(n << 16, 1 << 16, Contents::checked(&blobs, n << 16).read_only())?;
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct CheckedFile {
    fd: Arc<OwnedFd>,
    named: Named,
}

impl CheckedFile {
    /// Looks at what the descriptor names, and keeps it open.
    ///
    /// # Errors
    /// [`WindowErrorKind::NoFile`], [`WindowErrorKind::Refused`].
    pub fn new(fd: impl Into<OwnedFd>) -> Result<Self, WindowErrorKind> {
        let fd = fd.into();
        let named = host::named(fd.as_fd())
            .map_err(|(call, errno)| WindowErrorKind::Refused { call, errno })?;
        Ok(Self { fd: Arc::new(fd), named: named.ok_or(WindowErrorKind::NoFile)? })
    }

    /// How large its pages are.
    pub(super) fn page(&self) -> Option<u64> {
        match self.named {
            Named::File { page } => Some(page),
            Named::Memory | Named::Device => None,
        }
    }

    /// Whether both are the same descriptor.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.fd, &other.fd)
    }

    /// The same of another descriptor for what `fd` names.
    pub(crate) fn duplicate(fd: BorrowedFd<'_>) -> Result<Self, WindowErrorKind> {
        let new = fd.try_clone_to_owned();
        Self::new(
            new.map_err(|_| WindowErrorKind::Refused { call: "fcntl", errno: Errno::last() })?,
        )
    }
}

impl AsFd for CheckedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

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
    /// How it is placed, where that is known.
    File {
        fd: BorrowedFd<'fd>,
        offset: u64,
        named: Option<Named>,
    },
    Anonymous,
    Mapping {
        hva: u64,
    },
}

impl<'fd> Contents<'fd> {
    const fn new(what: What<'fd>) -> Self {
        Self { what, access: Access::ReadWrite }
    }

    /// What is in a file, shared, from `offset` bytes in it on: memory of
    /// `memfd_create`, a file of a file system. The offset is a multiple of the
    /// page size. Of `hugetlbfs` they are whole huge pages: the offset, the length
    /// and the guest address are multiples of theirs, else that is
    /// [`WindowErrorKind::Geometry`], as the kernel would replace what is beside. What is
    /// removed is whole, too.
    ///
    /// The file may be shorter than what is placed. What the guest accesses
    /// behind its end fails as in a [`Gap::Fault`](super::Gap::Fault), as it does
    /// where the file is truncated later.
    ///
    /// The descriptor may be closed once it is placed. Where much of one file is
    /// placed, a [`CheckedFile`] saves two calls each time.
    pub fn file(fd: &'fd impl AsFd, offset: u64) -> Self {
        Self::new(What::File { fd: fd.as_fd(), offset, named: None })
    }

    /// As [`file`](Self::file), from one that was looked at before.
    pub fn checked(file: &'fd CheckedFile, offset: u64) -> Self {
        Self::new(What::File { fd: file.fd.as_fd(), offset, named: Some(file.named) })
    }

    /// What else can be mapped, shared: a BAR of VFIO, a `dma-buf`. (Huge pages as in
    /// [`file`](Self::file).)
    ///
    /// # Safety
    /// The guest may access what is mapped, at any time, as it wants to, until it
    /// is removed. No guest may have the rings of `io_uring`, or `kvm_run` of a
    /// vCPU, with which it could have this process's memory written.
    pub unsafe fn device(fd: &'fd impl AsFd, offset: u64) -> Self {
        Self::new(What::File { fd: fd.as_fd(), offset, named: Some(Named::Device) })
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
    /// files, and those of huge pages (`MAP_HUGETLB`); mappings of devices are to be
    /// placed from their [descriptor](Self::device).
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
