//! A VMM with one flash chip: mapped read-only in array mode, not mapped in
//! command mode. It believes in its slots, and answers exits as any VMM.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd as _, RawFd};

use kvm_bindings::KVM_MEM_READONLY;
use kvm_ioctls::{Kvm, VmFd};
use kvm_memslots_kit::guest::{Access, Outcome, Prober};
use kvm_memslots_kit::host::{HostMemory, Pages, SMALL_PAGE};

use crate::common;
use crate::vmm::Run;

pub(crate) const SLOT: u32 = 1;
pub(crate) const SIZE: u64 = 16 * SMALL_PAGE;
pub(crate) const GPA: u64 = 0x4000_0000;

/// The VMM.
pub(crate) struct Flash {
    prober: Prober,
    pub(crate) vm: VmFd,
    memory: HostMemory,
    flags: u32,
    written: u64,
}

impl Flash {
    /// Read-only.
    pub(crate) fn new(run: &Run) -> Option<Self> {
        Self::with_flags(run, KVM_MEM_READONLY)
    }

    pub(crate) fn with_flags(run: &Run, flags: u32) -> Option<Self> {
        let vm = common::vm_or_skip(run.test)?;
        let prober = common::guest_or_skip(run.test, Prober::new(&vm, 0))?;
        let memory = HostMemory::reserve(SIZE, Pages::Small).unwrap();
        for at in (0..SIZE).step_by(8) {
            memory.write(at, at);
        }
        let flash = Self { prober, vm, memory, flags, written: 0 };
        flash.map();
        Some(flash)
    }

    /// Array mode.
    pub(crate) fn map(&self) {
        common::set_slot(&self.vm, SLOT, GPA, SIZE, &self.memory, self.flags);
    }

    /// Command mode.
    pub(crate) fn unmap(&self) {
        common::set_slot(&self.vm, SLOT, GPA, 0, &self.memory, 0);
    }

    /// With other flags.
    pub(crate) fn remap(&mut self, flags: u32) {
        common::set_slot(&self.vm, SLOT, GPA, SIZE, &self.memory, flags);
    }

    /// Goes to command mode, programs a word, and back to array mode, so often.
    /// In one of ten cycles the guest then reads a lot, in three a little.
    pub(crate) fn cycle(&mut self, times: u64) {
        for cycle in 0..times {
            self.unmap();
            self.command(cycle);
            self.map();
            match cycle % 10 {
                3 => self.array(cycle, 40),
                4..=6 => self.array(cycle, 2),
                _ => {}
            }
        }
    }

    /// The same, and the guest does nothing.
    pub(crate) fn cycle_quietly(&mut self, times: u64) {
        for _ in 0..times {
            self.unmap();
            self.map();
        }
    }

    /// Writes to the array, as the VMM does.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_bytes(at, bytes);
    }

    /// All accesses reach the device.
    fn command(&mut self, cycle: u64) {
        let at = cycle * 8 % SIZE;
        let accesses = [
            Access::Write(GPA + at, 0x40),
            Access::Read(GPA + at),
            Access::Read(GPA + SIZE - 8),
            Access::Read(GPA),
        ];
        assert_eq!(self.prober.probe(&accesses).unwrap(), [Outcome::Mmio; 4]);
        self.written += 1;
        self.memory.write(at, self.written << 32 | at);
    }

    /// Reads reach the array, writes the device, unless the array is writable.
    fn array(&mut self, cycle: u64, reads: u64) {
        let first = cycle.saturating_sub(reads / 2);
        let places: Vec<u64> = (first..first + reads).map(|word| word * 8 % SIZE).collect();
        let mut accesses: Vec<Access> = places.iter().map(|at| Access::Read(GPA + at)).collect();
        let mut expected: Vec<Outcome> =
            places.iter().map(|at| Outcome::Value(self.memory.read(*at))).collect();
        accesses.push(Access::Write(GPA + SIZE - 16, cycle));
        accesses.push(Access::Read(GPA + SIZE - 16));
        if self.flags & KVM_MEM_READONLY == 0 {
            expected.extend([Outcome::Written, Outcome::Value(cycle)]);
        } else {
            expected.extend([Outcome::Mmio, Outcome::Value(SIZE - 16)]);
        }
        assert_eq!(self.prober.probe(&accesses).unwrap(), expected, "cycle {cycle}");
    }

    /// The VM by another descriptor, of `dup`; the old one is closed.
    pub(crate) fn change_descriptor(&mut self) {
        // SAFETY: a new descriptor for an open one.
        let other = unsafe { libc::dup(self.vm.as_raw_fd()) };
        // SAFETY: just made.
        self.vm = unsafe { vm_fd(other) };
    }

    /// The VM by another descriptor, made past the C library.
    pub(crate) fn by_unknown_descriptor(self) -> ManuallyDrop<Self> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: a new descriptor for an open one.
        let other = unsafe { libc::syscall(libc::SYS_dup, this.vm.as_raw_fd()) };
        // SAFETY: just made; the old one stays open, as nothing is dropped.
        std::mem::forget(std::mem::replace(&mut this.vm, unsafe { vm_fd(other as RawFd) }));
        this
    }
}

/// # Safety
/// `fd` is open, a VM's, and nobody else's.
unsafe fn vm_fd(fd: RawFd) -> VmFd {
    // SAFETY: the caller's.
    unsafe { Kvm::new().unwrap().create_vmfd_from_rawfd(fd) }.unwrap()
}
