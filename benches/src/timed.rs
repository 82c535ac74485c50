//! Where the time of a VM's calls goes, by their kind.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kvm_ioctls::VmFd;
use kvm_memslots::backend::{
    BatchRefusal, EventCalls, EventLimits, EventOp, EventPart, Kvm, KvmOptions, MemoryCalls, Op,
};
use kvm_memslots::{Builder, Errno, Limits, Slot, Vm, vm_fd};
use serde::{Deserialize, Serialize};

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `KVM_SET_USER_MEMORY_REGION` and its kin.
    Memory,
    /// TSS, interrupt controllers, PIT.
    Platform,
    /// `KVM_CREATE_VCPU`.
    Vcpus,
    /// `KVM_SET_GSI_ROUTING`.
    Routes,
    /// `KVM_IRQFD`.
    Irqfds,
    /// `KVM_IOEVENTFD`.
    Ioeventfds,
}

/// In order, with the names of their samples.
pub(crate) const KINDS: [(Kind, &str); 6] = [
    (Kind::Memory, "in_memory"),
    (Kind::Platform, "in_platform"),
    (Kind::Vcpus, "in_vcpus"),
    (Kind::Routes, "in_routes"),
    (Kind::Irqfds, "in_irqfds"),
    (Kind::Ioeventfds, "in_ioeventfds"),
];

/// The name of the samples of what was in no call.
pub(crate) const REST: &str = "in_none";

/// Nanoseconds in calls of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Times([u64; KINDS.len()]);

impl Times {
    /// Samples of one run that took so long, for a row.
    pub(crate) fn pools(&self, wall_ns: u64) -> Vec<(&'static str, Vec<u64>)> {
        let rest = wall_ns.saturating_sub(self.0.iter().sum());
        let kinds = KINDS.iter().zip(self.0).map(|((_, name), ns)| (*name, vec![ns]));
        kinds.chain([(REST, vec![rest])]).collect()
    }

    /// The names of these samples.
    pub(crate) fn names() -> Vec<&'static str> {
        KINDS.iter().map(|(_, name)| *name).chain([REST]).collect()
    }
}

/// Adds times up. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clock(Arc<[AtomicU64; KINDS.len()]>);

impl Clock {
    /// What has come together since it was asked last.
    pub(crate) fn take(&self) -> Times {
        Times(std::array::from_fn(|kind| self.0[kind].swap(0, Ordering::Relaxed)))
    }
}

/// Makes calls, of a kind if there is a clock.
pub(crate) fn time<T>(clock: Option<&Clock>, kind: Kind, calls: impl FnOnce() -> T) -> T {
    let Some(clock) = clock else { return calls() };
    let start = Instant::now();
    let done = calls();
    let ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    clock.0[kind as usize].fetch_add(ns, Ordering::Relaxed);
    done
}

/// KVM, with a clock beside it.
pub(crate) struct Timed {
    kvm: Kvm,
    clock: Option<Clock>,
}

impl Timed {
    pub(crate) const fn new(kvm: Kvm, clock: Option<Clock>) -> Self {
        Self { kvm, clock }
    }

    fn time<T>(&self, kind: Kind, call: impl FnOnce() -> T) -> T {
        time(self.clock.as_ref(), kind, call)
    }
}

/// Opens a VM, with a clock beside its calls if there is one.
pub(crate) fn open(builder: Builder, vm: &VmFd, clock: Option<Clock>) -> io::Result<Vm> {
    if clock.is_none() {
        return builder.open(vm_fd(vm)).map_err(io::Error::other);
    }
    let kvm = Kvm::open(vm_fd(vm), KvmOptions::default()).map_err(io::Error::other)?;
    let timed = Arc::new(Timed::new(kvm, clock));
    let memory: Arc<dyn MemoryCalls> = Arc::clone(&timed) as _;
    builder.open_on(memory, timed).map_err(io::Error::other)
}

impl EventCalls for Timed {
    fn limits(&self) -> EventLimits {
        EventCalls::limits(&self.kvm)
    }

    fn name(&self) -> &'static str {
        EventCalls::name(&self.kvm)
    }

    fn change(&self, op: &EventOp) -> Result<(), Errno> {
        let call = || EventCalls::change(&self.kvm, op);
        match op {
            EventOp::Routes { .. } => self.time(Kind::Routes, call),
            EventOp::Assign(part) | EventOp::Deassign(part) => match part {
                EventPart::Irqfd(_) => self.time(Kind::Irqfds, call),
                EventPart::Ioeventfd(_) => self.time(Kind::Ioeventfds, call),
                EventPart::Zone(_) => call(),
            },
        }
    }

    fn has_irqchip(&self) -> Option<bool> {
        self.kvm.has_irqchip()
    }
}

impl MemoryCalls for Timed {
    fn limits(&self) -> Limits {
        MemoryCalls::limits(&self.kvm)
    }

    fn name(&self) -> &'static str {
        MemoryCalls::name(&self.kvm)
    }

    unsafe fn change(&self, as_id: u16, op: &Op) -> Result<(), Errno> {
        // SAFETY: the caller's promise is the same.
        self.time(Kind::Memory, || unsafe { MemoryCalls::change(&self.kvm, as_id, op) })
    }

    unsafe fn change_all(&self, as_id: u16, ops: &[Op]) -> Result<(), BatchRefusal> {
        // SAFETY: the caller's promise is the same.
        self.time(Kind::Memory, || unsafe { self.kvm.change_all(as_id, ops) })
    }

    fn check_all(&self, as_id: u16, ops: &[Op]) -> Result<(), BatchRefusal> {
        self.kvm.check_all(as_id, ops)
    }

    fn dirty_log(
        &self,
        as_id: u16,
        slot: &Slot,
        look: &mut dyn FnMut(&[u64]),
    ) -> Result<(), Errno> {
        self.kvm.dirty_log(as_id, slot, look)
    }

    fn clear_dirty_log(
        &self,
        as_id: u16,
        slot: &Slot,
        first: u64,
        pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        self.kvm.clear_dirty_log(as_id, slot, first, pages, bitmap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_no_call_is_the_rest() {
        let clock = Clock::default();
        clock.0[Kind::Routes as usize].store(30, Ordering::Relaxed);
        clock.0[Kind::Ioeventfds as usize].store(12, Ordering::Relaxed);
        let times = clock.take();
        assert_eq!(clock.take(), Times::default());
        let pools = times.pools(100);
        let of = |name| pools.iter().find(|(n, _)| *n == name).map(|(_, ns)| ns[0]);
        let names = ["in_memory", "in_routes", "in_ioeventfds", REST];
        assert_eq!(names.map(of), [Some(0), Some(30), Some(12), Some(58)]);
        assert_eq!(pools.len(), Times::names().len());
    }
}
