//! Why starts could not be compared.

use std::io;

use thiserror::Error;

use super::ways::Way;

/// Why there is no comparison.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// No VM.
    #[error("no VM: {0}")]
    Vm(io::Error),
    /// Host memory or eventfds.
    #[error("the VM's memory and eventfds: {0}")]
    Parts(io::Error),
    /// A step that failed.
    #[error("{way}, {what}: {error}")]
    Step {
        /// Which way.
        way: Way,
        /// Which step.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
    /// The processes with a VM each.
    #[error(transparent)]
    Fleet(#[from] anyhow::Error),
}
