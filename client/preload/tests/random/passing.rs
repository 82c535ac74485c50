//! Ways by which a descriptor gets another number, or stands for something else;
//! and children that are no forks.

use std::ffi::{c_int, c_long};
use std::mem::zeroed;
use std::ptr;

use crate::machine::{CREATE_VM, Machine, call};

/// The descriptors of this process, and whether the next program has them: a VM lives
/// as long as there is one.
pub(crate) fn held() -> String {
    let held = (0..256).filter_map(|fd| {
        // SAFETY: a number.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        let file = std::fs::read_link(format!("/proc/self/fd/{fd}"));
        // Without an inode's number.
        let file = file.unwrap_or_default().to_string_lossy().replace(char::is_numeric, "");
        (flags >= 0).then(|| format!("{fd} {flags} {file}"))
    });
    held.collect::<Vec<_>>().join(", ")
}

/// How many ways [`again`] has.
pub(crate) const WAYS: u64 = 6;

/// Another descriptor of the same file.
pub(crate) fn again(fd: c_int, way: u64) -> c_int {
    // One of two, that is not this one.
    let (there, then) = (90 + c_int::from(fd == 90), 92 + c_int::from(fd == 92));
    match way {
        // SAFETY: numbers of the program's own, here and below.
        0 => unsafe { libc::dup(fd) },
        // SAFETY: as above.
        1 => unsafe { libc::fcntl(fd, libc::F_DUPFD, 40) },
        // SAFETY: as above.
        2 => unsafe { libc::dup3(fd, there, libc::O_CLOEXEC) },
        // SAFETY: as above.
        3 => unsafe { libc::syscall(libc::SYS_dup2, fd, then) as c_int },
        4 => sent(fd),
        _ => fetched(fd),
    }
}

/// Through a socket, as helpers of VMMs get it.
fn sent(fd: c_int) -> c_int {
    #[repr(C)]
    struct Control(libc::cmsghdr, c_int, c_int);
    let mut ends = [-1; 2];
    // SAFETY: room for two.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, ends.as_mut_ptr()) };
    assert_eq!(made, 0);
    let mut byte = 7_u8;
    let mut bytes = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: numbers.
    let mut control: Control = unsafe { zeroed() };
    control.0.cmsg_level = libc::SOL_SOCKET;
    control.0.cmsg_type = libc::SCM_RIGHTS;
    control.0.cmsg_len = size_of::<libc::cmsghdr>() + size_of::<c_int>();
    control.1 = fd;
    // SAFETY: numbers and null pointers.
    let mut message: libc::msghdr = unsafe { zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut bytes, 1);
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>();
    // SAFETY: what it points to is there.
    assert_eq!(unsafe { libc::sendmsg(ends[0], &raw const message, 0) }, 1);
    control.1 = -1;
    // SAFETY: as above.
    assert_eq!(unsafe { libc::recvmsg(ends[1], &raw mut message, 0) }, 1);
    for end in ends {
        // SAFETY: its own.
        unsafe { libc::close(end) };
    }
    control.1
}

/// Through a descriptor of this process.
fn fetched(fd: c_int) -> c_int {
    // SAFETY: numbers, here and below.
    let this = unsafe { libc::syscall(libc::SYS_pidfd_open, c_long::from(libc::getpid()), 0) };
    // SAFETY: as above.
    let new = unsafe { libc::syscall(libc::SYS_pidfd_getfd, this, c_long::from(fd), 0) };
    // SAFETY: its own.
    unsafe { libc::close(this as c_int) };
    // Where the kernel has neither.
    // SAFETY: as above.
    if new < 0 { unsafe { libc::dup(fd) } } else { new as c_int }
}

/// The VM's number stands for another VM, which nobody closed anything for.
pub(crate) fn replaced(kvm: c_int, machine: &Machine) -> String {
    let other = call(kvm, CREATE_VM, ptr::null_mut());
    // SAFETY: numbers of its own.
    let now = unsafe { libc::dup3(other, machine.vm, libc::O_CLOEXEC) };
    let first = machine.churn(1, 0, 2);
    // The vCPU is still the old one's, whose slot is away or there as before.
    let read = machine.probe(0x40);
    let second = machine.churn(1, 0, 2);
    // SAFETY: its own.
    unsafe { libc::close(other) };
    format!("{} {first:?}{read} {second:?}", now == machine.vm)
}

/// A child with this process's descriptors, not its memory, closes the VM.
pub(crate) fn closed_by_child(machine: &Machine) -> String {
    let flags = c_long::from(libc::CLONE_FILES | libc::SIGCHLD);
    // SAFETY: like a fork; the child makes system calls only.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0_u64, 0_u64, 0_u64, 0_u64) };
    if child == 0 {
        let removed = machine.slot(1, 0, 0, 0);
        // SAFETY: numbers, here and below.
        unsafe { libc::close(machine.vm) };
        // SAFETY: does not return.
        unsafe { libc::_exit(removed & 0xff) };
    }
    let ended = wait(child as c_int);
    let closed = machine.churn(1, 0, 2);
    // The number is taken by something else.
    // SAFETY: opens a file.
    let null = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if null != machine.vm {
        // SAFETY: numbers of its own.
        unsafe { libc::dup3(null, machine.vm, libc::O_CLOEXEC) };
        // SAFETY: as above.
        unsafe { libc::close(null) };
    }
    format!("{ended:#x} {closed:?} {:?}", machine.churn(1, 0, 2))
}

unsafe extern "C" {
    static environ: *const *mut libc::c_char;
}

/// Marks all descriptors as gone with the next program, and starts some.
pub(crate) fn spawned(kinds: u64) -> String {
    // SAFETY: numbers.
    let marked = unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as c_int) };
    let program = c"/bin/sh".as_ptr().cast_mut();
    let script = c"test ! -e /proc/$$/fd/9 && kill -s $0 $$".as_ptr().cast_mut();
    let signal = if kinds == 0 { c"TERM" } else { c"USR1" }.as_ptr().cast_mut();
    let mut args = [program, c"-c".as_ptr().cast_mut(), script, signal, ptr::null_mut()];
    let (mut child, nothing) = (0, ptr::null());
    // SAFETY: lists with their ends; the environment, which nothing changes.
    let started = unsafe {
        let (argv, env) = (args.as_mut_ptr(), environ);
        libc::posix_spawn(&raw mut child, program, nothing, ptr::null(), argv, env)
    };
    format!("{marked} {started} {:#x}", if started == 0 { wait(child) } else { 0 })
}

fn wait(child: c_int) -> c_int {
    let mut status = 0;
    // SAFETY: this process's child.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child);
    status
}
