//! Why a file descriptor can't be used.

use std::os::fd::RawFd;

use thiserror::Error;

use crate::errno::Errno;

/// Why a file descriptor can't be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The descriptor can't be duplicated: it is closed (`EBADF`), or the
    /// process has too many (`EMFILE`).
    #[error("file descriptor {fd} can't be duplicated: {errno}")]
    Duplicate {
        /// The descriptor.
        fd: RawFd,
        /// The errno of `F_DUPFD_CLOEXEC`.
        errno: Errno,
    },
    /// The descriptor is KVM's, but not a VM's.
    #[error(
        "file descriptor {0} is /dev/kvm itself: pass the one of the VM, \
         which KVM_CREATE_VM returned"
    )]
    SystemFd(RawFd),
    /// The VM was created by another process (before a `fork`, say), or KVM
    /// has given it up after an error.
    #[error(
        "file descriptor {0} is a VM, but one that this process can't use (EIO): \
         it was created by another process, or KVM has declared it dead"
    )]
    NotUsable(RawFd),
    /// Not a VM.
    #[error(
        "file descriptor {fd} ({what}) is not a KVM VM, KVM_CHECK_EXTENSION failed with {errno}: \
         pass the one that KVM_CREATE_VM returned"
    )]
    NotAVm {
        /// The descriptor.
        fd: RawFd,
        /// What `/proc/self/fd` says it is.
        what: String,
        /// The errno of `KVM_CHECK_EXTENSION`.
        errno: Errno,
    },
    /// A VM whose memory is not set up with memslots.
    #[error("the VM of file descriptor {0} has no memslots (KVM_CAP_USER_MEMORY is 0)")]
    NoMemslots(RawFd),
    /// Quirks that the kernel does not let go of.
    #[error(
        "the quirks {quirks:#x} of the VM can't be disabled ({errno}): the kernel has {known:#x}"
    )]
    Quirks {
        /// Those that were to be disabled, a bit for each.
        quirks: u64,
        /// What `KVM_CAP_DISABLE_QUIRKS2` has.
        known: u64,
        /// The errno of `KVM_ENABLE_CAP`.
        errno: Errno,
    },
}

impl OpenError {
    /// Of the call that failed, or the one that says what is wrong.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Duplicate { errno, .. }
            | Self::NotAVm { errno, .. }
            | Self::Quirks { errno, .. } => *errno,
            Self::NotUsable(_) => Errno::EIO,
            Self::SystemFd(_) | Self::NoMemslots(_) => Errno::EINVAL,
        }
    }
}
