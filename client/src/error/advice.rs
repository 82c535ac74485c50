//! What an errno means, and what to do about it.

use kvm_memslots_shim::Errno;
use kvm_memslots_shim::events::{self, State};

pub(super) fn count(state: &State) -> usize {
    state.routes.len() + state.assigned.len()
}

pub(super) fn slots_advice(may_join: bool) -> &'static str {
    if may_join {
        "; no more slots can be joined"
    } else {
        "; slots that are there could only be joined with a hole: join regions that grew, or supply \
         a gate that pauses vCPUs"
    }
}

pub(super) fn hole_advice(named: bool) -> &'static str {
    if named {
        "supply a gate that pauses vCPUs (HolePolicy::Gate), or say that none runs \
         (HolePolicy::NoVcpuRuns)"
    } else {
        "the changes are about another region in the same slot (permanent, split, or joined as \
         slots had run out); supply a gate that pauses vCPUs (HolePolicy::Gate), or say that none runs (HolePolicy::NoVcpuRuns)"
    }
}

/// What an errno means to the one who asked.
pub(super) fn event_advice(op: &events::Op, errno: Errno) -> &'static str {
    use events::{Op, Part};
    match (op, errno) {
        (Op::Assign(Part::Irqfd(irqfd)), Errno::EINVAL) if irqfd.resample.is_some() => {
            ": resampling needs an interrupt controller with pins in the kernel \
             (KVM_CREATE_IRQCHIP; a split irqchip is not enough), and eventfds"
        }
        (Op::Assign(Part::Irqfd(_)), Errno::EINVAL) => {
            ": the VM has no interrupt controller in the kernel, or the descriptor is no eventfd"
        }
        (Op::Assign(Part::Irqfd(_)), Errno::EAGAIN) => {
            ": the VM's interrupt controller is not set up yet"
        }
        (Op::Assign(Part::Irqfd(_)), Errno::EBUSY) => {
            ": this eventfd is an irqfd of the VM already"
        }
        (Op::Routes { .. }, Errno::EINVAL) => {
            ": the VM has no interrupt controller in the kernel, or a pin that it does not have \
             is asked for"
        }
        (Op::Assign(Part::Ioeventfd(_)), Errno::EEXIST) => {
            ": an ioeventfd that the VMM made itself fires for some of the same writes"
        }
        (Op::Assign(Part::Ioeventfd(_)), Errno::EINVAL) => ": the descriptor is no eventfd",
        (Op::Deassign(Part::Ioeventfd(_)), Errno::ENOENT) => {
            ": KVM has no such ioeventfd; deassigned behind the library's back?"
        }
        (Op::Assign(Part::Zone(_)), Errno::ENOSPC) => ": the bus is full (NR_IOBUS_DEVS)",
        (_, Errno::ENOMEM) => ": out of kernel memory, or over the cgroup's limit",
        (_, Errno::EBADF) => ": the descriptor is not open",
        (_, Errno::EIO) => ": the VM belongs to another process, or is dead",
        _ => "",
    }
}
