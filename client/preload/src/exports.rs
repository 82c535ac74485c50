//! What the dynamic linker finds here before it finds the C library's.
//!
//! Seven functions. Of these the callers of `mmap`, `munmap`, `mremap` and `syscall` may be
//! anywhere: they take no lock, allocate nothing and read nothing here but numbers.
//!
//! `ioctl`, `mremap`, `prctl` and `syscall` are variadic in C. On x86-64 and arm64 Linux a
//! variadic function gets its arguments as any other, so one that was not
//! passed is only a register, or a word of the stack, with something in it,
//! which is passed on.

// Nobody calls them from Rust.
#![allow(clippy::must_use_candidate)]

use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::ptr;

use crate::call::Call;
use crate::{abi, calls, end, next, root, seccomp, settings};

/// The calls of KVM's are looked at, all others passed on.
///
/// # Safety
/// As that of the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    // What the C library takes is an `unsigned long`; callers of old pass an int.
    let known = request & 0xffff_ffff;
    if !abi::is_kvm(known) {
        // SAFETY: the caller's.
        return unsafe { next::ioctl(fd, request, arg) };
    }
    Call { fd, request: known, arg }.make()
}

/// Where a vCPU's page is mapped is noted, and what was at that place before is not.
///
/// # Safety
/// As that of the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mmap(
    at: *mut c_void,
    bytes: usize,
    access: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    let fixed = flags & libc::MAP_FIXED != 0;
    if fixed {
        calls::unmapped(at, bytes);
    }
    // SAFETY: the caller's.
    let at = unsafe { next::mmap(at, bytes, access, flags, fd, offset) };
    if ptr::eq(at, libc::MAP_FAILED) {
        return at;
    }
    // Where the kernel has chosen, whatever was there went unseen.
    if !fixed {
        calls::unmapped(at, bytes);
    }
    // What a guest reads is written there, and KVM does not see it in a private one.
    let both = libc::PROT_READ | libc::PROT_WRITE;
    if fd >= 0 && offset == 0 && flags & libc::MAP_SHARED != 0 && access & both == both {
        calls::mapped(fd, at, bytes);
    }
    at
}

/// The same.
///
/// # Safety
/// As that of the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mmap64(
    at: *mut c_void,
    bytes: usize,
    access: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: the caller's; the two are one.
    unsafe { mmap(at, bytes, access, flags, fd, offset) }
}

/// A vCPU's page that is no longer there is looked for elsewhere.
///
/// # Safety
/// As that of the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn munmap(at: *mut c_void, bytes: usize) -> c_int {
    // Before, as others may be given the place at once. Whose page is nowhere is a vCPU
    // that nothing is served for, so a call that fails does no harm.
    calls::unmapped(at, bytes);
    // SAFETY: the caller's.
    unsafe { next::munmap(at, bytes) }
}

/// The same, or it is noted where it is moved to.
///
/// # Safety
/// As that of the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mremap(
    at: *mut c_void,
    bytes: usize,
    new_bytes: usize,
    flags: c_int,
    to: *mut c_void,
) -> *mut c_void {
    if flags & libc::MREMAP_FIXED != 0 {
        calls::unmapped(to, new_bytes);
    }
    let vcpu = calls::unmapped(at, bytes);
    // SAFETY: the caller's.
    let now = unsafe { next::mremap(at, bytes, new_bytes, flags, to) };
    if let Some(vcpu) = vcpu.filter(|_| new_bytes >= abi::RUN_BYTES) {
        let failed = ptr::eq(now, libc::MAP_FAILED);
        vcpu.mapped_at(if failed { at } else { now } as u64);
    }
    now
}

/// A filter of system calls ends what is done here.
///
/// # Safety
/// As that of the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn prctl(
    option: c_int,
    a: c_ulong,
    b: c_ulong,
    c: c_ulong,
    d: c_ulong,
) -> c_int {
    if seccomp::is_prctl(option) {
        seccomp::install();
    }
    // SAFETY: the caller's.
    unsafe { next::prctl(option, [a, b, c, d]) }
}

/// The same by number, and so the other three.
///
/// # Safety
/// As that of the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    let pointer = ptr::with_exposed_provenance_mut::<c_void>;
    if number == libc::SYS_ioctl {
        // SAFETY: the caller's.
        return unsafe { ioctl(a as c_int, b as c_ulong, pointer(c)) }.into();
    }
    if number == libc::SYS_mmap {
        // SAFETY: the caller's.
        let at = unsafe { mmap(pointer(a), b, c as c_int, d as c_int, e as c_int, f as i64) };
        return at as c_long;
    }
    if number == libc::SYS_munmap {
        // SAFETY: the caller's.
        return unsafe { munmap(pointer(a), b) }.into();
    }
    if number == libc::SYS_mremap {
        // SAFETY: the caller's.
        return unsafe { mremap(pointer(a), b, c, d as c_int, pointer(e)) } as c_long;
    }
    if seccomp::is_call(number, a) {
        seccomp::install();
    }
    // SAFETY: the caller's.
    unsafe { next::syscall(number, [a, b, c, d, e, f]) }
}

/// Before `main`, and before there is a second thread.
#[used]
#[cfg_attr(not(test), unsafe(link_section = ".init_array"))]
static AT_START: extern "C" fn() = {
    extern "C" fn at_start() {
        next::find();
        settings::read_environment();
        end::begin();
    }
    at_start
};

/// `exit` and a return from `main` come by here, after all that the program has
/// registered for its end.
#[used]
#[cfg_attr(not(test), unsafe(link_section = ".fini_array"))]
static AT_EXIT: extern "C" fn() = {
    extern "C" fn at_exit() {
        // Written when the filter came, and not allowed since.
        if !root::is_off() {
            end::write();
        }
    }
    at_exit
};
