//! An executable statement of KVM's memslot rules, in memory, with KVM's
//! errnos.
//!
//! [`Model`] is a VM's memslots without a VM: it takes what the memslot ioctls
//! take and answers as the kernel does, rule by rule and in the kernel's
//! order. It says what a guest would find at an address, counts the grace
//! periods that KVM would wait for, keeps dirty logs, and fails on demand. The
//! batch ioctl, which no released kernel has, it carries out as its ABI says.
//!
//! Each rule names the kernel function that it is from; `docs/model.md` has the
//! list, what is left out, and how the model is held against real KVM.
//!
//! ```
//! use kvm_memslots_shim::backend::model::{GuestAccess, Model};
//! use kvm_memslots_shim::backend::Errno;
//! use kvm_memslots_shim::uapi::kvm_userspace_memory_region2;
//! use kvm_memslots_shim::Limits;
//!
//! let mut model = Model::new(Limits::x86());
//! let ram = kvm_userspace_memory_region2 {
//!     slot: 0,
//!     guest_phys_addr: 0x10_0000,
//!     memory_size: 0x4000,
//!     userspace_addr: 0x7f00_0000_0000,
//!     ..Default::default()
//! };
//! model.set_user_memory_region2(&ram)?;
//! assert_eq!(model.guest_at(0, 0x10_1008), GuestAccess::Ram { hva: 0x7f00_0000_1008 });
//! assert_eq!(model.counts().grace_periods, 1);
//!
//! let overlapping = kvm_userspace_memory_region2 { slot: 1, ..ram };
//! assert_eq!(model.set_user_memory_region2(&overlapping), Err(Errno::EEXIST));
//! # Ok::<(), Errno>(())
//! ```

mod apply;
mod batch;
mod check;
mod config;
mod dirty;
mod fault;
mod guest;
mod memfd;
mod shared;
mod space;

pub use config::{DirtyTracking, ModelConfig};
pub use fault::{Call, Fault};
pub use guest::{GuestAccess, Piece};
pub use shared::SharedModel;

use kvm_memslots_uapi::{
    MemFlags, MemoryRegions, kvm_userspace_memory_region, kvm_userspace_memory_region2,
};

use super::{Errno, Memslots};
use crate::{Limits, Slot};

use memfd::Memfds;
use space::Space;

/// The model of a VM's memslots.
#[derive(Debug, Clone)]
pub struct Model {
    config: ModelConfig,
    spaces: Vec<Space>,
    memfds: Memfds,
    /// Pages of all slots (`kvm->nr_memslot_pages`).
    pages: u64,
    counts: Counts,
    faults: Vec<Fault>,
}

/// What the model was asked, and what that would have cost on KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counts {
    /// Calls that change memslots, one region or a batch each, also those that
    /// were refused or changed nothing. Dry runs are not among them.
    pub ioctls: u64,
    /// Those of them that were refused.
    pub refused: u64,
    /// Batches that were dry runs.
    pub dry_runs: u64,
    /// SRCU grace periods that KVM would have waited for, those of a refused
    /// move among them.
    pub grace_periods: u64,
}

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
        let spaces = vec![Space::default(); usize::from(config.limits.address_spaces)];
        Self {
            config,
            spaces,
            memfds: Memfds::default(),
            pages: 0,
            counts: Counts::default(),
            faults: Vec::new(),
        }
    }

    /// A handle to the model that can be cloned: one for an owner of
    /// [`Memslots`], one to look at what it did.
    #[must_use]
    pub fn shared(self) -> SharedModel {
        SharedModel::new(self)
    }

    /// `fd` is a `guest_memfd` of this VM, `size` bytes long
    /// (`KVM_CREATE_GUEST_MEMFD`).
    pub fn add_guest_memfd(&mut self, fd: i32, size: u64) {
        self.memfds.add_guest(fd, size);
    }

    /// `fd` is open, and no `guest_memfd` of this VM.
    pub fn add_other_fd(&mut self, fd: i32) {
        self.memfds.add_other(fd);
    }

    /// The live slots of address space `as_id`, by guest address. KVM knows no
    /// kinds: every mapping is [`Kind::Ram`](crate::Kind::Ram).
    pub fn slots(&self, as_id: u16) -> impl Iterator<Item = Slot> + '_ {
        let space = self.space(u32::from(as_id));
        space.into_iter().flat_map(|space| space.iter().map(|live| live.slot))
    }

    /// The live slot with this id.
    #[must_use]
    pub fn slot(&self, as_id: u16, id: u16) -> Option<Slot> {
        self.space(u32::from(as_id))?.get(id).map(|live| live.slot)
    }

    /// How many slots are live in address space `as_id`.
    #[must_use]
    pub fn slot_count(&self, as_id: u16) -> usize {
        self.space(u32::from(as_id)).map_or(0, Space::len)
    }

    /// Calls and grace periods so far.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Counts from zero again.
    pub fn reset_counts(&mut self) {
        self.counts = Counts::default();
    }

    /// `KVM_SET_USER_MEMORY_REGION`: as
    /// [`set_user_memory_region2`](Self::set_user_memory_region2), for slots
    /// without private memory.
    ///
    /// # Errors
    /// `EINVAL` for any flag but [`MemFlags::LOG_DIRTY_PAGES`],
    /// [`MemFlags::READONLY`] and [`MemFlags::TRAP`]
    /// (`KVM_SET_USER_MEMORY_REGION_V1_FLAGS`, `kvm_vm_ioctl()`).
    pub fn set_user_memory_region(
        &mut self,
        region: &kvm_userspace_memory_region,
    ) -> Result<(), Errno> {
        let region = kvm_userspace_memory_region2 {
            slot: region.slot,
            flags: region.flags,
            guest_phys_addr: region.guest_phys_addr,
            memory_size: region.memory_size,
            userspace_addr: region.userspace_addr,
            ..Default::default()
        };
        let v1 = MemFlags::LOG_DIRTY_PAGES | MemFlags::READONLY | MemFlags::TRAP;
        let acceptable = region.flags & !v1.bits() == 0;
        self.set_one(&region, if acceptable { Ok(()) } else { Err(Errno::EINVAL) })
    }

    /// `KVM_SET_USER_MEMORY_REGION2`. Bits 16 to 31 of `region.slot` are the
    /// address space; `memory_size` 0 deletes.
    ///
    /// # Errors
    /// - `ENOTTY`: the kernel lacks the ioctl ([`Limits::region2`]).
    /// - `EINVAL`: a bad slot id, address space, flag, size, address or
    ///   `guest_memfd`; a delete of a slot that is not there; a change of size,
    ///   host address, read-only or private memory of one that is.
    /// - `EEXIST`: overlap with another slot.
    /// - `EBADF`: `guest_memfd` is not open.
    pub fn set_user_memory_region2(
        &mut self,
        region: &kvm_userspace_memory_region2,
    ) -> Result<(), Errno> {
        let present = if self.config.limits.region2 { Ok(()) } else { Err(Errno::ENOTTY) };
        self.set_one(region, present)
    }

    fn set_one(
        &mut self,
        region: &kvm_userspace_memory_region2,
        precondition: Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.counts.ioctls += 1;
        let outcome = precondition
            .and_then(|()| {
                self.injected(Call::SetRegion).map_or(Ok(()), |fault| Err(fault.errno()))
            })
            .map_err(Into::into)
            .and_then(|()| self.check(region));
        match outcome {
            Ok(change) => {
                self.counts.grace_periods += change.grace_periods();
                self.apply((region.slot >> 16) as u16, change);
                Ok(())
            }
            Err(refusal) => {
                self.counts.refused += 1;
                self.counts.grace_periods += refusal.grace_periods;
                Err(refusal.errno)
            }
        }
    }

    fn space(&self, as_id: u32) -> Option<&Space> {
        self.spaces.get(as_id as usize)
    }
}

impl Memslots for Model {
    fn limits(&self) -> Limits {
        self.config.limits
    }

    fn name(&self) -> &'static str {
        "model"
    }

    unsafe fn set_region(&mut self, region: &kvm_userspace_memory_region2) -> Result<(), Errno> {
        if region.flags & MemFlags::GUEST_MEMFD.bits() != 0 {
            return self.set_user_memory_region2(region);
        }
        self.set_user_memory_region(&kvm_userspace_memory_region {
            slot: region.slot,
            flags: region.flags,
            guest_phys_addr: region.guest_phys_addr,
            memory_size: region.memory_size,
            userspace_addr: region.userspace_addr,
        })
    }

    unsafe fn set_regions(&mut self, regions: &mut MemoryRegions) -> Result<(), Errno> {
        self.set_user_memory_regions(regions)
    }

    fn dirty_log(&mut self, as_id: u16, slot: &Slot, bitmap: &mut [u64]) -> Result<(), Errno> {
        self.get_dirty_log(as_id, slot.id, bitmap)
    }

    fn clear_dirty_log(
        &mut self,
        as_id: u16,
        slot: &Slot,
        first: u64,
        pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        Model::clear_dirty_log(self, as_id, slot.id, first, pages, bitmap)
    }
}

#[cfg(test)]
mod tests;
