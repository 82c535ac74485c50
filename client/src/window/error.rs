//! Why something was not placed.

use std::fmt;

use kvm_memslots_shim::Errno;
use thiserror::Error;

use super::table::Placement;

/// Why a window was not made, or not changed. Unless the [kind](Self::kind) is
/// [`Stuck`](WindowErrorKind::Stuck), everything in it is what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowError(Box<Inner>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    kind: WindowErrorKind,
    edit: Option<usize>,
    offset: u64,
    len: u64,
}

impl WindowError {
    pub(super) fn new(kind: WindowErrorKind, offset: u64, len: u64) -> Self {
        Self(Box::new(Inner { kind, edit: None, offset, len }))
    }

    /// Of this place or removal of the set.
    pub(super) fn of(mut self, index: usize) -> Self {
        self.0.edit = Some(index);
        self
    }

    /// Of no set.
    pub(super) fn alone(mut self) -> Self {
        self.0.edit = None;
        self
    }

    /// What is wrong.
    #[must_use]
    pub fn kind(&self) -> &WindowErrorKind {
        &self.0.kind
    }

    /// Which place or removal of the set it is about, counted from 0, where it is
    /// about one.
    #[must_use]
    pub fn edit(&self) -> Option<usize> {
        self.0.edit
    }

    /// The offset in the window, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.0.offset
    }

    /// How many bytes from there on.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Whether that is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// The kernel's errno where it refused something; else what says best what
    /// was wrong.
    #[must_use]
    pub fn errno(&self) -> Errno {
        self.0.kind.errno()
    }
}

impl fmt::Display for WindowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, edit, offset, len } = &*self.0;
        if let WindowErrorKind::Span { .. } = kind {
            return write!(f, "{kind}");
        }
        if let Some(index) = edit {
            write!(f, "edit {index}: ")?;
        }
        write!(f, "{len:#x} bytes at offset {offset:#x} of the window: {kind}")
    }
}

impl std::error::Error for WindowError {}

/// What can be wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WindowErrorKind {
    /// Offsets and lengths are multiples of the page size, lengths are not 0, and
    /// what they name is in the window. Of a file of huge pages that is so in theirs,
    /// and for host addresses, too.
    #[error("not a range of whole pages of {page:#x} bytes in a window of {size:#x} bytes")]
    Geometry {
        /// Bytes of a page.
        page: u64,
        /// Bytes of the window.
        size: u64,
    },
    /// A window is made of whole pages, at least one, below the end of the guest's
    /// 64-bit address space.
    #[error(
        "no window can be {size:#x} bytes at GPA {gpa:#x}: it has to be whole pages of {page:#x} \
         bytes, at least one, and their end below 2^64"
    )]
    Span {
        /// Where it was to start.
        gpa: u64,
        /// Its bytes.
        size: u64,
        /// Bytes of a page.
        page: u64,
    },
    /// Something is there, and the set does not remove it.
    #[error("{by} is there; remove that in the same set")]
    Taken {
        /// What is there, or another place of the set.
        by: Placement,
    },
    /// Nothing is there to be removed.
    #[error("nothing is placed at offset {at:#x}")]
    Gap {
        /// The first such offset.
        at: u64,
    },
    /// The descriptor is not one of a file (`S_ISREG`).
    #[error(
        "the descriptor is not a file's; what else can be mapped may do more than hold bytes, so \
         that placing it is unsafe: Contents::device"
    )]
    NoFile,
    /// The kernel refused a call.
    #[error("{call}: {errno}{}", advice(call, *errno))]
    Refused {
        /// The call.
        call: &'static str,
        /// Its errno.
        errno: Errno,
    },
    /// A set that is undone puts back what it removed, and the kernel can't set
    /// this aside (memory of a device).
    #[error(
        "{what} can't be kept for the case that the set has to be undone ({errno}); remove it \
         by itself"
    )]
    CannotBeKept {
        /// What.
        what: Placement,
        /// The errno of `mremap`.
        errno: Errno,
    },
    /// The kernel refused a call, and to undo what was done before it. What is
    /// looked up is what there is.
    #[error(
        "{call}: {errno}; undoing failed as well: {} placements are lost, {} too many",
        lost.len(), left.len()
    )]
    Stuck {
        /// The call.
        call: &'static str,
        /// Its errno.
        errno: Errno,
        /// What was there, and is not: there are gaps instead, or (where lookups
        /// still find it) other contents.
        lost: Vec<Placement>,
        /// What was to be placed, and still is.
        left: Vec<Placement>,
    },
    /// This process was forked from the one that made the window, whose guest it
    /// is.
    #[error("the window is that of the process that this one was forked from")]
    Forked,
}

impl WindowErrorKind {
    /// The kernel's errno where it refused something; else what says best what
    /// was wrong.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Refused { errno, .. }
            | Self::CannotBeKept { errno, .. }
            | Self::Stuck { errno, .. } => *errno,
            Self::Taken { .. } => Errno::EEXIST,
            Self::Gap { .. } => Errno::ENOENT,
            Self::Forked => Errno::EIO,
            Self::NoFile => Errno::ENODEV,
            Self::Geometry { .. } | Self::Span { .. } => Errno::EINVAL,
        }
    }
}

fn advice(call: &str, errno: Errno) -> &'static str {
    match (call, errno) {
        (_, Errno::EBADF) => ": the descriptor is not open",
        ("mmap", Errno::EACCES) => {
            ": the descriptor is not open for reading, or for writing where the guest may write"
        }
        ("mmap", Errno::EPERM) => ": the file is sealed against writing, or must not be mapped",
        ("mmap", Errno::ENODEV) => ": what the descriptor names can't be mapped",
        ("mmap", Errno::EINVAL) => {
            ": the offset in the file is no multiple of the page size (huge pages: of theirs), or \
             a part of a huge page was to go"
        }
        ("mremap", Errno::EINVAL | Errno::EFAULT) => {
            ": the kernel neither duplicates nor moves such a mapping (one that is private and of \
             a file or a device, or several mappings), or it is not at these addresses; place it \
             from its descriptor, or give it a slot of its own"
        }
        (_, Errno::EAGAIN) => ": over the limit of locked memory (RLIMIT_MEMLOCK, mlockall)",
        (_, Errno::ENOMEM) => {
            ": out of memory, or of mappings (vm.max_map_count), or over a limit (RLIMIT_AS)"
        }
        _ => "",
    }
}
