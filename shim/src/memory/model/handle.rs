//! The model, as its users see it.

use std::sync::{Arc, Mutex};

use kvm_memslots_uapi::{
    MemoryRegions, MemoryRegionsFlags, kvm_userspace_memory_region, kvm_userspace_memory_region2,
    kvm_userspace_memory_regions,
};

use super::config::ModelConfig;
use super::counts::{Counts, Fault};
use super::guest::{GuestAccess, Piece};
use super::space::Space;
use super::vm::Vm;
use crate::errno::Errno;
use crate::fault::handle;
use crate::limits::Limits;
use crate::mapping::Slot;
use crate::memory::batch;
use crate::memory::calls::{BatchRefusal, MemoryCalls};
use crate::memory::op::Op;

/// The model of a VM's memslots. A handle: clones are of the same VM.
#[derive(Debug, Clone)]
pub struct Model(Arc<Mutex<Vm>>);

handle!(Model, pub(super) Vm, Counts, Fault);

impl Model {
    /// A VM without slots that allows what `limits` says, and otherwise what a
    /// [`ModelConfig`] allows by default.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self::with_config(ModelConfig::new(limits))
    }

    /// A VM without slots.
    #[must_use]
    pub fn with_config(config: ModelConfig) -> Self {
        Self(Arc::new(Mutex::new(Vm::new(config))))
    }

    /// `fd` is a `guest_memfd` of this VM, `size` bytes long
    /// (`KVM_CREATE_GUEST_MEMFD`).
    pub fn add_guest_memfd(&self, fd: i32, size: u64) {
        self.with(|vm| vm.memfds.add_guest(fd, size));
    }

    /// `fd` is open, and no `guest_memfd` of this VM.
    pub fn add_other_fd(&self, fd: i32) {
        self.with(|vm| vm.memfds.add_other(fd));
    }

    /// The live slots of address space `as_id`, by guest address. KVM knows no
    /// kinds: every mapping is [`Kind::Ram`](crate::Kind::Ram).
    #[must_use]
    pub fn slots(&self, as_id: u16) -> Vec<Slot> {
        self.with(|vm| {
            let live = vm.space(as_id.into()).into_iter().flat_map(Space::iter);
            live.map(|live| live.slot).collect()
        })
    }

    /// The live slot with this id.
    #[must_use]
    pub fn slot(&self, as_id: u16, id: u16) -> Option<Slot> {
        self.with(|vm| vm.space(as_id.into())?.get(id).map(|live| live.slot))
    }

    /// How many slots are live in address space `as_id`.
    #[must_use]
    pub fn slot_count(&self, as_id: u16) -> usize {
        self.with(|vm| vm.space(as_id.into()).map_or(0, Space::len))
    }

    /// `KVM_SET_USER_MEMORY_REGION`: as
    /// [`set_user_memory_region2`](Self::set_user_memory_region2), for slots
    /// without private memory.
    ///
    /// # Errors
    /// `EINVAL` for any flag but `KVM_MEM_LOG_DIRTY_PAGES`, `KVM_MEM_READONLY` and
    /// `KVM_MEM_TRAP`
    /// (`KVM_SET_USER_MEMORY_REGION_V1_FLAGS`, `kvm_vm_ioctl()`).
    pub fn set_user_memory_region(
        &self,
        region: &kvm_userspace_memory_region,
    ) -> Result<(), Errno> {
        self.with(|vm| vm.set_region(region))
    }

    /// `KVM_SET_USER_MEMORY_REGION2`. Bits 16 to 31 of `region.slot` are the
    /// address space; `memory_size` 0 deletes.
    ///
    /// # Errors
    /// - `EINVAL`: a bad slot id, address space, flag, size, address or
    ///   `guest_memfd`; a delete of a slot that is not there; a change of size,
    ///   host address, read-only or private memory of one that is.
    /// - `EEXIST`: overlap with another slot.
    /// - `EBADF`: `guest_memfd` is not open.
    pub fn set_user_memory_region2(
        &self,
        region: &kvm_userspace_memory_region2,
    ) -> Result<(), Errno> {
        self.with(|vm| vm.set_region2(region))
    }

    /// `KVM_SET_USER_MEMORY_REGIONS` with the header and entries of `regions`,
    /// as [`set_user_memory_regions_raw`](Self::set_user_memory_regions_raw).
    ///
    /// # Errors
    /// As there.
    pub fn set_user_memory_regions(&self, regions: &mut MemoryRegions) -> Result<(), Errno> {
        let mut header = *regions.header();
        let outcome = self.set_user_memory_regions_raw(&mut header, regions.entries());
        regions.set_failed(header.failed);
        outcome
    }

    /// `KVM_SET_USER_MEMORY_REGIONS`: carries the entries out in order, all or
    /// none. `header.failed` comes back as the index of the entry that was
    /// refused, or as `nr` if none is to blame; nothing else in the header
    /// changes.
    ///
    /// # Errors
    /// `ENOTTY` where the kernel lacks the ioctl ([`Limits::batch`]; the header
    /// is untouched then). Of the header, in this order: `EINVAL` for an
    /// unknown flag, a reserved word that is not 0, an address space beyond
    /// the limit, or `nr` 0 without [`MemoryRegionsFlags::DRY_RUN`]; `E2BIG`
    /// for `nr` beyond the limit; `EFAULT` where `nr` names more entries than
    /// there are. Of an entry: `EINVAL` for bits 16 to 31 of its slot, and
    /// else what the single-region ioctl would say, were the entries before it
    /// carried out. Of what all entries of a slot amount to, blaming the last
    /// of them: `EINVAL` where the slot ends up beyond the last guest address.
    pub fn set_user_memory_regions_raw(
        &self,
        header: &mut kvm_userspace_memory_regions,
        entries: &[kvm_userspace_memory_region2],
    ) -> Result<(), Errno> {
        self.with(|vm| vm.set_regions(header, entries))
    }

    /// `KVM_GET_DIRTY_LOG` of slot `id` in address space `as_id`.
    ///
    /// # Errors
    /// As `kvm_get_dirty_log_protect()`, in this order: `ENXIO` with a dirty
    /// ring, `EINVAL` for an address space or slot id beyond the limit,
    /// `ENOENT` where there is no such slot or it is not logged. `EINVAL` where
    /// `bitmap` is shorter than the slot's, which KVM can't see.
    pub fn get_dirty_log(&self, as_id: u16, id: u16, bitmap: &mut [u64]) -> Result<(), Errno> {
        self.with(|vm| vm.get_dirty_log(as_id, id, bitmap))
    }

    /// `KVM_CLEAR_DIRTY_LOG` of slot `id` in address space `as_id`: forgets
    /// those of the `pages` pages from `first` on whose bits are set in
    /// `bitmap`.
    ///
    /// KVM takes this call whether manual protection is enabled or not.
    ///
    /// # Errors
    /// As `kvm_clear_dirty_log_protect()`, in this order: `ENXIO` with a dirty
    /// ring, `EINVAL` for an address space or slot id beyond the limit,
    /// `EINVAL` where `first` is no multiple of 64, `ENOENT` where there is no
    /// such slot or it is not logged, `EINVAL` where the pages are not all in
    /// the slot, or are neither a multiple of 64 nor reach its end. `EINVAL`
    /// where `bitmap` is shorter than `pages`, which KVM can't see.
    pub fn clear_dirty_log(
        &self,
        as_id: u16,
        id: u16,
        first: u64,
        pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        self.with(|vm| vm.clear_dirty_log(as_id, id, first, pages, bitmap))
    }

    /// What a guest that reads at `gpa` in address space `as_id` finds.
    #[must_use]
    pub fn guest_at(&self, as_id: u16, gpa: u64) -> GuestAccess {
        self.with(|vm| vm.guest_at(as_id, gpa))
    }

    /// What a guest that reads `len` bytes from `gpa` on finds, by address.
    /// Reads end at the end of the address space.
    #[must_use]
    pub fn guest_read(&self, as_id: u16, gpa: u64, len: u64) -> Vec<Piece> {
        self.with(|vm| vm.guest_read(as_id, gpa, len))
    }

    /// What becomes of a guest's write of `len` bytes from `gpa` on, by
    /// address. Marks the pages that are written and whose slot is logged
    /// (`mark_page_dirty_in_slot()`).
    #[allow(clippy::must_use_candidate)] // For what it marks.
    pub fn guest_write(&self, as_id: u16, gpa: u64, len: u64) -> Vec<Piece> {
        self.with(|vm| vm.guest_write(as_id, gpa, len))
    }

    fn batch(&self, as_id: u16, flags: MemoryRegionsFlags, ops: &[Op]) -> Result<(), BatchRefusal> {
        let mut regions = batch::regions(as_id, flags, ops)?;
        self.set_user_memory_regions(&mut regions).map_err(|errno| {
            let index = regions.failed_entry().map(|(index, _)| index);
            BatchRefusal { index, errno }
        })
    }
}

impl MemoryCalls for Model {
    fn limits(&self) -> Limits {
        self.with(|vm| vm.config.limits)
    }

    fn name(&self) -> &'static str {
        "model"
    }

    unsafe fn change(&self, as_id: u16, op: &Op) -> Result<(), Errno> {
        self.with(|vm| vm.change(&op.to_kvm(as_id)))
    }

    unsafe fn change_all(&self, as_id: u16, ops: &[Op]) -> Result<(), BatchRefusal> {
        self.batch(as_id, MemoryRegionsFlags::empty(), ops)
    }

    fn check_all(&self, as_id: u16, ops: &[Op]) -> Result<(), BatchRefusal> {
        self.batch(as_id, MemoryRegionsFlags::DRY_RUN, ops)
    }

    fn dirty_log(
        &self,
        as_id: u16,
        slot: &Slot,
        look: &mut dyn FnMut(&[u64]),
    ) -> Result<(), Errno> {
        let pages = slot.mapping.range().size() / self.with(|vm| vm.config.limits.page_size);
        let words = usize::try_from(pages.div_ceil(64)).map_err(|_| Errno::ENOMEM)?;
        let mut bitmap = Vec::new();
        bitmap.try_reserve_exact(words).map_err(|_| Errno::ENOMEM)?;
        bitmap.resize(words, 0);
        self.get_dirty_log(as_id, slot.id, &mut bitmap)?;
        look(&bitmap);
        Ok(())
    }

    fn clear_dirty_log(
        &self,
        as_id: u16,
        slot: &Slot,
        first: u64,
        pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        Model::clear_dirty_log(self, as_id, slot.id, first, pages, bitmap)
    }
}
