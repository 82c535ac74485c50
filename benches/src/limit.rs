//! What there is not, told apart from failures.

use kvm_memslots::ErrorKind;
use kvm_memslots_kit::guest::GuestError;
use thiserror::Error;

/// What this machine, or a VM on it, lacks; other errors are failures.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Limit(pub(crate) String);

impl Limit {
    /// Whether the error is one.
    #[must_use]
    pub fn is(error: &anyhow::Error) -> bool {
        let of_guest = |error: &GuestError| {
            matches!(error, GuestError::Unsupported | GuestError::TooLarge { .. })
        };
        let of_library = |error: &kvm_memslots::Error| {
            matches!(error.kind(), ErrorKind::NoBatchIoctl | ErrorKind::TooManySlots { .. })
        };
        error.is::<Self>()
            || error.downcast_ref().is_some_and(of_guest)
            || error.downcast_ref().is_some_and(of_library)
    }
}

pub(crate) fn lacks(what: &str) -> anyhow::Error {
    Limit(what.to_owned()).into()
}
