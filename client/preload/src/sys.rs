//! System calls of this library's own: made directly, so that no other library
//! sees them and the caller's `errno` stays what it was.

use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::ptr;
use std::sync::atomic::AtomicU32;

/// Makes a system call; its result, or the errno.
///
/// # Safety
/// As that of the system call.
unsafe fn call(number: c_long, args: [usize; 6]) -> Result<usize, c_int> {
    let [a, b, c, d, e, f] = args;
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel's convention; the caller vouches for the call.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the kernel's convention; the caller vouches for the call.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a as isize => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack)
        );
    }
    if (-4095..0).contains(&result) { Err(-result as c_int) } else { Ok(result as usize) }
}

/// Any system call, as `syscall` of the C library passes it.
///
/// # Safety
/// As that of the system call.
pub(crate) unsafe fn any(number: c_long, args: [usize; 6]) -> Result<usize, c_int> {
    // SAFETY: the caller's.
    unsafe { call(number, args) }
}

/// # Safety
/// `arg` is what the kernel takes for `request`.
pub(crate) unsafe fn ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> Result<c_int, c_int> {
    // SAFETY: the caller's.
    let done =
        unsafe { call(libc::SYS_ioctl, [fd as usize, request as usize, arg as usize, 0, 0, 0]) };
    done.map(|result| result as c_int)
}

/// # Safety
/// `arg` is what the kernel takes for `command`.
pub(crate) unsafe fn fcntl(fd: c_int, command: c_int, arg: usize) -> Result<c_int, c_int> {
    // SAFETY: the caller's.
    let done = unsafe { call(libc::SYS_fcntl, [fd as usize, command as usize, arg, 0, 0, 0]) };
    done.map(|result| result as c_int)
}

/// Another descriptor for what `fd` is, not below `least`, closed on exec.
pub(crate) fn duplicate(fd: c_int, least: c_int) -> Result<c_int, c_int> {
    // SAFETY: makes a descriptor.
    unsafe { fcntl(fd, libc::F_DUPFD_CLOEXEC, least as usize) }
}

/// # Safety
/// `fd` is this library's own.
pub(crate) unsafe fn close(fd: c_int) {
    // SAFETY: the caller's.
    let _ = unsafe { call(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) };
}

/// Sets this thread's signal mask; what it was.
pub(crate) fn set_mask(mask: u64) -> u64 {
    let mut old = 0_u64;
    let how = libc::SIG_SETMASK as usize;
    let args = [how, (&raw const mask) as usize, (&raw mut old) as usize, 8, 0, 0];
    // SAFETY: both are sets of the kernel's size. All signals may be blocked for
    // a while.
    let _ = unsafe { call(libc::SYS_rt_sigprocmask, args) };
    old
}

/// Signals that wait for being unblocked.
pub(crate) fn pending() -> u64 {
    let mut set = 0_u64;
    // SAFETY: a set of the kernel's size.
    let _ = unsafe { call(libc::SYS_rt_sigpending, [(&raw mut set) as usize, 8, 0, 0, 0, 0]) };
    set
}

/// Whether nothing happens when `signal` is delivered.
pub(crate) fn is_ignored(signal: c_int) -> bool {
    // The kernel's `struct sigaction`: the handler comes first.
    let mut action = [0_usize; 4];
    let args = [signal as usize, 0, (&raw mut action) as usize, 8, 0, 0];
    // SAFETY: the kernel writes one such structure, of 32 bytes.
    if unsafe { call(libc::SYS_rt_sigaction, args) }.is_err() {
        return false;
    }
    let by_itself = matches!(signal, libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH | libc::SIGCONT);
    action[0] == libc::SIG_IGN || action[0] == libc::SIG_DFL && by_itself
}

/// Sleeps while `word` has `value`, for so many nanoseconds at most.
pub(crate) fn wait(word: &AtomicU32, value: u32, at_most: Option<u64>) {
    let wait = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as usize;
    let time = at_most.map(|ns| [ns / 1_000_000_000, ns % 1_000_000_000]);
    let time = time.as_ref().map_or(0, |time| time.as_ptr() as usize);
    let args = [word.as_ptr() as usize, wait, value as usize, time, 0, 0];
    // SAFETY: the word is there, and the time, if any: a 64-bit `struct timespec`.
    let _ = unsafe { call(libc::SYS_futex, args) };
}

/// Wakes one that sleeps at `word`.
pub(crate) fn wake(word: &AtomicU32) {
    let wake = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as usize;
    // SAFETY: the word is there.
    let _ = unsafe { call(libc::SYS_futex, [word.as_ptr() as usize, wake, 1, 0, 0, 0]) };
}

/// New memory, zeroes.
pub(crate) fn map(bytes: usize) -> Option<*mut c_void> {
    let access = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as usize;
    // SAFETY: a new mapping, where nothing is.
    let at = unsafe { call(libc::SYS_mmap, [0, bytes, access, flags, usize::MAX, 0]) };
    at.ok().map(ptr::with_exposed_provenance_mut)
}

/// Has a child find zeroes in memory of [`map`]; whether the kernel does that.
pub(crate) fn wipe_on_fork(at: *mut c_void, bytes: usize) -> bool {
    let args = [at as usize, bytes, libc::MADV_WIPEONFORK as usize, 0, 0, 0];
    // SAFETY: changes only what a child finds.
    unsafe { call(libc::SYS_madvise, args) }.is_ok()
}

/// # Safety
/// Memory of [`map`] that nothing uses any more.
pub(crate) unsafe fn unmap(at: *mut c_void, bytes: usize) {
    // SAFETY: the caller's.
    let _ = unsafe { call(libc::SYS_munmap, [at as usize, bytes, 0, 0, 0, 0]) };
}

/// Nanoseconds of the monotonic clock.
pub(crate) fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a structure to be filled in; async-signal-safe.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// Opens what is there.
pub(crate) fn open(path: &std::ffi::CStr, flags: c_int) -> Result<c_int, c_int> {
    let flags = (flags | libc::O_RDONLY | libc::O_CLOEXEC) as usize;
    let args = [libc::AT_FDCWD as usize, path.as_ptr() as usize, flags, 0, 0, 0];
    // SAFETY: the path is a C string.
    unsafe { call(libc::SYS_openat, args) }.map(|fd| fd as c_int)
}

/// The next entries of a directory: bytes of `struct linux_dirent64`.
pub(crate) fn entries(dir: c_int, into: &mut [u8]) -> Result<usize, c_int> {
    let args = [dir as usize, into.as_mut_ptr() as usize, into.len(), 0, 0, 0];
    // SAFETY: as many bytes as there are.
    unsafe { call(libc::SYS_getdents64, args) }
}

/// Hands out the lines of a file; of one that is very long its start.
pub(crate) fn lines(path: &std::ffi::CStr, mut each: impl FnMut(&[u8])) -> Result<(), c_int> {
    let fd = open(path, 0)? as usize;
    let (mut line, mut length) = ([0; 256], 0);
    let mut bytes = [0; 1024];
    let result = loop {
        let args = [fd, bytes.as_mut_ptr() as usize, bytes.len(), 0, 0, 0];
        // SAFETY: as many bytes as there are.
        let read = match unsafe { call(libc::SYS_read, args) } {
            Ok(0) => break Ok(()),
            Ok(read) => read,
            Err(errno) => break Err(errno),
        };
        for byte in &bytes[..read] {
            if *byte == b'\n' {
                each(&line[..length.min(line.len())]);
                length = 0;
            } else {
                line.get_mut(length).into_iter().for_each(|at| *at = *byte);
                length += 1;
            }
        }
    };
    // SAFETY: just opened.
    unsafe { close(fd as c_int) };
    result
}

pub(crate) fn errno() -> c_int {
    // SAFETY: has no preconditions.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: this thread's, always there.
    unsafe { *place }
}

/// A number that no other thread has.
pub(crate) fn thread() -> usize {
    // SAFETY: has no preconditions.
    unsafe { libc::__errno_location() }.addr()
}

pub(crate) fn set_errno(errno: c_int) {
    // SAFETY: has no preconditions.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: this thread's, always there.
    unsafe { *place = errno };
}

/// This process's number, where nothing else says it.
pub(crate) fn process_id() -> c_int {
    // SAFETY: has no preconditions.
    unsafe { call(libc::SYS_getpid, [0; 6]) }.map_or(0, |pid| pid as c_int)
}

/// `process_vm_readv`, or `..._writev`, of process `pid`, one piece.
///
/// # Safety
/// There are `bytes` bytes at `ours`. The other side may be anything.
pub(crate) unsafe fn process_vm(
    pid: c_int,
    write: bool,
    ours: *mut u8,
    theirs: u64,
    bytes: usize,
) -> Result<usize, c_int> {
    let ours = libc::iovec { iov_base: ours.cast(), iov_len: bytes };
    let theirs = libc::iovec { iov_base: theirs as *mut c_void, iov_len: bytes };
    let number = if write { libc::SYS_process_vm_writev } else { libc::SYS_process_vm_readv };
    let (ours, theirs) = ((&raw const ours) as usize, (&raw const theirs) as usize);
    // SAFETY: the caller's.
    unsafe { call(number, [pid as usize, ours, 1, theirs, 1, 0]) }
}

/// `read`, or `write`, of a descriptor of this library's own.
///
/// # Safety
/// Not into memory of this library's, unless there are so many bytes.
pub(crate) unsafe fn transfer(
    write: bool,
    fd: c_int,
    at: u64,
    bytes: usize,
) -> Result<usize, c_int> {
    let number = if write { libc::SYS_write } else { libc::SYS_read };
    // SAFETY: the caller's.
    unsafe { call(number, [fd as usize, at as usize, bytes, 0, 0, 0]) }
}

/// A pipe: where it is read, and where it is written.
pub(crate) fn pipe() -> Result<[c_int; 2], c_int> {
    let mut ends = [0 as c_int; 2];
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as usize;
    // SAFETY: two descriptors are filled in.
    unsafe { call(libc::SYS_pipe2, [ends.as_mut_ptr() as usize, flags, 0, 0, 0, 0]) }?;
    Ok(ends)
}
