//! Host memory behind guest memory, and the one contract about it.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use kvm_memslots_shim::GuestMemfd;

/// What the guest may do with host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read only: the memory can only be mapped read-only.
    Read,
    /// Read and write.
    ReadWrite,
}

/// Where in a file host memory is: what others need to map it, too
/// (vhost-user's memory table, VFIO). A number, which keeps nothing open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileRange {
    /// The descriptor.
    pub fd: RawFd,
    /// Bytes from the start of the file.
    pub offset: u64,
}

/// Host memory that stays mapped for as long as somebody holds it, so that it
/// can be mapped into a guest without a promise by whoever does so.
///
/// # Safety
/// What [`Backing::borrowed`] asks for holds for the memory that
/// [`range`](Self::range) names, for as long as the object lives. As long is the
/// descriptor open that [`file`](Self::file) names.
pub unsafe trait HostMemory: Send + Sync {
    /// The host virtual address and the length in bytes; always the same.
    fn range(&self) -> (u64, u64);

    /// What the guest may do with it. Always the same.
    fn access(&self) -> Access {
        Access::ReadWrite
    }

    /// Whether an access to any of it never faults: it is no file that could be
    /// truncated, no device memory that could be taken away, and no guard page.
    fn never_faults(&self) -> bool {
        false
    }

    /// Where in a file it is, if it is in one.
    fn file(&self) -> Option<FileRange> {
        None
    }
}

impl fmt::Debug for dyn HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hva, size) = self.range();
        write!(f, "{size:#x} bytes at HVA {hva:#x}")
    }
}

/// The host memory of a region: where it is, what the guest may do with it, and
/// who keeps it alive. The only place where memory safety is promised: no other
/// call can widen what was said here.
///
/// ```
/// use kvm_memslots::{Access, Backing};
///
/// let size = 0x10_0000;
/// # let hva = 0x7f00_0000_0000;
/// // SAFETY: `hva` is a mapping of this process that is never unmapped, and
/// // nothing refers to it but the guest.
/// let ram = unsafe { Backing::borrowed(hva, size, Access::ReadWrite) };
/// ```
#[derive(Debug, Clone)]
pub struct Backing {
    pub(crate) hva: u64,
    pub(crate) len: u64,
    pub(crate) access: Access,
    pub(crate) never_faults: bool,
    pub(crate) file: Option<FileRange>,
    open: Option<Open>,
    pub(crate) guest_memfd: Option<GuestMemfd>,
    pub(crate) owner: Option<Arc<dyn HostMemory>>,
}

/// The descriptor of the file, where the owner does not keep that open.
#[derive(Clone)]
struct Open(Arc<dyn AsFd + Send + Sync>);

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_fd().fmt(f)
    }
}

impl Backing {
    /// Memory that the caller keeps alive: `len` bytes at `hva`.
    ///
    /// # Safety
    /// From when a change that maps a part of this memory is applied, until one
    /// that unmaps it has been applied or the VM is gone (its last descriptor
    /// closed), whatever becomes of this value or of the [`Vm`](crate::Vm):
    /// - the addresses stay mapped in this process, to the same memory or to
    ///   other memory that is the guest's as well, and are used for nothing else;
    /// - the guest reads it at any time, and with [`Access::ReadWrite`] writes
    ///   it: no Rust reference is held to it that this would break.
    ///
    /// Until the `Vm` is dropped, its threads may read and write it likewise, to
    /// serve a [deferrable](crate::RegionSpec::deferrable) region. Where a
    /// change fails as [`Stuck`](crate::ErrorKind::Stuck), what the error lists
    /// as live counts as mapped.
    ///
    /// That an access faults (a file that was truncated) is no breach.
    #[must_use]
    pub const unsafe fn borrowed(hva: u64, len: u64, access: Access) -> Self {
        let (file, open, guest_memfd, owner) = (None, None, None, None);
        Self { hva, len, access, never_faults: false, file, open, guest_memfd, owner }
    }

    /// Memory that `memory` keeps alive, from `offset` bytes in it on. It is held
    /// for as long as KVM maps it.
    #[must_use]
    pub fn owned(memory: Arc<dyn HostMemory>, offset: u64) -> Self {
        let (hva, size) = memory.range();
        let file = memory
            .file()
            .and_then(|file| Some(FileRange { offset: file.offset.checked_add(offset)?, ..file }));
        Self {
            hva: hva.saturating_add(offset),
            len: size.saturating_sub(offset),
            access: memory.access(),
            never_faults: memory.never_faults(),
            file,
            open: None,
            guest_memfd: None,
            owner: Some(memory),
        }
    }

    /// With private memory from the `guest_memfd` `fd`, from `offset` bytes in it
    /// on. `fd` names the same file for as long as the region lives. (KVM takes what
    /// is a `guest_memfd` of the same VM, and nothing else.)
    #[must_use]
    pub const fn with_guest_memfd(mut self, fd: RawFd, offset: u64) -> Self {
        self.guest_memfd = Some(GuestMemfd { fd, offset });
        self
    }

    /// Says where in a file the memory is: for [observers](crate::Observer), and for
    /// [BARs in windows](crate::pci#bars-in-windows). `file` is a `File`, an
    /// `OwnedFd`, an `Arc` of one, and is held for as long as this value.
    #[must_use]
    pub fn with_file(mut self, file: impl AsFd + Send + Sync + 'static, offset: u64) -> Self {
        self.file = Some(FileRange { fd: file.as_fd().as_raw_fd(), offset });
        self.open = Some(Open(Arc::new(file)));
        self
    }

    /// Whether it holds what may run somebody's code when it is dropped.
    pub(crate) fn is_somebodys(&self) -> bool {
        self.owner.is_some() || self.open.is_some()
    }

    /// The descriptor of the file that it is in.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match (&self.open, self.file) {
            (Some(Open(file)), _) => Some(file.as_fd()),
            // SAFETY: the owner, which is held, keeps it open (`HostMemory`).
            (None, Some(file)) => Some(unsafe { BorrowedFd::borrow_raw(file.fd) }),
            (None, None) => None,
        }
    }

    /// The guest may only read it.
    #[must_use]
    pub const fn read_only(mut self) -> Self {
        self.access = Access::Read;
        self
    }

    /// Promises that accesses never fault, so that exits of deferrable regions
    /// are served without a system call.
    ///
    /// # Safety
    /// As [`HostMemory::never_faults`], until the region is unmapped.
    #[must_use]
    pub const unsafe fn never_faults(mut self) -> Self {
        self.never_faults = true;
        self
    }

    /// The same memory from `offset` bytes in it on.
    pub(crate) fn from(&self, offset: u64) -> Self {
        let on = |at: u64| at.saturating_add(offset);
        Self {
            hva: on(self.hva),
            len: self.len.saturating_sub(offset),
            file: self.file.map(|file| FileRange { offset: on(file.offset), ..file }),
            guest_memfd: self
                .guest_memfd
                .map(|memfd| GuestMemfd { offset: on(memfd.offset), ..memfd }),
            ..self.clone()
        }
    }

    /// The first host virtual address.
    #[must_use]
    pub const fn hva(&self) -> u64 {
        self.hva
    }

    /// How many bytes there are.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the guest may do with it.
    #[must_use]
    pub const fn access(&self) -> Access {
        self.access
    }
}
