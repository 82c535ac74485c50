//! The functions that this library stands in front of.
//!
//! Each is the next one of its name, looked up before `main`: later that might
//! be in a signal handler, where the dynamic linker must not be asked. Before
//! that, and where there is none, the system call is made.

use std::ffi::{CStr, c_int, c_long, c_ulong, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::sys;

/// One of them.
struct Next(AtomicPtr<c_void>);

impl Next {
    const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    fn find(&self, name: &CStr) {
        // SAFETY: the name is a C string.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
        self.0.store(found, Ordering::Release);
    }

    fn get(&self) -> Option<*mut c_void> {
        let found = self.0.load(Ordering::Acquire);
        (!found.is_null()).then_some(found)
    }
}

static IOCTL: Next = Next::new();
static MMAP: Next = Next::new();
static PRCTL: Next = Next::new();
static SYSCALL: Next = Next::new();

/// Looks them up.
pub(crate) fn find() {
    IOCTL.find(c"ioctl");
    MMAP.find(c"mmap");
    PRCTL.find(c"prctl");
    SYSCALL.find(c"syscall");
}

/// As the C library says it.
fn answer(result: Result<usize, c_int>) -> c_long {
    result.map_or_else(
        |errno| {
            sys::set_errno(errno);
            -1
        },
        |result| result as c_long,
    )
}

/// As the C library does it: -1 and errno.
pub(crate) unsafe fn ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    type Function = unsafe extern "C" fn(c_int, c_ulong, ...) -> c_int;
    let Some(next) = IOCTL.get() else {
        // SAFETY: the caller vouches for the argument.
        return answer(unsafe { sys::ioctl(fd, request, arg) }.map(|result| result as usize))
            as c_int;
    };
    // SAFETY: the C library's `ioctl` is declared so.
    let next = unsafe { std::mem::transmute::<*mut c_void, Function>(next) };
    // SAFETY: the caller vouches for the argument.
    unsafe { next(fd, request, arg) }
}

/// The same.
pub(crate) unsafe fn mmap(
    at: *mut c_void,
    bytes: usize,
    access: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    type Function =
        unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, c_int, i64) -> *mut c_void;
    let Some(next) = MMAP.get() else {
        let args =
            [at as usize, bytes, access as usize, flags as usize, fd as usize, offset as usize];
        // SAFETY: the caller's.
        let result = answer(unsafe { sys::any(libc::SYS_mmap, args) });
        return ptr::with_exposed_provenance_mut(result as usize);
    };
    // SAFETY: the C library's `mmap` is declared so.
    let next = unsafe { std::mem::transmute::<*mut c_void, Function>(next) };
    // SAFETY: the caller vouches for the arguments.
    unsafe { next(at, bytes, access, flags, fd, offset) }
}

/// The same.
pub(crate) unsafe fn prctl(option: c_int, args: [c_ulong; 4]) -> c_int {
    type Function = unsafe extern "C" fn(c_int, ...) -> c_int;
    let [a, b, c, d] = args;
    let Some(next) = PRCTL.get() else {
        let args = [option as usize, a as usize, b as usize, c as usize, d as usize, 0];
        // SAFETY: the caller's.
        return answer(unsafe { sys::any(libc::SYS_prctl, args) }) as c_int;
    };
    // SAFETY: the C library's `prctl` is declared so.
    let next = unsafe { std::mem::transmute::<*mut c_void, Function>(next) };
    // SAFETY: the caller vouches for the arguments.
    unsafe { next(option, a, b, c, d) }
}

/// The same.
pub(crate) unsafe fn syscall(number: c_long, args: [usize; 6]) -> c_long {
    type Function = unsafe extern "C" fn(c_long, ...) -> c_long;
    let [a, b, c, d, e, f] = args;
    let Some(next) = SYSCALL.get() else {
        // SAFETY: the caller's.
        return answer(unsafe { sys::any(number, args) });
    };
    // SAFETY: the C library's `syscall` is declared so.
    let next = unsafe { std::mem::transmute::<*mut c_void, Function>(next) };
    // SAFETY: the caller vouches for the arguments.
    unsafe { next(number, a, b, c, d, e, f) }
}
