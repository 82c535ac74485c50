//! Why devices could not be compared.

use std::io;

use thiserror::Error;

use super::ways::Way;
use kvm_memslots_kit::guest::GuestError;

/// Why there is no comparison.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DevicesError {
    /// No VM, or none with an interrupt controller in the kernel.
    #[error("no VM: {0}")]
    Vm(io::Error),
    /// Host memory or eventfds.
    #[error("the devices' memory and eventfds: {0}")]
    Board(io::Error),
    /// The busy vCPUs.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A call that was refused.
    #[error("{way}, {what}: {error}")]
    Call {
        /// Which way.
        way: Way,
        /// What was being done.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
}
