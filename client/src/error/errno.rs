//! The errno of each kind.

use kvm_memslots_shim::Errno;

use super::kind::ErrorKind;

impl ErrorKind {
    /// As [`Error::errno`](super::Error::errno).
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Refused { errno, .. }
            | Self::RefusedWhole(errno)
            | Self::DirtyLog { errno, .. }
            | Self::Stuck { errno, .. }
            | Self::NoRing(errno)
            | Self::EventRefused { errno, .. } => *errno,
            Self::Open(error) => error.errno(),
            Self::Gate(error) => error.errno(),
            Self::Window(error) => error.errno(),
            Self::AlreadyOpen | Self::SlotInUse { .. } => Errno::EBUSY,
            Self::Hole { .. } => Errno::EPERM,
            Self::Reentrant => Errno::EDEADLK,
            Self::Forked => Errno::EIO,
            Self::Internal(_) => Errno::ENOTRECOVERABLE,
            Self::Observer(_) => Errno::ECANCELED,
            Self::UnknownRegion { .. } | Self::UnknownDevice { .. } => Errno::ENOENT,
            Self::NotLogged { .. } => Errno::ENODATA,
            Self::NoMemory { .. } => Errno::ENOMEM,
            Self::Overlap { .. }
            | Self::Twice { .. }
            | Self::EventTaken { .. }
            | Self::GsiTaken { .. }
            | Self::RouteTaken { .. } => Errno::EEXIST,
            Self::TooManySlots { .. } | Self::NoGsiLeft { .. } | Self::TooManyRoutes { .. } => {
                Errno::ENOSPC
            }
            Self::NoBatchIoctl
            | Self::ImpostorBatchIoctl { .. }
            | Self::ReadOnlyUnsupported { .. }
            | Self::GuestMemfdUnsupported { .. }
            | Self::TrapUnsupported { .. }
            | Self::NoZones { .. }
            | Self::NoDevid => Errno::EOPNOTSUPP,
            Self::ReadOnlyBacking { .. } => Errno::EACCES,
            _ => Errno::EINVAL,
        }
    }
}
