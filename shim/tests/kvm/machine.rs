//! A VM, its memory, and somebody who changes slots behind the library's back.

use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use kvm_ioctls::VmFd;
use kvm_memslots_shim::memory::{MemoryCalls, Op};
use kvm_memslots_shim::uapi::kvm_userspace_memory_region;
use kvm_memslots_shim::{Errno, Kind, Kvm, KvmOptions, Mapping, Range, Slot};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

pub(crate) const PAGE: u64 = 4096;

/// Host memory, untouched.
#[derive(Debug)]
pub(crate) struct Ram {
    base: NonNull<libc::c_void>,
    size: usize,
}

impl Ram {
    pub(crate) fn new(pages: u64) -> Self {
        let size = (pages * PAGE) as usize;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping, which takes no other's place.
        let base = unsafe { mmap_anonymous(None, NonZeroUsize::new(size).unwrap(), access, flags) };
        Self { base: base.unwrap(), size }
    }

    /// Writes `words` to its start.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn fill(&self, words: &[u32]) {
        assert!(size_of_val(words) <= self.size);
        // SAFETY: that much is this mapping's own, and no guest runs yet.
        unsafe {
            self.base
                .cast::<u32>()
                .copy_from_nonoverlapping(NonNull::from(words).cast(), words.len())
        };
    }

    /// This memory as a slot, from its start.
    pub(crate) fn slot(&self, id: u16, gpa: u64, pages: u64) -> Slot {
        assert!(pages * PAGE <= self.size as u64);
        let range = Range::new(gpa, pages * PAGE).unwrap();
        let hva = self.base.addr().get() as u64;
        Slot { id, mapping: Mapping::new(range, hva, Kind::Ram).unwrap() }
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's; the VM is dropped before.
        unsafe { munmap(self.base, self.size) }.unwrap();
    }
}

/// Fields drop in this order: the VM before its memory.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) kvm: Kvm,
    pub(crate) vm: VmFd,
    pub(crate) ram: Ram,
}

impl Machine {
    /// A VM without slots, or `None` after it was said aloud that `test` is
    /// skipped.
    pub(crate) fn new(test: &str, pages: u64) -> Option<Self> {
        let vm = match kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm()) {
            Ok(vm) => vm,
            Err(error) => {
                eprintln!("SKIPPED {test}: no VM on /dev/kvm: {error}");
                return None;
            }
        };
        let kvm = Kvm::open(borrowed(&vm), KvmOptions { scratch_vm: true }).unwrap();
        Some(Self { kvm, vm, ram: Ram::new(pages) })
    }

    pub(crate) fn change(&self, op: &Op) -> Result<(), Errno> {
        // SAFETY: tests give the memory of `ram`, which outlives the VM, and
        // which no reference is made to.
        unsafe { self.kvm.change(0, op) }
    }

    /// Reads a dirty log into the first words of `log`.
    pub(crate) fn log(&self, slot: &Slot, log: &mut [u64]) -> Result<(), Errno> {
        self.kvm.dirty_log(0, slot, &mut |bits| log[..bits.len()].copy_from_slice(bits))
    }

    pub(crate) fn create(&self, slot: &Slot) -> Result<(), Errno> {
        self.change(&Op::Create(*slot))
    }

    pub(crate) fn delete(&self, id: u16) -> Result<(), Errno> {
        self.change(&self.deletion(id))
    }

    /// A delete says which slot, and nothing else that counts.
    pub(crate) fn deletion(&self, id: u16) -> Op {
        Op::Delete(self.ram.slot(id, 0, 1))
    }

    /// Changes a slot as somebody else who has the VM fd.
    pub(crate) fn behind_the_back(&self, op: &Op) {
        let region = op.to_kvm(0);
        let region = kvm_userspace_memory_region {
            slot: region.slot,
            flags: region.flags,
            guest_phys_addr: region.guest_phys_addr,
            memory_size: region.memory_size,
            userspace_addr: region.userspace_addr,
        };
        // SAFETY: as in `change`.
        unsafe { self.vm.set_user_memory_region(region) }.unwrap();
    }

    /// Whether exactly these slots are there: each can be deleted and, as
    /// nothing else is in its way, created again.
    pub(crate) fn assert_live(&self, slots: &[Slot]) {
        for slot in slots {
            // What is there already is no change; all else is refused.
            assert_eq!(self.create(slot), Ok(()), "{slot} is not there");
            assert_eq!(self.delete(slot.id), Ok(()));
        }
        let everything = Slot { id: 1000, ..self.ram.slot(0, 0, self.ram.size as u64 / PAGE) };
        assert_eq!(self.create(&everything), Ok(()), "there is another slot");
        assert_eq!(self.delete(1000), Ok(()));
        for slot in slots {
            assert_eq!(self.create(slot), Ok(()));
        }
    }
}

pub(crate) fn borrowed(fd: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as its owner is borrowed.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}
