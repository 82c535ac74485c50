//! Who answers the memslot calls of one VM: KVM, or the model of it.

mod kvm;
pub mod model;

pub(crate) use kvm::check_extension;
pub use kvm::{Kvm, OpenError};
pub use model::Model;

use kvm_memslots_uapi::{MemoryRegions, kvm_userspace_memory_region2};
pub use nix::errno::Errno;

use crate::Limits;

/// The memslot calls of one VM, each as the ioctl of the same name, with the
/// kernel's errno where it refuses.
///
/// The methods that map host memory into the guest are `unsafe`: what stands
/// behind a slot is the guest's to read and write for as long as the slot
/// lives.
pub trait Memslots: Send {
    /// What this VM allows.
    fn limits(&self) -> Limits;

    /// A word for reports: `"kvm"` or `"model"`.
    fn name(&self) -> &'static str;

    /// `KVM_SET_USER_MEMORY_REGION`, or `..._REGION2` where the entry names a
    /// `guest_memfd`. Bits 16 to 31 of `region.slot` are the address space;
    /// `memory_size` 0 deletes.
    ///
    /// # Errors
    /// KVM's errno; nothing has changed then.
    ///
    /// # Safety
    /// Where `memory_size` is not 0, the host memory from `userspace_addr` on
    /// must be the guest's to read, and unless the slot is read-only to write,
    /// until the slot is deleted or the VM is gone: it stays mapped, and no
    /// Rust reference is made to it that a write behind its back would break.
    unsafe fn set_region(&mut self, region: &kvm_userspace_memory_region2) -> Result<(), Errno>;

    /// `KVM_SET_USER_MEMORY_REGIONS`. `regions.header().failed` says which
    /// entry was refused.
    ///
    /// # Errors
    /// KVM's errno, `ENOTTY` where the kernel lacks the ioctl; nothing has
    /// changed then.
    ///
    /// # Safety
    /// As [`set_region`](Self::set_region), for each entry; nothing is asked
    /// of a dry run.
    unsafe fn set_regions(&mut self, regions: &mut MemoryRegions) -> Result<(), Errno>;

    /// `KVM_GET_DIRTY_LOG`: fills `bitmap`, a bit a page of the slot, lowest
    /// first. Unless manual protection is enabled on the VM, the log is clear
    /// afterwards. `bitmap` must have `pages.div_ceil(64)` words for a slot of
    /// `pages`.
    ///
    /// # Errors
    /// KVM's errno: `ENOENT` where there is no such slot or it is not logged,
    /// `ENXIO` with a dirty ring; `EINVAL` where `bitmap` is too short.
    fn dirty_log(
        &mut self,
        as_id: u16,
        slot: &crate::Slot,
        bitmap: &mut [u64],
    ) -> Result<(), Errno>;

    /// `KVM_CLEAR_DIRTY_LOG`: forgets the pages whose bits are set, `pages`
    /// pages from page `first` of the slot on. `first` is a multiple of 64, and
    /// so is `pages` unless it reaches the slot's end.
    ///
    /// # Errors
    /// KVM's errno: `ENOENT` where there is no such slot or it is not logged,
    /// `ENXIO` with a dirty ring, `EINVAL` for pages the slot does not have.
    /// KVM does not mind if manual protection is not enabled on the VM.
    fn clear_dirty_log(
        &mut self,
        as_id: u16,
        slot: &crate::Slot,
        first: u64,
        pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno>;
}
