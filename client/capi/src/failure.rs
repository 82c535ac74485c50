//! What went wrong, as C gets to know it: an errno, a message, and what it is
//! about.

use kvm_memslots::backend::OpenError;
use kvm_memslots::device::DevicePart;
use kvm_memslots::pci::PciError;
use kvm_memslots::window::{WindowError, WindowErrorKind};
use kvm_memslots::{Errno, Error, ErrorKind};

use crate::constants::{
    KVM_MEMSLOTS_ERROR_CALLBACK, KVM_MEMSLOTS_ERROR_KVM, KVM_MEMSLOTS_ERROR_STUCK,
};
use crate::names::in_c;

/// What was looked up, or `ENOENT` with what there is not.
pub(crate) fn there<T>(found: Option<T>, what: impl FnOnce() -> String) -> Result<T, Failure> {
    found.ok_or_else(|| Failure::new(Errno::ENOENT, what()))
}

/// Why a call did not do what it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) errno: Errno,
    pub(crate) message: String,
    pub(crate) about: About,
}

/// What it is about.
#[derive(Debug, Clone, Default)]
pub(crate) struct About {
    pub(crate) change: Option<usize>,
    pub(crate) region: u64,
    pub(crate) device: String,
    pub(crate) part: Option<DevicePart>,
    /// `KVM_MEMSLOTS_ERROR_*`
    pub(crate) flags: u32,
}

impl Failure {
    pub(crate) fn new(errno: Errno, message: impl Into<String>) -> Self {
        Self { errno, message: message.into(), about: About::default() }
    }

    /// Of a change, where it is not known to be of another one.
    pub(crate) fn in_change(mut self, change: usize) -> Self {
        if self.about.change.is_none() {
            self.about.change = Some(change);
            self.message = format!("change {change}: {}", self.message);
        }
        self
    }

    /// The same, after so many other changes.
    pub(crate) fn behind(mut self, changes: usize) -> Self {
        if let Some(change) = self.about.change {
            let before = format!("change {change}: ");
            let message = self.message.strip_prefix(&before).unwrap_or(&self.message);
            self.message = format!("change {}: {message}", change + changes);
            self.about.change = Some(change + changes);
        }
        self
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let about = About {
            change: error.change(),
            region: error.region().map_or(0, |region| region.id.to_raw()),
            device: error.device().unwrap_or_default().to_owned(),
            part: error.part(),
            flags: flags(error.kind()),
        };
        Self { errno: error.errno(), message: in_c(error.to_string()), about }
    }
}

impl From<PciError> for Failure {
    fn from(error: PciError) -> Self {
        Self::from(&error)
    }
}

impl From<&PciError> for Failure {
    fn from(error: &PciError) -> Self {
        match error {
            PciError::Vm(error) => error.into(),
            PciError::Window(error) => error.into(),
            other => {
                let flags = if let PciError::File(kind) = other { window_flags(kind) } else { 0 };
                let about = About { flags, ..About::default() };
                Self { errno: other.errno(), message: in_c(other.to_string()), about }
            }
        }
    }
}

impl From<WindowError> for Failure {
    fn from(error: WindowError) -> Self {
        Self::from(&error)
    }
}

impl From<&WindowError> for Failure {
    fn from(error: &WindowError) -> Self {
        let flags = window_flags(error.kind());
        let about = About { change: error.edit(), flags, ..About::default() };
        Self { errno: error.errno(), message: in_c(error.to_string()), about }
    }
}

impl From<WindowErrorKind> for Failure {
    fn from(kind: WindowErrorKind) -> Self {
        let about = About { flags: window_flags(&kind), ..About::default() };
        Self { errno: kind.errno(), message: in_c(kind.to_string()), about }
    }
}

/// Whose errno that of a window is.
const fn window_flags(kind: &WindowErrorKind) -> u32 {
    match kind {
        WindowErrorKind::Stuck { .. } => KVM_MEMSLOTS_ERROR_STUCK | KVM_MEMSLOTS_ERROR_KVM,
        WindowErrorKind::Refused { .. } | WindowErrorKind::CannotBeKept { .. } => {
            KVM_MEMSLOTS_ERROR_KVM
        }
        _ => 0,
    }
}

/// Whose errno it is.
fn flags(kind: &ErrorKind) -> u32 {
    match kind {
        ErrorKind::Stuck { .. } => KVM_MEMSLOTS_ERROR_STUCK | KVM_MEMSLOTS_ERROR_KVM,
        ErrorKind::Refused { .. }
        | ErrorKind::RefusedWhole { .. }
        | ErrorKind::EventRefused { .. }
        | ErrorKind::NoRing { .. }
        | ErrorKind::Open(OpenError::Duplicate { .. } | OpenError::NotAVm { .. }) => {
            KVM_MEMSLOTS_ERROR_KVM
        }
        // KVM has no ENOMEM for a dirty log: it was not asked.
        ErrorKind::DirtyLog { errno, .. } if *errno != Errno::ENOMEM => KVM_MEMSLOTS_ERROR_KVM,
        ErrorKind::Window(error) => window_flags(error.kind()),
        ErrorKind::Gate(_) | ErrorKind::Observer(_) => KVM_MEMSLOTS_ERROR_CALLBACK,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_kvm_said_of_a_dirty_log_is_kvms() {
        let range = kvm_memslots::Range::new(0, 0x1000).expect("not empty");
        let mapping = kvm_memslots::Mapping::new(range, 0x1000, kvm_memslots::Kind::Ram);
        let slot = kvm_memslots::Slot { id: 0, mapping: mapping.expect("does not wrap") };
        for (errno, whose) in [(Errno::ENOENT, KVM_MEMSLOTS_ERROR_KVM), (Errno::ENOMEM, 0)] {
            let error = Error::from(ErrorKind::DirtyLog { slot, errno });
            assert_eq!(Failure::from(&error).about.flags, whose, "{error}");
        }
    }

    #[test]
    fn a_change_is_named_once_and_counted_on() {
        let failure = Failure::new(Errno::EINVAL, "bad").in_change(2).in_change(7);
        assert_eq!(failure.message, "change 2: bad");
        assert_eq!(failure.behind(3).message, "change 5: bad");
    }
}
