//! Memory for regions, and VMs that defer.

use std::ptr::NonNull;
use std::sync::Arc;

use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::deferred::{Deferral, Policy};
use kvm_memslots::{
    Access, Backing, Changes, HolePolicy, HostMemory, Limits, RegionId, RegionSpec, Report, Vm, at,
};

pub(crate) const PAGE: u64 = 4096;

/// Anonymous memory, unmapped when dropped: whoever touches it then, dies.
pub(crate) struct Memory {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is bound to no thread, and accessed through methods that
// copy volatile bytes.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn new(pages: u64) -> Self {
        let len = (pages * PAGE) as usize;
        let (access, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, which takes no other's place.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED);
        base.expose_provenance();
        Self { base: NonNull::new(base.cast()).unwrap(), len }
    }

    pub(crate) fn hva(&self) -> u64 {
        self.base.as_ptr().addr() as u64
    }

    pub(crate) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        assert!(at as usize + len <= self.len);
        let from = self.base.as_ptr().wrapping_add(at as usize);
        // SAFETY: within the mapping.
        (0..len).map(|n| unsafe { from.wrapping_add(n).read_volatile() }).collect()
    }

    pub(crate) fn write(&self, at: u64, data: &[u8]) {
        assert!(at as usize + data.len() <= self.len);
        for (n, byte) in data.iter().enumerate() {
            // SAFETY: within the mapping.
            unsafe { self.base.as_ptr().wrapping_add(at as usize + n).write_volatile(*byte) };
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

// SAFETY: mapped until dropped, and accessed as volatile bytes.
unsafe impl HostMemory for Memory {
    fn range(&self) -> (u64, u64) {
        (self.hva(), self.len as u64)
    }
}

/// `size` bytes at `hva`, which never fault.
pub(crate) fn memory(hva: u64, size: u64) -> Backing {
    // SAFETY: the tests keep their memory for longer than it is mapped, and
    // access it as volatile bytes.
    let memory = unsafe { Backing::borrowed(hva, size, Access::ReadWrite) };
    // SAFETY: the same.
    unsafe { memory.never_faults() }
}

pub(crate) fn ram(gpa: u64, size: u64, hva: u64) -> RegionSpec {
    RegionSpec::ram(at(gpa, size), memory(hva, size))
}

pub(crate) fn rom(gpa: u64, size: u64, hva: u64) -> RegionSpec {
    RegionSpec::rom(at(gpa, size), memory(hva, size))
}

pub(crate) fn device(gpa: u64, size: u64, hva: u64) -> RegionSpec {
    RegionSpec::device(at(gpa, size), memory(hva, size))
}

pub(crate) fn open_with(deferral: Deferral, limits: Limits) -> (Vm, MemoryModel) {
    let model = MemoryModel::new(limits);
    let events = Arc::new(EventModel::new(Irqchip::Split));
    let builder = Vm::builder().holes(HolePolicy::NoVcpuRuns).deferral(deferral);
    (builder.open_on(Arc::new(model.clone()), events).unwrap(), model)
}

/// One that promotes after `exits` exits.
pub(crate) fn open(exits: u64) -> (Vm, MemoryModel) {
    open_with(Deferral::default().policy(Policy::Fixed { exits }), Limits::x86())
}

pub(crate) fn map_now(vm: &Vm, spec: RegionSpec) -> RegionId {
    let mut c = Changes::new();
    let id = c.map(spec);
    vm.apply(c).unwrap();
    id
}

pub(crate) fn unmap_now(vm: &Vm, id: RegionId) -> Report {
    let mut c = Changes::new();
    c.unmap(id);
    vm.apply(c).unwrap()
}
