//! What an errno usually means, in parentheses, behind the errno; empty where nobody
//! knows.

use super::op::Op;
use crate::errno::Errno;

/// Of a change of memslots (`kvm_set_memory_region`), where it is known which.
#[must_use]
pub const fn change(op: Option<&Op>, errno: Errno) -> &'static str {
    match (errno, op) {
        (Errno::EEXIST, _) => {
            " (another slot covers some of these guest addresses: made behind this library's back? \
             The VMM's own slots must not overlap its regions, and their ids must be reserved \
             (Builder::reserve_slots). \
             KVM's own are where KVM_SET_TSS_ADDR and KVM_SET_IDENTITY_MAP_ADDR put them)"
        }
        (Errno::EINVAL, Some(Op::Delete(_))) => {
            " (KVM has no such slot: deleted behind this library's back?)"
        }
        (Errno::EINVAL, Some(Op::Create(slot))) if slot.mapping.guest_memfd().is_some() => {
            " (the guest_memfd is none, is another VM's, ends before, or has this part in a slot \
             already; or an address beyond what this VM can have)"
        }
        (Errno::EINVAL, Some(Op::Create(_))) => {
            " (an address beyond what this VM can have (guest physical address bits, user addresses), \
             a size or flags that it does not allow, or the id is in use behind this library's back)"
        }
        (Errno::EINVAL, Some(Op::Move { .. })) => {
            " (an address beyond what this VM can have (guest physical address bits), or KVM's slot \
             is not this one: changed behind this library's back?)"
        }
        (Errno::EINVAL, Some(Op::SetFlags { .. })) => {
            " (KVM's slot is not this one: changed behind this library's back?)"
        }
        (Errno::ENOMEM, _) => " (out of kernel memory, or over the cgroup's limit)",
        (Errno::ENOTTY, _) => " (this kernel lacks the ioctl)",
        (Errno::EIO, _) => " (the VM was created by another process, or KVM has declared it dead)",
        (Errno::EINTR, _) => " (signals kept interrupting the call)",
        (Errno::EBADF, _) => " (the guest_memfd is not an open file)",
        _ => "",
    }
}

/// Of `KVM_GET_DIRTY_LOG` and `KVM_CLEAR_DIRTY_LOG`.
#[must_use]
pub const fn dirty_log(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT => {
            " (KVM has no such slot, or does not log it: changed behind this library's back?)"
        }
        Errno::EFAULT => " (KVM's slot is larger: replaced behind this library's back?)",
        Errno::ENXIO => " (this VM has a dirty ring, which replaces the bitmap)",
        Errno::ENOMEM => " (this process has no memory for it; KVM was not asked)",
        _ => "",
    }
}
