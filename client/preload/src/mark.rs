//! A mark on what a file descriptor stands for, by which it is known again:
//! under whatever number, and no longer once it is closed.
//!
//! A number says little: the VMM may close it in ways that are not seen (a
//! `FILE`, `io_uring`, another library's system call), and what it is next may be
//! another VM. To hold a descriptor of one's own would keep alive what the VMM
//! has closed.
//!
//! KVM's files are all on the kernel's one anonymous inode, and a lock on a byte
//! of that belongs to the open file (`F_OFD_SETLK`), goes with it, and is seen
//! from every other. So each VM and vCPU locks a byte that nobody else uses. It
//! is what `fd` stands for if somebody holds that lock (`F_GETLK`, which asks as
//! a process, whom every open file's lock is in the way) and nobody whom `fd` would have
//! to wait for (`F_OFD_GETLK`, which asks as the file).

use std::ffi::c_int;

use crate::sys;

/// `F_OFD_GETLK`, `F_OFD_SETLK`.
const FILE_GET: c_int = 36;
const FILE_SET: c_int = 37;

/// Bytes of one VM's: its own, and one for each of its vCPUs.
pub(crate) const BYTES: i64 = 1024;

/// Marks `fd` with byte `at`; whether it can be told by that.
pub(crate) fn mark(fd: c_int, at: i64) -> bool {
    sys::lock(fd, FILE_SET, at, 1).is_ok() && is(fd, at)
}

/// Whether `fd` is what has been marked with `at`.
pub(crate) fn is(fd: c_int, at: i64) -> bool {
    any(fd, at, 1) && sys::lock(fd, FILE_GET, at, 1) == Ok(libc::F_UNLCK)
}

/// Whether any byte of `bytes` from `at` on is somebody's mark; `fd` is any of KVM's.
pub(crate) fn any(fd: c_int, at: i64, bytes: i64) -> bool {
    sys::lock(fd, libc::F_GETLK, at, bytes).is_ok_and(|found| found != libc::F_UNLCK)
}

/// Where marks of a VM may be that nobody else has.
pub(crate) fn fresh(seed: u64) -> i64 {
    // splitmix64, so that processes that start alike part.
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((bits ^ bits >> 31) >> 3) as i64 & !(BYTES - 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

    use super::*;

    /// A file on the anonymous inode, as those of KVM are.
    fn file() -> OwnedFd {
        // SAFETY: makes a descriptor.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: just made.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    #[test]
    fn known_under_every_number_and_gone_with_the_last() {
        let at = fresh(sys::now());
        let (one, other) = (file(), file());
        assert!(!is(one.as_raw_fd(), at));
        assert!(mark(one.as_raw_fd(), at));
        assert!(is(one.as_raw_fd(), at) && !is(other.as_raw_fd(), at));
        assert!(!mark(other.as_raw_fd(), at), "taken");
        let again = one.try_clone().unwrap();
        drop(one);
        assert!(is(again.as_raw_fd(), at) && any(other.as_raw_fd(), at - 7, BYTES));
        drop(again);
        assert!(!is(other.as_raw_fd(), at) && !any(other.as_raw_fd(), at, BYTES));
        assert!(mark(other.as_raw_fd(), at));
    }

    #[test]
    fn what_is_no_descriptor_is_nothing() {
        assert!(!mark(-1, 0) && !is(-1, 0) && !any(-1, 0, 1));
    }
}
