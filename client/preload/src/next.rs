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
struct Next {
    name: &'static CStr,
    /// The system call's; `syscall` gets it in front of its arguments.
    number: Option<c_long>,
    found: AtomicPtr<c_void>,
}

static IOCTL: Next = Next::new(c"ioctl", Some(libc::SYS_ioctl));
static MMAP: Next = Next::new(c"mmap", Some(libc::SYS_mmap));
static MUNMAP: Next = Next::new(c"munmap", Some(libc::SYS_munmap));
static MREMAP: Next = Next::new(c"mremap", Some(libc::SYS_mremap));
static PRCTL: Next = Next::new(c"prctl", Some(libc::SYS_prctl));
static SYSCALL: Next = Next::new(c"syscall", None);

/// Looks them up.
pub(crate) fn find() {
    for next in [&IOCTL, &MMAP, &MUNMAP, &MREMAP, &PRCTL, &SYSCALL] {
        // SAFETY: the name is a C string.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, next.name.as_ptr()) };
        next.found.store(found, Ordering::Release);
    }
}

/// Has `ioctl` be what is called from here on.
#[cfg(test)]
pub(crate) fn instead(ioctl: extern "C" fn(usize, usize, usize) -> c_long) {
    IOCTL.found.store(ioctl as *mut c_void, Ordering::Release);
}

impl Next {
    const fn new(name: &'static CStr, number: Option<c_long>) -> Self {
        Self { name, number, found: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Calls it: what it returns, an `int` in the lower half. The first of `args` are its
    /// own; see [`exports`](crate::exports) for the others, which it does not look at.
    ///
    /// # Safety
    /// As that of the C library's function.
    unsafe fn call(&self, args: [usize; 7]) -> c_long {
        type Function = unsafe extern "C" fn(usize, ...) -> c_long;
        let [a, b, c, d, e, f, g] = args;
        let found = self.found.load(Ordering::Acquire);
        if found.is_null() {
            let (number, args) = match self.number {
                Some(number) => (number, [a, b, c, d, e, f]),
                None => (a as c_long, [b, c, d, e, f, g]),
            };
            // SAFETY: the caller's.
            return unsafe { sys::any(number, args) }.map_or_else(
                |errno| {
                    sys::set_errno(errno);
                    -1
                },
                |result| result as c_long,
            );
        }
        // SAFETY: numbers and pointers alike go in registers, and what is too much does no
        // harm, whether a function is variadic or not.
        let next = unsafe { std::mem::transmute::<*mut c_void, Function>(found) };
        // SAFETY: the caller's.
        unsafe { next(a, b, c, d, e, f, g) }
    }
}

pub(crate) unsafe fn ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    // SAFETY: the caller's, here and below.
    unsafe { IOCTL.call([fd as usize, request as usize, arg as usize, 0, 0, 0, 0]) as c_int }
}

pub(crate) unsafe fn mmap(
    at: *mut c_void,
    bytes: usize,
    access: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    let (access, flags, fd) = (access as usize, flags as usize, fd as usize);
    // SAFETY: as above.
    let at = unsafe { MMAP.call([at as usize, bytes, access, flags, fd, offset as usize, 0]) };
    ptr::with_exposed_provenance_mut(at as usize)
}

pub(crate) unsafe fn munmap(at: *mut c_void, bytes: usize) -> c_int {
    // SAFETY: as above.
    unsafe { MUNMAP.call([at as usize, bytes, 0, 0, 0, 0, 0]) as c_int }
}

pub(crate) unsafe fn mremap(
    at: *mut c_void,
    bytes: usize,
    new_bytes: usize,
    flags: c_int,
    to: *mut c_void,
) -> *mut c_void {
    let (at, flags, to) = (at as usize, flags as usize, to as usize);
    // SAFETY: as above.
    let now = unsafe { MREMAP.call([at, bytes, new_bytes, flags, to, 0, 0]) };
    ptr::with_exposed_provenance_mut(now as usize)
}

pub(crate) unsafe fn prctl(option: c_int, args: [c_ulong; 4]) -> c_int {
    let [a, b, c, d] = args.map(|arg| arg as usize);
    // SAFETY: as above.
    unsafe { PRCTL.call([option as usize, a, b, c, d, 0, 0]) as c_int }
}

pub(crate) unsafe fn syscall(number: c_long, args: [usize; 6]) -> c_long {
    let [a, b, c, d, e, f] = args;
    // SAFETY: as above.
    unsafe { SYSCALL.call([number as usize, a, b, c, d, e, f]) }
}
