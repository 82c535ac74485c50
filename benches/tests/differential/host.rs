//! What of KVM's answers is the host's and not a rule: measured, so that the
//! test runs on any host.

use std::fmt;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use kvm_bindings::{
    kvm_create_guest_memfd, kvm_userspace_memory_region, kvm_userspace_memory_region2,
};
use kvm_ioctls::{Kvm, VmFd};
use kvm_memslots_kit::host::SMALL_PAGE;
use kvm_memslots_kit::raw::{OnKvm, RawCalls};
use kvm_memslots_shim::uapi::MemFlags;
use kvm_memslots_shim::{Errno, Limits};

pub const PAGE: u64 = SMALL_PAGE;

/// Limits of the host.
#[derive(Debug, Clone)]
pub struct Facts {
    pub limits: Limits,
    /// Bits of a guest physical address (`kvm_mmu_max_gfn()`).
    pub guest_physical_bits: u32,
    /// What a slot beyond them is refused with.
    pub beyond: Errno,
    /// What a range of a `guest_memfd` that a slot holds is refused with.
    pub bound: Errno,
    /// Where host addresses that a slot can have end (`access_ok()`).
    pub hva_end: u64,
}

impl Facts {
    pub fn measure() -> Self {
        let vm = Kvm::new().and_then(|kvm| kvm.create_vm()).unwrap();
        let guest_physical_bits =
            (32..=63).rev().find(|bits| set(&vm, (1 << bits) - PAGE, PAGE).is_ok()).unwrap();
        let beyond = set(&vm, 1 << guest_physical_bits, PAGE).unwrap_err();
        let limits = OnKvm::new(&vm).unwrap().limits();
        let bound = if limits.guest_memfd { bound(&vm) } else { Errno::EINVAL };
        Self { limits, guest_physical_bits, beyond, bound, hva_end: last_hva(&vm) + PAGE }
    }

    pub const fn gpa_end(&self) -> u64 {
        1 << self.guest_physical_bits
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limits, guest_physical_bits, beyond, bound, hva_end } = self;
        write!(
            f,
            "KVM here: {limits:?}, {guest_physical_bits} guest physical bits ({beyond:?} beyond), \
             {bound:?} for a guest_memfd range in use, host addresses up to {hva_end:#x}"
        )
    }
}

/// The last host page that a slot can have.
fn last_hva(vm: &VmFd) -> u64 {
    let (mut fine, mut refused) = (PAGE, 1 << 63);
    while refused - fine > PAGE {
        let middle = fine.midpoint(refused) / PAGE * PAGE;
        if set(vm, 0, middle).is_ok() { fine = middle } else { refused = middle }
    }
    fine
}

pub fn guest_memfd(vm: &VmFd, pages: u64) -> OwnedFd {
    let create = kvm_create_guest_memfd { size: pages * PAGE, ..Default::default() };
    let fd = vm.create_guest_memfd(create).unwrap();
    // SAFETY: KVM has just opened the descriptor, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Asks for the same page of a `guest_memfd` in two slots.
fn bound(vm: &VmFd) -> Errno {
    let memfd = guest_memfd(vm, 1);
    let kvm = OnKvm::new(vm).unwrap();
    let set = |slot, memory_size| {
        let region = kvm_userspace_memory_region2 {
            slot,
            flags: MemFlags::GUEST_MEMFD.bits(),
            guest_phys_addr: u64::from(slot) * PAGE,
            memory_size,
            userspace_addr: PAGE,
            guest_memfd: memfd.as_raw_fd().cast_unsigned(),
            ..Default::default()
        };
        // SAFETY: no vCPU runs while the slot is there.
        unsafe { kvm.set_region(&region) }
    };
    set(0, PAGE).unwrap();
    let refused = set(1, PAGE).unwrap_err();
    set(0, 0).unwrap();
    refused
}

/// Whether KVM takes a slot of one page, which is deleted again.
fn set(vm: &VmFd, gpa: u64, hva: u64) -> Result<(), Errno> {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: gpa,
        memory_size: PAGE,
        userspace_addr: hva,
    };
    // SAFETY: no vCPU runs while the slot is there.
    let set = unsafe { vm.set_user_memory_region(region) };
    set.map_err(|error| Errno::from_raw(error.errno()))?;
    let delete = kvm_userspace_memory_region { memory_size: 0, userspace_addr: 0, ..region };
    // SAFETY: a delete maps nothing.
    unsafe { vm.set_user_memory_region(delete) }.unwrap();
    Ok(())
}
