//! What the integration tests share.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::missing_panics_doc)]

pub mod windowed;

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use kvm_memslots_kit::guest::GuestError;
use kvm_memslots_kit::host::HostMemory;

/// Has other threads stop, also when a test fails: else its scope waits for ever.
pub struct Stops<'a>(pub &'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Says aloud that `test` is skipped, in the form that `cargo xtask test`
/// counts. Written directly: the test harness would swallow what `eprintln!`
/// says.
pub fn skip(test: &str, reason: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
}

/// A new VM, or a line on stderr that says why there is none.
pub fn vm_or_skip(test: &str) -> Option<VmFd> {
    match Kvm::new().and_then(|kvm| kvm.create_vm()) {
        Ok(vm) => Some(vm),
        Err(error) => {
            skip(test, format_args!("no VM from /dev/kvm: {error}"));
            None
        }
    }
}

/// The guest, or a line on stderr where this architecture has none.
pub fn guest_or_skip<T>(test: &str, guest: Result<T, GuestError>) -> Option<T> {
    match guest {
        Err(error @ GuestError::Unsupported) => {
            skip(test, error);
            None
        }
        guest => Some(guest.unwrap()),
    }
}

/// One slot, straight through `KVM_SET_USER_MEMORY_REGION`; size 0 deletes it.
pub fn set_slot(vm: &VmFd, slot: u32, gpa: u64, size: u64, memory: &HostMemory, flags: u32) {
    let region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: memory.hva(),
    };
    // SAFETY: the tests keep the memory for as long as the VM has a vCPU that
    // runs, and access it atomically only.
    unsafe { vm.set_user_memory_region(region) }.unwrap();
}

/// Small, repeatable random numbers (xorshift).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}
