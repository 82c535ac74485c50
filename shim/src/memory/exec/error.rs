//! Why a plan was not carried out.

use std::fmt;

use kvm_memslots_uapi::MemFlags;

use crate::errno::Errno;
use crate::mapping::Slot;
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
        dirty_log_hint(*errno)
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

fn refusal(index: Option<usize>, op: Option<&Op>, errno: Errno) -> String {
    let change = match (index, op) {
        (Some(index), Some(op)) => format!("change {index} of the plan, to {}", Change(op)),
        (Some(index), None) => format!("change {index} of the plan"),
        _ => "the changes of a batch, blaming none of them".to_owned(),
    };
    let hint = refusal_hint(op, errno);
    format!("KVM refused {change}: {errno}{hint}")
}

/// What an errno of the memslot ioctls usually means (`kvm_set_memory_region`).
fn refusal_hint(op: Option<&Op>, errno: Errno) -> &'static str {
    match (errno, op) {
        (Errno::EEXIST, _) => {
            " (another slot covers some of these guest addresses: made behind this library's back?)"
        }
        (Errno::EINVAL, Some(Op::Delete(_))) => {
            " (KVM has no such slot: deleted behind this library's back?)"
        }
        (Errno::EINVAL, Some(Op::Create(_))) => {
            " (the addresses, the size or the flags are not what this VM allows, \
             or the id is in use behind this library's back)"
        }
        (Errno::EINVAL, Some(Op::Move { .. } | Op::SetFlags { .. })) => {
            " (KVM's slot is not this one: changed behind this library's back?)"
        }
        (Errno::ENOMEM, _) => " (the kernel has no memory for what it keeps for each slot)",
        (Errno::ENOTTY, _) => " (this kernel lacks the ioctl)",
        (Errno::EIO, _) => " (the VM was created by another process, or KVM has declared it dead)",
        (Errno::EINTR, _) => " (signals kept interrupting the call)",
        _ => "",
    }
}

fn unsure_hint(unsure: &[u16]) -> String {
    match unsure {
        [] => String::new(),
        ids => format!(", and nobody knows what became of slots {ids:?}"),
    }
}

fn dirty_log_hint(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT => " (KVM has no such slot, or does not log it)",
        Errno::EFAULT => " (KVM's slot is larger: replaced behind this library's back?)",
        _ => "",
    }
}

/// A change, as an infinitive.
struct Change<'a>(&'a Op);

impl fmt::Display for Change<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Op::Delete(slot) => write!(f, "delete {slot}"),
            Op::Create(slot) => write!(f, "create {slot}"),
            Op::Move { from, gpa } => write!(f, "move {from} to GPA {gpa:#x}"),
            Op::SetFlags { from, flags } => {
                let [before, after] = [from.mapping.flags(), *flags].map(names);
                write!(f, "set the flags of {from} from {before} to {after}")
            }
        }
    }
}

fn names(flags: MemFlags) -> String {
    let names: Vec<_> = flags.iter_names().map(|(name, _)| name).collect();
    if names.is_empty() { "none".to_owned() } else { names.join("|") }
}
