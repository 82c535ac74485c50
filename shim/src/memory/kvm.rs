//! The memslots of a real VM.

use kvm_bindings::{
    kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log,
    kvm_dirty_log__bindgen_ty_1,
};
use kvm_memslots_uapi::{
    MemFlags, MemoryRegionsFlags, kvm_userspace_memory_region, kvm_userspace_memory_region2,
    kvm_userspace_memory_regions,
};

use super::batch::{self, NOBODY};
use super::calls::{BatchRefusal, MemoryCalls};
use super::op::Op;
use crate::errno::Errno;
use crate::kvm::Kvm;
use crate::kvm::requests::{
    KVM_CLEAR_DIRTY_LOG, KVM_GET_DIRTY_LOG, KVM_SET_USER_MEMORY_REGION,
    KVM_SET_USER_MEMORY_REGION2, KVM_SET_USER_MEMORY_REGIONS,
};
use crate::limits::Limits;
use crate::mapping::Slot;

/// A batch of one, which needs no allocation.
#[repr(C)]
struct One {
    header: kvm_userspace_memory_regions,
    entry: kvm_userspace_memory_region2,
}

const _: () =
    assert!(std::mem::offset_of!(One, entry) == size_of::<kvm_userspace_memory_regions>());

impl Kvm {
    /// # Safety
    /// [`MemoryCalls::change_all`], unless it is a dry run.
    unsafe fn batch(
        &self,
        as_id: u16,
        flags: MemoryRegionsFlags,
        ops: &[Op],
    ) -> Result<(), BatchRefusal> {
        // Where the probe did not find the ioctl, its number may be another's.
        if self.allowed.limits.batch.is_none() {
            return Err(Errno::ENOTTY.into());
        }
        let (answer, failed) = if let [op] = ops {
            let (as_id, flags) = (as_id.into(), flags.bits());
            let header = kvm_userspace_memory_regions {
                nr: 1,
                flags,
                as_id,
                failed: NOBODY,
                reserved: [0; 6],
            };
            let mut one = One { header, entry: op.to_kvm(0) };
            let header = (&raw mut one).cast::<kvm_userspace_memory_regions>();
            // SAFETY: `one` is borrowed for the call, and has the entry that
            // its header says right behind it; the mapping is the caller's
            // promise.
            let answer = unsafe { self.calls.tell(KVM_SET_USER_MEMORY_REGIONS, header) };
            (answer, one.header.failed)
        } else {
            let mut regions = batch::regions(as_id, flags, ops)?;
            let header = regions.as_mut_ptr();
            // SAFETY: `regions` is borrowed for the call and holds as many
            // entries as its header says; the mappings are the caller's promise.
            let answer = unsafe { self.calls.tell(KVM_SET_USER_MEMORY_REGIONS, header) };
            (answer, regions.header().failed)
        };
        let index = Some(failed as usize).filter(|index| *index < ops.len());
        answer.map_err(|errno| BatchRefusal { index, errno })
    }
}

/// - A call that a signal interrupts (`EINTR`) is made again, up to 64 times.
/// - The batch ioctl is only made where the probe found it; elsewhere the answer
///   is `ENOTTY` without a call.
/// - [`dirty_log`](MemoryCalls::dirty_log) is memory-safe also if somebody else
///   has replaced the slot: `EFAULT` where KVM's slot is larger than the
///   caller's (its log is lost then), and pages that KVM's slot does not have
///   count as dirty. It costs memory for the largest bitmap that was read: 32 KiB
///   per GiB of slot.
impl MemoryCalls for Kvm {
    fn limits(&self) -> Limits {
        self.allowed.limits
    }

    fn name(&self) -> &'static str {
        "kvm"
    }

    unsafe fn change(&self, as_id: u16, op: &Op) -> Result<(), Errno> {
        let region = op.to_kvm(as_id);
        if region.flags & MemFlags::GUEST_MEMFD.bits() != 0 {
            // SAFETY: the caller's promise is the same.
            return unsafe { self.calls.tell(KVM_SET_USER_MEMORY_REGION2, &raw const region) };
        }
        let region = kvm_userspace_memory_region {
            slot: region.slot,
            flags: region.flags,
            guest_phys_addr: region.guest_phys_addr,
            memory_size: region.memory_size,
            userspace_addr: region.userspace_addr,
        };
        // SAFETY: the caller's promise is the same.
        unsafe { self.calls.tell(KVM_SET_USER_MEMORY_REGION, &raw const region) }
    }

    unsafe fn change_all(&self, as_id: u16, ops: &[Op]) -> Result<(), BatchRefusal> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.batch(as_id, MemoryRegionsFlags::empty(), ops) }
    }

    fn check_all(&self, as_id: u16, ops: &[Op]) -> Result<(), BatchRefusal> {
        // SAFETY: a dry run maps nothing.
        unsafe { self.batch(as_id, MemoryRegionsFlags::DRY_RUN, ops) }
    }

    fn dirty_log(
        &self,
        as_id: u16,
        slot: &Slot,
        look: &mut dyn FnMut(&[u64]),
    ) -> Result<(), Errno> {
        let limits = &self.allowed.limits;
        let pages = slot.mapping.range().size() / limits.page_size;
        let words = pages.div_ceil(64) as usize;
        if pages > limits.slot_pages {
            return Err(Errno::EINVAL);
        }
        let mut scratch = self.scratch();
        let scratch = scratch.words(words)?;
        let log = kvm_dirty_log {
            slot: kvm_slot(as_id, slot),
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
                dirty_bitmap: scratch.as_mut_ptr().cast(),
            },
        };
        // SAFETY: `scratch` may be written and ends at a guard page, so a
        // longer bitmap faults.
        unsafe { self.calls.tell(KVM_GET_DIRTY_LOG, &raw const log) }?;
        if let (Some(last), 1..) = (scratch.last_mut(), pages % 64) {
            *last &= !(!0 << (pages % 64));
        }
        look(scratch);
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
        if bitmap.len() < pages.div_ceil(64) as usize {
            return Err(Errno::EINVAL);
        }
        let mut log = kvm_clear_dirty_log {
            slot: kvm_slot(as_id, slot),
            num_pages: pages,
            first_page: first,
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                dirty_bitmap: bitmap.as_ptr().cast_mut().cast(),
            },
        };
        // SAFETY: KVM reads the bits of `num_pages` pages, in whole words, and
        // `bitmap` has that many.
        unsafe { self.calls.tell(KVM_CLEAR_DIRTY_LOG, &raw mut log) }
    }
}

fn kvm_slot(as_id: u16, slot: &Slot) -> u32 {
    u32::from(as_id) << 16 | u32::from(slot.id)
}
