//! KVM behind a VM file descriptor.

mod calls;
mod open;
mod scratch;
#[cfg(test)]
mod tests;
mod trap;

pub(crate) use calls::check_extension;
pub use open::OpenError;

use std::os::fd::{AsFd, OwnedFd};

use kvm_bindings::{
    kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log,
    kvm_dirty_log__bindgen_ty_1,
};
use kvm_memslots_uapi::probe::{Support, TrapSupport};
use kvm_memslots_uapi::{
    MemFlags, MemoryRegions, kvm_userspace_memory_region, kvm_userspace_memory_region2,
};

use self::calls::VmCalls;
use self::scratch::Scratch;
use super::{Errno, Memslots};
use crate::{Limits, Slot};

/// The memslots of a real VM.
///
/// Works beside whatever else holds the VM's file descriptor: the descriptor
/// is duplicated, and nothing is asked of KVM but what the methods say.
///
/// - A call that a signal interrupts (`EINTR`) is made again, up to 64 times.
/// - The batch ioctl is only made where the probe found it; elsewhere
///   [`set_regions`](Memslots::set_regions) gives `ENOTTY` without a call.
/// - [`dirty_log`](Memslots::dirty_log) is memory-safe also if somebody else
///   has replaced the slot: `EFAULT` where KVM's slot is larger than the
///   caller's (its log is lost then), and pages that KVM's slot does not have
///   count as dirty. It costs a copy of the bitmap, and memory for the largest
///   one that was read: 32 KiB per GiB of slot.
///
/// ```
/// use std::os::fd::{AsRawFd, BorrowedFd};
///
/// use kvm_memslots_shim::backend::{Errno, Kvm, Memslots};
/// use kvm_memslots_shim::{Mapping, Slot};
///
/// # let has_kvm = std::path::Path::new("/dev/kvm").exists();
/// # if !has_kvm {
/// #     eprintln!("SKIPPED backend::Kvm (example): no /dev/kvm");
/// #     return Ok(());
/// # }
/// let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
/// // SAFETY: `vm` keeps the descriptor open while it is borrowed.
/// let mut slots = Kvm::open(unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) })?;
/// println!("{:?}, batch ioctl: {:?}", slots.limits(), slots.support());
///
/// let page = slots.limits().page_size;
/// // A hole in this process's memory stands for guest RAM.
/// let ram = Slot { id: 0, mapping: Mapping::ram(0, 16 * page, 0x1000_0000_0000) };
/// // SAFETY: nothing of this process is at that address, and no vCPU runs.
/// unsafe { slots.set_region(&ram.to_kvm(0))? };
/// // Other memory under the same id is not what KVM allows.
/// let other = Slot { mapping: Mapping::ram(0, 32 * page, 0x1000_0000_0000), ..ram };
/// // SAFETY: as above.
/// assert_eq!(unsafe { slots.set_region(&other.to_kvm(0)) }, Err(Errno::EINVAL));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Kvm {
    vm: Vm<OwnedFd>,
}

impl Kvm {
    /// Duplicates `vm` (close-on-exec), asks it what it allows and probes for
    /// the batch ioctl and the trap flag. Nothing of the VM is changed; where
    /// the kernel claims the flag, `/dev/kvm` is opened to try it on another VM.
    ///
    /// # Errors
    /// [`OpenError`], by what `vm` is instead of a VM.
    pub fn open(vm: impl AsFd) -> Result<Self, OpenError> {
        open::duplicate(vm.as_fd()).map(|vm| Self { vm: Vm::new(vm) })
    }

    /// What the probe for the batch ioctl found. An
    /// [`Impostor`](Support::Impostor) is treated as if it had not claimed
    /// anything.
    #[must_use]
    pub const fn support(&self) -> Support {
        self.vm.support
    }

    /// What the probe for the trap flag found, on a VM that it made for that.
    /// [`Limits::trap`] says whether that comes to a yes.
    #[must_use]
    pub const fn trap_support(&self) -> TrapSupport {
        self.vm.trap
    }
}

impl Memslots for Kvm {
    fn limits(&self) -> Limits {
        self.vm.limits()
    }

    fn name(&self) -> &'static str {
        self.vm.name()
    }

    unsafe fn set_region(&mut self, region: &kvm_userspace_memory_region2) -> Result<(), Errno> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.vm.set_region(region) }
    }

    unsafe fn set_regions(&mut self, regions: &mut MemoryRegions) -> Result<(), Errno> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.vm.set_regions(regions) }
    }

    fn dirty_log(&mut self, as_id: u16, slot: &Slot, bitmap: &mut [u64]) -> Result<(), Errno> {
        self.vm.dirty_log(as_id, slot, bitmap)
    }

    fn clear_dirty_log(
        &mut self,
        as_id: u16,
        slot: &Slot,
        first: u64,
        pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        self.vm.clear_dirty_log(as_id, slot, first, pages, bitmap)
    }
}

/// A VM that is asked through `V`.
#[derive(Debug)]
struct Vm<V> {
    calls: V,
    limits: Limits,
    support: Support,
    trap: TrapSupport,
    scratch: Scratch,
}

impl<V: VmCalls> Vm<V> {
    fn new(mut calls: V) -> Self {
        let (limits, support, trap) = open::limits(&mut calls);
        Self { calls, limits, support, trap, scratch: Scratch::new(limits.page_size as usize) }
    }
}

impl<V: VmCalls> Memslots for Vm<V> {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn name(&self) -> &'static str {
        "kvm"
    }

    unsafe fn set_region(&mut self, region: &kvm_userspace_memory_region2) -> Result<(), Errno> {
        if region.flags & MemFlags::GUEST_MEMFD.bits() != 0 {
            // SAFETY: the caller's promise is the same.
            return retry(|| unsafe { self.calls.set_user_memory_region2(region) });
        }
        let region = kvm_userspace_memory_region {
            slot: region.slot,
            flags: region.flags,
            guest_phys_addr: region.guest_phys_addr,
            memory_size: region.memory_size,
            userspace_addr: region.userspace_addr,
        };
        // SAFETY: the caller's promise is the same.
        retry(|| unsafe { self.calls.set_user_memory_region(&region) })
    }

    unsafe fn set_regions(&mut self, regions: &mut MemoryRegions) -> Result<(), Errno> {
        // Where the probe did not find the ioctl, its number may be another's.
        if self.limits.batch.is_none() {
            return Err(Errno::ENOTTY);
        }
        let header = regions.as_mut_ptr();
        // SAFETY: `regions` is borrowed for the call and holds as many entries
        // as its header says; the mappings are the caller's promise.
        retry(|| unsafe { self.calls.set_user_memory_regions(header) })
    }

    fn dirty_log(&mut self, as_id: u16, slot: &Slot, bitmap: &mut [u64]) -> Result<(), Errno> {
        let pages = slot.mapping.range.size / self.limits.page_size;
        let words = pages.div_ceil(64) as usize;
        let bitmap = bitmap.get_mut(..words).ok_or(Errno::EINVAL)?;
        if pages > self.limits.slot_pages {
            return Err(Errno::EINVAL);
        }
        let scratch = self.scratch.words(words)?;
        let log = kvm_dirty_log {
            slot: kvm_slot(as_id, slot),
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
                dirty_bitmap: scratch.as_mut_ptr().cast(),
            },
        };
        // SAFETY: `scratch` may be written and ends at a guard page, so a
        // longer bitmap faults.
        retry(|| unsafe { self.calls.get_dirty_log(&log) })?;
        bitmap.copy_from_slice(scratch);
        if let (Some(last), 1..) = (bitmap.last_mut(), pages % 64) {
            *last &= !(!0 << (pages % 64));
        }
        Ok(())
    }

    fn clear_dirty_log(
        &mut self,
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
        retry(|| unsafe { self.calls.clear_dirty_log(&mut log) })
    }
}

fn kvm_slot(as_id: u16, slot: &Slot) -> u32 {
    u32::from(as_id) << 16 | u32::from(slot.id)
}

/// How often a call is made that keeps being interrupted: a VMM under a fast
/// profiling timer gets through, a storm that does not end is reported.
const ATTEMPTS: u32 = 64;

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 1..ATTEMPTS {
        match call() {
            Err(Errno::EINTR) => {}
            answer => return answer,
        }
    }
    call()
}
