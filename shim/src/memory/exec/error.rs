//! Why a plan was not carried out.

use crate::errno::Errno;
use crate::mapping::Slot;
use crate::memory::advice;
use crate::memory::op::Op;

/// A plan that was not carried out.
pub type Failed = crate::guard::Failed<Why>;

/// Why a plan was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Why {
    /// KVM refused a change; those before it were undone.
    #[error("{}; the layout is what it was", refusal(*index, op.as_ref(), *errno))]
    Refused {
        /// Which change of the plan; `None` if KVM blamed none.
        index: Option<usize>,
        /// The change.
        op: Option<Op>,
        /// KVM's errno.
        errno: Errno,
    },
    /// The dirty log of a slot that is to be replaced could not be read.
    /// Nothing was changed.
    #[error(
        "the dirty log of {slot}, which is to be replaced, could not be read: {errno}{}; \
         nothing was changed",
        advice::dirty_log(*errno)
    )]
    DirtyLog {
        /// The slot.
        slot: Slot,
        /// KVM's errno.
        errno: Errno,
    },
    /// KVM refused a change, and then refused to undo one of those before it; or
    /// a call panicked.
    #[error(
        "{}, then undoing the changes before it failed too: {undo_errno}; {} of the plan's slots \
         are live{}",
        refusal(*index, op.as_ref(), *errno),
        live.len(),
        unsure_hint(unsure)
    )]
    Stuck {
        /// Which change of the plan; `None` if KVM blamed none.
        index: Option<usize>,
        /// The change.
        op: Option<Op>,
        /// KVM's errno for the change.
        errno: Errno,
        /// KVM's errno for the first undo that failed; where none did, and a
        /// call panicked, `errno`.
        undo_errno: Errno,
        /// What is really live, of all the slots that the plan names, in
        /// ascending order of id. Unsure ones are not among them.
        live: Vec<Slot>,
        /// Ids of which nobody knows what KVM has: a call on them panicked.
        unsure: Vec<u16>,
    },
}

impl Why {
    /// Of the call that failed first.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Refused { errno, .. }
            | Self::DirtyLog { errno, .. }
            | Self::Stuck { errno, .. } => *errno,
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

fn refusal(index: Option<usize>, op: Option<&Op>, errno: Errno) -> String {
    let change = match (index, op) {
        (Some(index), Some(op)) => format!("change {index} of the plan, to {op}"),
        (Some(index), None) => format!("change {index} of the plan"),
        _ => "the changes of a batch, blaming none of them".to_owned(),
    };
    format!("KVM refused {change}: {errno}{}", advice::change(op, errno))
}

fn unsure_hint(unsure: &[u16]) -> String {
    match unsure {
        [] => String::new(),
        ids => format!(", and nobody knows what became of slots {ids:?}"),
    }
}
