//! What the dynamic linker finds here before it finds the C library's.
//!
//! `ioctl` and `fcntl` are variadic in C. On x86-64 and arm64 Linux a variadic
//! function gets its arguments as any other, so a third one that was not passed
//! is only a register with something in it, which is passed on.

// Nobody calls them from Rust.
#![allow(clippy::must_use_candidate)]

use std::ffi::{c_int, c_long, c_uint, c_ulong, c_void};

use crate::calls::Call;
use crate::{abi, next, process, table};

/// The calls of KVM's are looked at, all others passed on.
///
/// # Safety
/// As that of the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    // What the C library takes is an `unsigned long`; callers of old pass an int.
    let known = request & 0xffff_ffff;
    if !abi::is_kvm(known) || process::is_child() {
        // SAFETY: the caller's.
        return unsafe { next::ioctl(fd, request, arg) };
    }
    Call { fd, request: known, arg }.make()
}

/// A VM or vCPU that is closed is forgotten.
///
/// # Safety
/// As that of the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    // Before: afterwards another thread may get the same one.
    table::close(fd..=fd);
    // SAFETY: the caller's.
    unsafe { next::close(fd) }
}

/// The same.
///
/// # Safety
/// As that of the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    const CLOEXEC: c_int = 1 << 2;
    if flags & CLOEXEC == 0 {
        let last = c_int::try_from(last).unwrap_or(c_int::MAX);
        table::close(c_int::try_from(first).unwrap_or(c_int::MAX)..=last);
    }
    // SAFETY: the caller's.
    unsafe { next::close_range(first, last, flags) }
}

/// A second descriptor of a VM is known, too.
///
/// # Safety
/// As that of the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn dup(fd: c_int) -> c_int {
    // SAFETY: the caller's.
    let copy = unsafe { next::dup(fd) };
    table::copy(fd, copy);
    copy
}

/// The same.
///
/// # Safety
/// As that of the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn dup2(fd: c_int, to: c_int) -> c_int {
    // SAFETY: the caller's.
    let copy = unsafe { next::dup2(fd, to) };
    table::copy(fd, copy);
    copy
}

/// The same.
///
/// # Safety
/// As that of the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn dup3(fd: c_int, to: c_int, flags: c_int) -> c_int {
    // SAFETY: the caller's.
    let copy = unsafe { next::dup3(fd, to, flags) };
    table::copy(fd, copy);
    copy
}

/// The same.
///
/// # Safety
/// As that of the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn fcntl(fd: c_int, command: c_int, arg: c_long) -> c_int {
    // SAFETY: the caller's.
    let result = unsafe { next::fcntl(fd, command, arg) };
    duplicated(fd, command, result);
    result
}

/// The same.
///
/// # Safety
/// As that of the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn fcntl64(fd: c_int, command: c_int, arg: c_long) -> c_int {
    // SAFETY: the caller's.
    let result = unsafe { next::fcntl64(fd, command, arg) };
    duplicated(fd, command, result);
    result
}

fn duplicated(fd: c_int, command: c_int, result: c_int) {
    if matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) {
        table::copy(fd, result);
    }
}

/// Ends the process without what `exit` does; the statistics are written.
///
/// # Safety
/// As that of the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn _exit(status: c_int) -> ! {
    end(status)
}

/// The same.
///
/// # Safety
/// As that of the C library.
// As C calls it.
#[allow(non_snake_case)]
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn _Exit(status: c_int) -> ! {
    end(status)
}

fn end(status: c_int) -> ! {
    process::end();
    loop {
        // SAFETY: does not return.
        unsafe { libc::syscall(libc::SYS_exit_group, status) };
    }
}

/// `exit` and a return from `main` come by here, after all that the program has
/// registered for its end.
#[used]
#[cfg_attr(not(test), unsafe(link_section = ".fini_array"))]
static AT_EXIT: extern "C" fn() = {
    extern "C" fn at_exit() {
        process::end();
    }
    at_exit
};
