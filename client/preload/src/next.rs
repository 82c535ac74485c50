//! The functions that this library stands in front of.
//!
//! Each is the next one of its name, as the dynamic linker finds it; where there
//! is none, the system call that it makes.

use std::ffi::{CStr, c_int, c_long, c_uint, c_ulong, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// One of them, looked up once.
struct Next {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
}

impl Next {
    const fn new(name: &'static CStr) -> Self {
        Self { name, found: AtomicPtr::new(ptr::null_mut()) }
    }

    fn find(&self) -> Option<*mut c_void> {
        let mut found = self.found.load(Ordering::Relaxed);
        if found.is_null() {
            // SAFETY: the name is a C string.
            found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
            self.found.store(found, Ordering::Relaxed);
        }
        (!found.is_null()).then_some(found)
    }
}

/// As the C library does it: -1 and errno.
pub(crate) unsafe fn ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    static NEXT: Next = Next::new(c"ioctl");
    type Function = unsafe extern "C" fn(c_int, c_ulong, ...) -> c_int;
    match NEXT.find() {
        Some(found) => {
            // SAFETY: the C library's `ioctl` is declared so.
            let next = unsafe { std::mem::transmute::<*mut c_void, Function>(found) };
            // SAFETY: the caller vouches for the argument.
            unsafe { next(fd, request, arg) }
        }
        // SAFETY: as above.
        None => unsafe { libc::syscall(libc::SYS_ioctl, fd, request, arg) as c_int },
    }
}

macro_rules! next {
    ($name:ident, $symbol:literal, $number:expr, ($($arg:ident: $ty:ty),*)) => {
        pub(crate) unsafe fn $name($($arg: $ty),*) -> c_int {
            static NEXT: Next = Next::new($symbol);
            type Function = unsafe extern "C" fn($($ty),*) -> c_int;
            match NEXT.find() {
                Some(found) => {
                    // SAFETY: the C library declares its function so; of a
                    // variadic one, arguments are passed alike on x86-64 and
                    // arm64.
                    let next = unsafe { std::mem::transmute::<*mut c_void, Function>(found) };
                    // SAFETY: the caller vouches for the arguments.
                    unsafe { next($($arg),*) }
                }
                // SAFETY: as above.
                None => unsafe { libc::syscall($number $(, c_long::from($arg))*) as c_int },
            }
        }
    };
}

next!(close, c"close", libc::SYS_close, (fd: c_int));
next!(close_range, c"close_range", libc::SYS_close_range, (first: c_uint, last: c_uint, flags: c_int));
next!(dup, c"dup", libc::SYS_dup, (fd: c_int));
next!(dup3, c"dup3", libc::SYS_dup3, (fd: c_int, to: c_int, flags: c_int));
next!(fcntl, c"fcntl", libc::SYS_fcntl, (fd: c_int, command: c_int, arg: c_long));
next!(fcntl64, c"fcntl64", libc::SYS_fcntl, (fd: c_int, command: c_int, arg: c_long));

/// On arm64 there is no such system call.
pub(crate) unsafe fn dup2(fd: c_int, to: c_int) -> c_int {
    static NEXT: Next = Next::new(c"dup2");
    type Function = unsafe extern "C" fn(c_int, c_int) -> c_int;
    match NEXT.find() {
        Some(found) => {
            // SAFETY: the C library declares its function so.
            let next = unsafe { std::mem::transmute::<*mut c_void, Function>(found) };
            // SAFETY: the caller vouches for the arguments.
            unsafe { next(fd, to) }
        }
        None if fd == to => fd,
        // SAFETY: as above.
        None => unsafe { dup3(fd, to, 0) },
    }
}
