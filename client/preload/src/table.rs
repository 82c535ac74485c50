//! Which file descriptors are VMs and vCPUs.

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use crate::process;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// What a descriptor is.
#[derive(Clone)]
pub(crate) enum Known {
    Vm(Arc<Vm>),
    Vcpu(Arc<Vcpu>),
}

impl Known {
    fn vm(&self) -> &Arc<Vm> {
        match self {
            Self::Vm(vm) => vm,
            Self::Vcpu(vcpu) => vcpu.vm(),
        }
    }
}

static TABLE: RwLock<BTreeMap<c_int, Known>> = RwLock::new(BTreeMap::new());

/// How many there are, for those who only want to know whether there are any.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Whether there is none.
pub(crate) fn is_empty() -> bool {
    COUNT.load(Ordering::SeqCst) == 0
}

/// What `fd` is.
pub(crate) fn get(fd: c_int) -> Option<Known> {
    if is_empty() {
        return None;
    }
    TABLE.read().unwrap_or_else(PoisonError::into_inner).get(&fd).cloned()
}

/// Changes the table. What leaves it is dropped after the lock: that closes
/// descriptors.
fn change<T>(change: impl FnOnce(&mut BTreeMap<c_int, Known>) -> T) -> T {
    let mut table: RwLockWriteGuard<'_, _> = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    let changed = change(&mut table);
    COUNT.store(table.len(), Ordering::SeqCst);
    drop(table);
    changed
}

/// `fd` is this now.
pub(crate) fn insert(fd: c_int, known: Known) {
    drop(change(|table| table.insert(fd, known)));
}

/// Descriptors that are about to be closed. A child by `vfork` closes its own,
/// not those of its parent, whose memory this is.
pub(crate) fn close(fds: RangeInclusive<c_int>) {
    let any = || {
        let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
        table.range(fds.clone()).next().is_some()
    };
    if is_empty() || fds.is_empty() || !any() || !process::owns() {
        return;
    }
    let closed = change(|table| {
        let closed: Vec<c_int> = table.range(fds).map(|(fd, _)| *fd).collect();
        closed.into_iter().filter_map(|fd| table.remove(&fd)).collect::<Vec<_>>()
    });
    drop(closed);
}

/// `to` is what `fd` is.
pub(crate) fn copy(fd: c_int, to: c_int) {
    if fd == to || to < 0 || is_empty() || !process::owns() {
        return;
    }
    match get(fd) {
        Some(known) => insert(to, known),
        None => close(to..=to),
    }
}

/// All VMs, those with several descriptors several times.
pub(crate) fn vms() -> Vec<Arc<Vm>> {
    let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
    table.values().map(|known| Arc::clone(known.vm())).collect()
}
