//! The ring that keeps the writes to coalesced zones.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kvm_memslots_shim::Errno;
use kvm_memslots_shim::events::{Bus, ZoneWrite};

/// The ring of a VM that keeps the guest's writes to
/// [coalesced zones](crate::device::Coalesced)
/// ([`Vm::coalesced_ring`](crate::Vm::coalesced_ring)).
///
/// There is one of a VM, whichever vCPU it was got through, and each write is for
/// whoever takes it first. So a VMM has one `CoalescedRing`, behind the lock of its
/// devices, and takes all there is before it handles an exit and before it shows a
/// device's state (QEMU's `kvm_flush_coalesced_mmio_buffer()`). Reading it makes no
/// system call.
pub struct CoalescedRing {
    page: NonNull<AtomicU32>,
    len: usize,
}

// SAFETY: memory of its own, which is used as atomics only.
unsafe impl Send for CoalescedRing {}
// SAFETY: as above; taking from it needs `&mut`.
unsafe impl Sync for CoalescedRing {}

/// `struct kvm_coalesced_mmio`, as words of 64 bits: the address; length and bus;
/// the data.
const WORDS: usize = 3;

impl CoalescedRing {
    /// Maps page `page` of a vCPU's descriptor.
    pub(crate) fn map(vcpu: BorrowedFd<'_>, page: u32) -> Result<Self, Errno> {
        // Of files there are, one that is truncated would fault. A vCPU is none.
        // SAFETY: all zeroes is a value of that structure.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes the structure.
        if unsafe { libc::fstat(vcpu.as_raw_fd(), &raw mut stat) } != 0 {
            return Err(Errno::last());
        }
        if stat.st_mode & libc::S_IFMT != 0 {
            return Err(Errno::EINVAL);
        }
        // SAFETY: takes a number.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let len = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
        let offset = size.checked_mul(page.into()).ok_or(Errno::EINVAL)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (shared, fd) = (libc::MAP_SHARED, vcpu.as_raw_fd());
        // SAFETY: a new mapping, which takes no other's place.
        let at = unsafe { libc::mmap(null_mut(), len, protection, shared, fd, offset) };
        if at == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        NonNull::new(at.cast()).map(|page| Self { page, len }).ok_or(Errno::EINVAL)
    }

    /// `KVM_COALESCED_MMIO_MAX`
    const fn entries(&self) -> u32 {
        ((self.len - 8) / (WORDS * 8)) as u32
    }

    /// `first`, which the VMM writes, or `last`, which KVM does.
    fn end(&self, which: usize) -> &AtomicU32 {
        // SAFETY: the first two words of a page.
        let end = unsafe { self.page.add(which) };
        // SAFETY: as above; it is mapped while this lives.
        unsafe { end.as_ref() }
    }

    fn word(&self, entry: u32, word: usize) -> u64 {
        // SAFETY: in the page, as `entry` is below `entries()`, and aligned.
        let at = unsafe { self.page.cast::<AtomicU64>().add(1 + entry as usize * WORDS + word) };
        // SAFETY: as above.
        unsafe { at.as_ref() }.load(Ordering::Relaxed)
    }

    /// Hands out the writes that are there, in their order; the ring is rid of each
    /// before. As many as it holds at most: a guest that goes on writing does not
    /// keep the VMM here.
    pub fn drain(&mut self, mut each: impl FnMut(ZoneWrite)) {
        for _ in 0..self.entries() {
            let Some(write) = self.take() else { return };
            each(write);
        }
    }

    fn take(&mut self) -> Option<ZoneWrite> {
        let first = self.end(0).load(Ordering::Relaxed);
        // KVM has written the entry before it wrote this.
        let last = self.end(1).load(Ordering::Acquire);
        if first == last || first >= self.entries() {
            return None;
        }
        let [addr, size, data] = [0, 1, 2].map(|word| self.word(first, word).to_ne_bytes());
        let half =
            |at: usize| u32::from_ne_bytes([size[at], size[at + 1], size[at + 2], size[at + 3]]);
        let (len, pio) = (half(0).min(8), half(4));
        let mut value = [0; 8];
        value[..len as usize].copy_from_slice(&data[..len as usize]);
        // KVM writes to it again after this.
        self.end(0).store((first + 1) % self.entries(), Ordering::Release);
        Some(ZoneWrite {
            bus: if pio == 0 { Bus::Mmio } else { Bus::Pio },
            addr: u64::from_ne_bytes(addr),
            len,
            value: u64::from_le_bytes(value),
        })
    }
}

impl Drop for CoalescedRing {
    fn drop(&mut self) {
        // SAFETY: this one's own mapping, which nobody uses after this.
        unsafe { libc::munmap(self.page.as_ptr().cast(), self.len) };
    }
}

impl fmt::Debug for CoalescedRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, last] = [0, 1].map(|which| self.end(which).load(Ordering::Relaxed));
        f.debug_struct("CoalescedRing").field("first", &first).field("last", &last).finish()
    }
}
