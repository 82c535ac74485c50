//! One model, several holders.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_memslots_uapi::{MemoryRegions, kvm_userspace_memory_region2};

use super::Model;
use crate::backend::{Errno, Memslots};
use crate::{Limits, Slot};

/// A handle to a [`Model`]: clones speak to the same one.
///
/// ```
/// use kvm_memslots_shim::Limits;
/// use kvm_memslots_shim::backend::{Memslots, Model};
///
/// let model = Model::new(Limits::x86()).shared();
/// let backend: Box<dyn Memslots> = Box::new(model.clone());
/// // ... `backend` goes to whoever changes memslots ...
/// assert_eq!(model.lock().slots(0).count(), 0);
/// # drop(backend);
/// ```
#[derive(Debug, Clone)]
pub struct SharedModel(Arc<Mutex<Model>>);

impl SharedModel {
    pub(super) fn new(model: Model) -> Self {
        Self(Arc::new(Mutex::new(model)))
    }

    /// The model, until the guard is dropped. No call of the model leaves it
    /// half changed, so a holder that panicked does no harm to the others.
    pub fn lock(&self) -> MutexGuard<'_, Model> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Model> for SharedModel {
    fn from(model: Model) -> Self {
        Self::new(model)
    }
}

impl Memslots for SharedModel {
    fn limits(&self) -> Limits {
        self.lock().limits()
    }

    fn name(&self) -> &'static str {
        "model"
    }

    unsafe fn set_region(&mut self, region: &kvm_userspace_memory_region2) -> Result<(), Errno> {
        // SAFETY: the caller promises what `set_region` asks for.
        unsafe { self.lock().set_region(region) }
    }

    unsafe fn set_regions(&mut self, regions: &mut MemoryRegions) -> Result<(), Errno> {
        self.lock().set_user_memory_regions(regions)
    }

    fn dirty_log(&mut self, as_id: u16, slot: &Slot, bitmap: &mut [u64]) -> Result<(), Errno> {
        self.lock().get_dirty_log(as_id, slot.id, bitmap)
    }

    fn clear_dirty_log(
        &mut self,
        as_id: u16,
        slot: &Slot,
        first: u64,
        pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        self.lock().clear_dirty_log(as_id, slot.id, first, pages, bitmap)
    }
}
