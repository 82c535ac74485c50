//! The calls of KVM that are looked at, and the page that a vCPU shares.

use std::ffi::c_ulong;
use std::ptr::NonNull;

use kvm_bindings::{
    KVM_EXIT_ARM_NISV, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_MMIO, KVM_INTERNAL_ERROR_EMULATION, KVMIO,
    kvm_enable_cap, kvm_run, kvm_userspace_memory_region, kvm_userspace_memory_region2,
};
use kvm_memslots_uapi::KVM_SET_USER_MEMORY_REGIONS;

/// `_IO(KVMIO, nr)`.
const fn io(nr: c_ulong) -> c_ulong {
    (KVMIO as c_ulong) << 8 | nr
}

/// `_IOW(KVMIO, nr, T)`.
const fn iow<T>(nr: c_ulong) -> c_ulong {
    1 << 30 | (size_of::<T>() as c_ulong) << 16 | io(nr)
}

pub(crate) const CREATE_VM: c_ulong = io(0x01);
pub(crate) const CHECK_EXTENSION: c_ulong = io(0x03);
pub(crate) const CREATE_VCPU: c_ulong = io(0x41);
pub(crate) const RUN: c_ulong = io(0x80);
pub(crate) const SET_REGION: c_ulong = iow::<kvm_userspace_memory_region>(0x46);
pub(crate) const SET_REGION2: c_ulong = iow::<kvm_userspace_memory_region2>(0x49);
pub(crate) const ENABLE_CAP: c_ulong = iow::<kvm_enable_cap>(0xa3);

/// Whether `request` is one of KVM's.
pub(crate) const fn is_kvm(request: c_ulong) -> bool {
    request >> 8 & 0xff == KVMIO as c_ulong
}

/// A call of a VM, or of a vCPU, that says what its slots are or reads them,
/// and that is not followed here; its name.
pub(crate) const fn not_followed(request: c_ulong) -> Option<&'static str> {
    const BATCH: c_ulong = KVM_SET_USER_MEMORY_REGIONS & 0xff;
    // By number, whatever the size of the argument.
    Some(match request & 0xff {
        BATCH => "KVM_SET_USER_MEMORY_REGIONS",
        0x40 => "KVM_SET_MEMORY_REGION",
        0x42 => "KVM_GET_DIRTY_LOG",
        0x43 => "KVM_SET_MEMORY_ALIAS",
        0xb4 => "KVM_ARM_MTE_COPY_TAGS",
        0xba => "KVM_MEMORY_ENCRYPT_OP",
        0xbb => "KVM_MEMORY_ENCRYPT_REG_REGION",
        0xc0 => "KVM_CLEAR_DIRTY_LOG",
        0xc7 => "KVM_RESET_DIRTY_RINGS",
        0xd2 => "KVM_SET_MEMORY_ATTRIBUTES",
        0xd5 => "KVM_PRE_FAULT_MEMORY",
        _ => return None,
    })
}

/// Why a vCPU came out of the guest, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Mmio {
        /// The address space.
        space: u32,
        gpa: u64,
        bytes: usize,
        write: bool,
    },
    /// An access that KVM can't describe to userspace.
    Undecodable,
    Other,
}

/// The page that KVM shares with userspace for one vCPU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunPage(NonNull<kvm_run>);

// SAFETY: it is an address; who reads and writes there is said at the methods.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Bytes that have to be mapped.
    pub(crate) const BYTES: usize = size_of::<kvm_run>();

    /// # Safety
    /// `page` is the start of a mapping of a vCPU's file descriptor, of
    /// [`BYTES`](Self::BYTES) at least, which stays for as long as this or a
    /// copy of it is used.
    pub(crate) const unsafe fn new(page: NonNull<kvm_run>) -> Self {
        Self(page)
    }

    /// Why `KVM_RUN` came back with `result` (0 or an errno).
    ///
    /// To be called by the thread that ran the vCPU, before it runs it again.
    pub(crate) fn exit(self, result: i32) -> Exit {
        if result == libc::ENOSYS && cfg!(target_arch = "aarch64") {
            return Exit::Undecodable;
        }
        if result != 0 {
            return Exit::Other;
        }
        let run = self.0.as_ptr();
        // SAFETY: a place in the page.
        let reason = unsafe { &raw const (*run).exit_reason };
        // SAFETY: mapped, see `new`; KVM writes it only in `KVM_RUN`, which the
        // calling thread is not in.
        match unsafe { reason.read_volatile() } {
            KVM_EXIT_MMIO => self.mmio(),
            KVM_EXIT_ARM_NISV if cfg!(target_arch = "aarch64") => Exit::Undecodable,
            KVM_EXIT_INTERNAL_ERROR if cfg!(target_arch = "x86_64") => {
                // SAFETY: a place in the page.
                let error = unsafe { &raw const (*run).__bindgen_anon_1.internal.suberror };
                // SAFETY: as above; for this exit KVM fills in this member.
                let error = unsafe { error.read_volatile() };
                if error == KVM_INTERNAL_ERROR_EMULATION { Exit::Undecodable } else { Exit::Other }
            }
            _ => Exit::Other,
        }
    }

    fn mmio(self) -> Exit {
        let run = self.0.as_ptr();
        // SAFETY: a place in the page.
        let mmio = unsafe { &raw const (*run).__bindgen_anon_1.mmio };
        // SAFETY: as in `exit`; for this exit KVM fills in this member.
        let mmio = unsafe { mmio.read_volatile() };
        // SAFETY: a place in the page.
        let flags = unsafe { &raw const (*run).flags };
        // SAFETY: as in `exit`.
        let flags = unsafe { flags.read_volatile() };
        // x86: in system management mode, which has an address space of its own.
        let space = if cfg!(target_arch = "x86_64") { u32::from(flags) & 1 } else { 0 };
        let bytes = (mmio.len as usize).min(mmio.data.len());
        Exit::Mmio { space, gpa: mmio.phys_addr, bytes, write: mmio.is_write != 0 }
    }

    /// The bytes of an MMIO exit: what a write wrote, or what a read is to get
    /// once the vCPU runs again.
    pub(crate) fn data(self) -> *mut u8 {
        // SAFETY: the member lies inside the page.
        unsafe { (&raw mut (*self.0.as_ptr()).__bindgen_anon_1.mmio.data).cast() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `linux/kvm.h` has them.
    #[test]
    fn numbers() {
        assert_eq!(CREATE_VM, 0xae01);
        assert_eq!(RUN, 0xae80);
        assert_eq!(SET_REGION, 0x4020_ae46);
        assert_eq!(SET_REGION2, 0x40a0_ae49);
        assert_eq!(ENABLE_CAP, 0x4068_aea3);
        assert!(is_kvm(SET_REGION2) && !is_kvm(0x5401));
        assert_eq!(not_followed(0xc040_aef9), Some("KVM_SET_USER_MEMORY_REGIONS"));
        assert_eq!(not_followed(0x4010_ae42), Some("KVM_GET_DIRTY_LOG"));
        assert_eq!(not_followed(SET_REGION), None);
    }
}
