//! What of an error a program can go by.

use kvm_memslots_shim::{Errno, OpenError};

use super::described::Described;
use super::kind::ErrorKind;

impl ErrorKind {
    pub(super) fn region(&self) -> Option<&Described> {
        match self {
            Self::Empty { region }
            | Self::Unaligned { region, .. }
            | Self::Wraps { region, .. }
            | Self::Overlap { region, .. }
            | Self::OutsideBacking { region, .. }
            | Self::ReadOnlyBacking { region }
            | Self::ReadOnlyUnsupported { region }
            | Self::GuestMemfdUnsupported { region }
            | Self::GuestMemfdFlags { region, .. }
            | Self::TrapUnsupported { region }
            | Self::NotAlone { region }
            | Self::NotDeferrable { region, .. }
            | Self::SplitOutside { region, .. }
            | Self::NotLogged { region }
            | Self::NoMemory { region, .. }
            | Self::NoSuchPages { region, .. } => Some(region),
            Self::Hole { region, .. } | Self::Refused { region, .. } => region.as_deref(),
            _ => None,
        }
    }

    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::Open(OpenError::Duplicate { errno, .. } | OpenError::NotAVm { errno, .. })
            | Self::Refused { errno, .. }
            | Self::RefusedWhole { errno }
            | Self::DirtyLog { errno, .. }
            | Self::Stuck { errno, .. }
            | Self::NoRing { errno }
            | Self::EventRefused { errno, .. } => *errno,
            Self::Gate(error) => error.errno(),
            Self::Window(error) => error.errno(),
            Self::AlreadyOpen | Self::SlotInUse { .. } => Errno::EBUSY,
            Self::Hole { .. } => Errno::EPERM,
            Self::Reentrant => Errno::EDEADLK,
            Self::Open(OpenError::NotUsable { .. }) | Self::Forked => Errno::EIO,
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
