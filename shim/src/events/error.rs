//! Why a plan was not carried out.

use super::op::Op;
use super::state::State;
use crate::errno::Errno;

/// Calls that were not all carried out.
pub type Failed = crate::guard::Failed<Why>;

/// Why calls were not all carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Why {
    /// KVM refused a call; those before it were taken back.
    #[error("KVM refused to {op}: {errno}; everything is as it was")]
    Refused {
        /// The call.
        op: Op,
        /// KVM's errno.
        errno: Errno,
    },
    /// KVM refused a call, and then refused to take one back that was made
    /// before it; or a call panicked.
    #[error("KVM refused to {op}: {errno}; then it refused to {undo}: {undo_errno}")]
    Stuck {
        /// The call.
        op: Op,
        /// KVM's errno; `EIO` if the call panicked.
        errno: Errno,
        /// The first call that could not be taken back, as it was tried: where
        /// all could, and `op` panicked, what would take `op` back.
        undo: Op,
        /// KVM's errno for that.
        undo_errno: Errno,
        /// What KVM really has, but for what `unsure` says.
        live: State,
        /// Calls that panicked: they may have been carried out. What they are
        /// about is not in `live`.
        unsure: Vec<Op>,
    },
}

impl Why {
    /// Of the call that failed first.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Refused { errno, .. } | Self::Stuck { errno, .. } => *errno,
        }
    }
}

impl Failed {
    /// Of the call that failed first.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        self.why.errno()
    }
}
