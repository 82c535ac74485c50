//! What can be wrong, said so that it can be mended.

mod advice;
mod described;
mod errno;
mod kind;

pub use described::{Described, Part};
pub use kind::ErrorKind;

use std::fmt;
use std::sync::Arc;

use kvm_memslots_shim::{Errno, OpenError};

use crate::device::DevicePart;

/// Why something was not done. Unless the [kind](Self::kind) is
/// [`ErrorKind::Stuck`], everything is what it was.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    change: Option<usize>,
    device: Option<Arc<str>>,
    part: Option<DevicePart>,
    region: Option<Box<Described>>,
    kind: ErrorKind,
}

impl Error {
    /// What is wrong.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// Which change of the set it is about, counted from 0, where it is about
    /// one.
    #[must_use]
    pub fn change(&self) -> Option<usize> {
        self.0.change
    }

    /// The name of the device that it is about.
    #[must_use]
    pub fn device(&self) -> Option<&str> {
        self.0.device.as_deref()
    }

    /// The part of the device that it is about.
    #[must_use]
    pub fn part(&self) -> Option<DevicePart> {
        self.0.part
    }

    /// The region that is to blame.
    #[must_use]
    pub fn region(&self) -> Option<&Described> {
        self.0.region.as_deref()
    }

    /// KVM's errno where KVM refused something; else what says best what was
    /// wrong.
    #[must_use]
    pub fn errno(&self) -> Errno {
        self.0.kind.errno()
    }

    pub(crate) fn in_change(mut self, change: usize) -> Self {
        self.0.change.get_or_insert(change);
        self
    }

    pub(crate) fn of_region(mut self, region: Option<Box<Described>>) -> Self {
        self.0.region = region;
        self
    }

    pub(crate) fn of_device(mut self, device: &Arc<str>, part: Option<DevicePart>) -> Self {
        self.0.device.get_or_insert_with(|| Arc::clone(device));
        self.0.part = self.0.part.or(part);
        self
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        let (change, device, part, region) = (None, None, None, None);
        Self(Box::new(Inner { change, device, part, region, kind }))
    }
}

impl ErrorKind {
    /// Wrong with this region.
    pub(crate) fn of(self, region: Box<Described>) -> Error {
        Error::from(self).of_region(Some(region))
    }
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Self {
        ErrorKind::Open(error).into()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { change, device, part, region, kind } = &*self.0;
        if let Some(change) = change {
            write!(f, "change {change}: ")?;
        }
        if let Some(device) = device {
            write!(f, "device \"{device}\"")?;
            match part {
                Some(part) => write!(f, ", {part}: ")?,
                None => f.write_str(": ")?,
            }
        }
        if let Some(region) = region {
            write!(f, "{region}: ")?;
        }
        kind.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.kind.source()
    }
}

/// For traits that have an [`std::io::Error`]: its kind is that of the
/// [errno](Error::errno), and the error is inside.
///
/// ```
/// use std::io;
///
/// # fn f(vm: &kvm_memslots::Vm, changes: kvm_memslots::Changes) -> io::Result<()> {
/// vm.apply(changes)?;
/// # Ok(()) }
/// ```
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        Self::new(Self::from_raw_os_error(error.errno().raw()).kind(), error)
    }
}
