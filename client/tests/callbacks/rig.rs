//! Host memory that says when it is freed, and callbacks that do as they are
//! told.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::{
    Access, Backing, FileRange, GateError, HostMemory, Limits, Observer, Region, RegionSpec,
    VcpuGate, Vm, at,
};

pub(crate) const PAGE: u64 = 4096;
pub(crate) const HVA: u64 = 0x7000_0000_0000;

/// Borrowed memory on the model.
pub(crate) fn ram(gpa: u64, size: u64) -> RegionSpec {
    // SAFETY: the model touches no memory.
    RegionSpec::ram(at(gpa, size), unsafe { Backing::borrowed(HVA + gpa, size, Access::ReadWrite) })
}

/// What callbacks are to do, and what they found.
#[derive(Default)]
pub(crate) struct Script {
    /// Callbacks until one panics; 0 for never.
    fuse: AtomicU64,
    pub(crate) blown: AtomicBool,
    pub(crate) freed: Mutex<Vec<(u64, u64)>>,
    /// Memory that was freed while a slot was over it.
    pub(crate) freed_early: AtomicBool,
    pub(crate) heard: Mutex<Vec<String>>,
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Script {
    pub(crate) fn set_fuse(&self, callbacks: u64) {
        self.blown.store(false, Ordering::Relaxed);
        self.fuse.store(callbacks, Ordering::Relaxed);
    }

    /// Panics if it is this one's turn.
    pub(crate) fn called(&self, what: &str) {
        locked(&self.heard).push(what.to_owned());
        let left = self.fuse.load(Ordering::Relaxed);
        if left > 0 {
            self.fuse.store(left - 1, Ordering::Relaxed);
        }
        if left == 1 {
            self.blown.store(true, Ordering::Relaxed);
            std::panic::panic_any("a callback's panic");
        }
    }
}

/// Memory of its own address, which says when it is freed.
pub(crate) struct Owned {
    pub(crate) hva: u64,
    pub(crate) size: u64,
    pub(crate) model: MemoryModel,
    pub(crate) script: Arc<Script>,
}

// SAFETY: nothing is mapped for real.
unsafe impl HostMemory for Owned {
    fn range(&self) -> (u64, u64) {
        (self.hva, self.size)
    }

    fn file(&self) -> Option<FileRange> {
        Some(FileRange { fd: 77, offset: self.hva - HVA })
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let (from, to) = (self.hva, self.hva + self.size);
        let over = self.model.slots(0).iter().any(|slot| {
            let (hva, size) = (slot.mapping.hva(), slot.mapping.range().size());
            hva < to && from < hva + size
        });
        if over {
            self.script.freed_early.store(true, Ordering::Relaxed);
        }
        locked(&self.script.freed).push((self.hva, self.size));
        self.script.called("drop");
    }
}

pub(crate) struct Gate(pub(crate) Arc<Script>);

impl VcpuGate for Gate {
    fn pause(&self) -> Result<(), GateError> {
        self.0.called("pause");
        Ok(())
    }

    fn resume(&self) {
        self.0.called("resume");
    }
}

pub(crate) struct Watcher(pub(crate) Arc<Script>);

impl Observer for Watcher {
    fn check(
        &self,
        _: &[Region],
        _: &[Region],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.0.called("check");
        Ok(())
    }

    fn unmapping(&self, _: &Region) {
        self.0.called("unmapping");
    }

    fn mapped(&self, _: &Region) {
        self.0.called("mapped");
    }
}

/// A VM whose callbacks are all `script`'s.
pub(crate) fn open(
    limits: Limits,
    script: &Arc<Script>,
    observed: bool,
) -> (Vm, MemoryModel, EventModel) {
    let (model, events) = (MemoryModel::new(limits), EventModel::new(Irqchip::Split));
    let harvest = Arc::clone(script);
    let builder = Vm::builder()
        .gate(Arc::new(Gate(Arc::clone(script))))
        .harvest(move |_| harvest.called("harvest"));
    let builder =
        if observed { builder.observer(Arc::new(Watcher(Arc::clone(script)))) } else { builder };
    let vm = builder.open_on(Arc::new(model.clone()), Arc::new(events.clone())).unwrap();
    (vm, model, events)
}
