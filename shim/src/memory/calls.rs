//! Who answers the memslot calls of one VM: KVM, or the model of it.

use super::op::Op;
use crate::errno::Errno;
use crate::limits::Limits;
use crate::mapping::Slot;

/// The memslot calls of one VM, each as the ioctl of the same name, with the
/// kernel's errno where it refuses; nothing has changed then.
///
/// The methods that map host memory into the guest are `unsafe`: what stands
/// behind a slot is the guest's to read and write for as long as the slot
/// lives.
pub trait MemoryCalls: Send + Sync {
    /// What this VM allows.
    fn limits(&self) -> Limits;

    /// A word for reports: `"kvm"` or `"model"`.
    fn name(&self) -> &'static str;

    /// `KVM_SET_USER_MEMORY_REGION`, or `..._REGION2` where
    /// [`Op::to_kvm`] names a `guest_memfd`.
    ///
    /// # Errors
    /// KVM's errno.
    ///
    /// # Safety
    /// Where there is a slot after the change, its host memory must be the
    /// guest's to read, and unless the slot is read-only to write, until the
    /// slot is deleted or the VM is gone: it stays mapped, and no Rust reference
    /// is made to it that a write behind its back would break.
    unsafe fn change(&self, as_id: u16, op: &Op) -> Result<(), Errno>;

    /// `KVM_SET_USER_MEMORY_REGIONS`: `ops` in this order, all or none; at most
    /// [`Limits::batch`] of them.
    ///
    /// # Errors
    /// KVM's errno, `ENOTTY` where the kernel lacks the ioctl.
    ///
    /// # Safety
    /// As [`change`](Self::change), for each of `ops`.
    unsafe fn change_all(&self, as_id: u16, ops: &[Op]) -> Result<(), BatchRefusal>;

    /// The same as a dry run: what it would say, and nothing changes.
    ///
    /// # Errors
    /// As there.
    fn check_all(&self, as_id: u16, ops: &[Op]) -> Result<(), BatchRefusal>;

    /// `KVM_GET_DIRTY_LOG`: has `look` see the bits where they are, a bit a page of the
    /// slot, lowest first, and 0 beyond its pages. Unless manual protection is enabled
    /// on the VM, the log is clear afterwards. `look` makes no calls here.
    ///
    /// # Errors
    /// KVM's errno: `ENOENT` where there is no such slot or it is not logged,
    /// `ENXIO` with a dirty ring. `ENOMEM`, before KVM is asked, where there is no
    /// memory for the bits.
    fn dirty_log(&self, as_id: u16, slot: &Slot, look: &mut dyn FnMut(&[u64]))
    -> Result<(), Errno>;

    /// `KVM_CLEAR_DIRTY_LOG`: forgets the pages whose bits are set, `pages`
    /// pages from page `first` of the slot on. `first` is a multiple of 64, and
    /// so is `pages` unless it reaches the slot's end.
    ///
    /// # Errors
    /// KVM's errno: `ENOENT` where there is no such slot or it is not logged,
    /// `ENXIO` with a dirty ring, `EINVAL` for pages the slot does not have.
    /// KVM does not mind if manual protection is not enabled on the VM.
    fn clear_dirty_log(
        &self,
        as_id: u16,
        slot: &Slot,
        first: u64,
        pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno>;
}

/// A batch that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRefusal {
    /// Which change is to blame; `None` if none is.
    pub index: Option<usize>,
    /// KVM's errno.
    pub errno: Errno,
}

impl From<Errno> for BatchRefusal {
    fn from(errno: Errno) -> Self {
        Self { index: None, errno }
    }
}
