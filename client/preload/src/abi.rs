//! The calls of KVM that are looked at, and the page that a vCPU shares.

use std::ffi::c_ulong;

use kvm_bindings::{
    KVM_EXIT_ARM_NISV, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_MMIO, KVM_INTERNAL_ERROR_EMULATION, KVMIO,
    kvm_clear_dirty_log, kvm_dirty_log, kvm_enable_cap, kvm_run, kvm_signal_mask,
    kvm_userspace_memory_region, kvm_userspace_memory_region2,
};
use kvm_memslots_uapi::KVM_SET_USER_MEMORY_REGIONS;

use crate::decide::access::Mmio;
use crate::memory;

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
pub(crate) const GET_DIRTY_LOG: c_ulong = iow::<kvm_dirty_log>(0x42);
pub(crate) const CLEAR_DIRTY_LOG: c_ulong = iow::<kvm_clear_dirty_log>(0xc0) | 2 << 30;
pub(crate) const SET_SIGNAL_MASK: c_ulong = iow::<kvm_signal_mask>(0x8b);
pub(crate) const ENABLE_CAP: c_ulong = iow::<kvm_enable_cap>(0xa3);

/// No call of KVM's. For another memory than a file was made for KVM answers `EIO`, else a
/// vCPU `EINVAL` (`kvm_vcpu_ioctl()`): before it waits for one that runs.
pub(crate) const NO_CALL: c_ulong = 0xad << 8 | 0xff;

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
        0x43 => "KVM_SET_MEMORY_ALIAS",
        0xb4 => "KVM_ARM_MTE_COPY_TAGS",
        0xba => "KVM_MEMORY_ENCRYPT_OP",
        0xbb => "KVM_MEMORY_ENCRYPT_REG_REGION",
        0xd2 => "KVM_SET_MEMORY_ATTRIBUTES",
        0xd5 => "KVM_PRE_FAULT_MEMORY",
        _ => return None,
    })
}

/// Why a vCPU came out of the guest, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Mmio(Mmio),
    /// An access that KVM can't describe to userspace.
    Undecodable,
    Other,
}

/// Why `KVM_RUN` came back with `result` (0 or an errno); `pages` are the places where
/// the VMM has mapped the `struct kvm_run` of the vCPU.
///
/// To be called by the thread that ran the vCPU, before it runs it again.
pub(crate) fn exit(mut pages: impl Iterator<Item = u64>, result: i32) -> Exit {
    if result == libc::ENOSYS && cfg!(target_arch = "aarch64") {
        return Exit::Undecodable;
    }
    if result != 0 {
        return Exit::Other;
    }
    // SAFETY: any bytes are one: numbers, in unions too.
    let load = |page| unsafe { memory::load::<Start>(page) }.ok();
    let Some(run) = pages.find_map(load) else { return Exit::Other };
    match run.exit_reason {
        KVM_EXIT_MMIO => Exit::Mmio(mmio(&run)),
        KVM_EXIT_ARM_NISV if cfg!(target_arch = "aarch64") => Exit::Undecodable,
        KVM_EXIT_INTERNAL_ERROR
            if cfg!(target_arch = "x86_64")
                && run.gpa_or_suberror as u32 == KVM_INTERNAL_ERROR_EMULATION =>
        {
            Exit::Undecodable
        }
        _ => Exit::Other,
    }
}

fn mmio(run: &Start) -> Mmio {
    // x86: in system management mode, which has an address space of its own.
    let space = if cfg!(target_arch = "x86_64") { u32::from(run.flags) & 1 } else { 0 };
    let bytes = (run.len as usize).min(run.data.len());
    Mmio { space, gpa: run.gpa_or_suberror, bytes, write: run.is_write != 0 }
}

/// The start of a `struct kvm_run`, with what it has in its union for MMIO.
#[repr(C)]
struct Start {
    before: [u8; 8],
    exit_reason: u32,
    ready: [u8; 2],
    flags: u16,
    state: [u64; 2],
    gpa_or_suberror: u64,
    data: [u8; 8],
    len: u32,
    is_write: u8,
}

const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(Start, exit_reason) == offset_of!(kvm_run, exit_reason));
    assert!(offset_of!(Start, flags) == offset_of!(kvm_run, flags));
    assert!(offset_of!(Start, gpa_or_suberror) == offset_of!(kvm_run, __bindgen_anon_1));
};

/// Where the bytes of an MMIO exit are: what a write wrote, or what a read is to
/// get once the vCPU runs again.
pub(crate) const fn data(page: u64) -> u64 {
    page.wrapping_add(std::mem::offset_of!(Start, data) as u64)
}

/// Bytes that the VMM has to map.
pub(crate) const RUN_BYTES: usize = size_of::<kvm_run>();

/// `struct kvm_signal_mask` with the kernel's set in it.
#[repr(C)]
pub(crate) struct SignalMask {
    len: u32,
    set: [u32; 2],
}

impl SignalMask {
    pub(crate) const fn new(mask: u64) -> Self {
        Self { len: 8, set: [mask as u32, (mask >> 32) as u32] }
    }
}

/// The mask that `KVM_SET_SIGNAL_MASK` has taken from `arg`, if it is one.
pub(crate) fn signal_mask(arg: u64) -> Option<u64> {
    if arg == 0 {
        return None;
    }
    // SAFETY: any bytes are one: numbers.
    let mask = unsafe { memory::load::<SignalMask>(arg) }.ok()?;
    Some(u64::from(mask.set[0]) | u64::from(mask.set[1]) << 32)
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
        assert!(is_kvm(SET_REGION2) && !is_kvm(0x5401) && !is_kvm(NO_CALL));
        assert_eq!(not_followed(0xc040_aef9), Some("KVM_SET_USER_MEMORY_REGIONS"));
        assert_eq!(not_followed(0xc008_aeba), Some("KVM_MEMORY_ENCRYPT_OP"));
        assert_eq!((GET_DIRTY_LOG, CLEAR_DIRTY_LOG), (0x4010_ae42, 0xc018_aec0));
        assert_eq!(SET_SIGNAL_MASK, 0x4004_ae8b);
        assert_eq!(not_followed(GET_DIRTY_LOG), None);
        assert_eq!(not_followed(SET_REGION), None);
    }
}
