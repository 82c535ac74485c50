//! Which descriptors are one open file.

use std::cmp::Ordering;
use std::os::fd::RawFd;

use crate::errno::Errno;

/// The kernel's order of the open files of two descriptors (`kcmp`).
///
/// # Errors
/// `ENOSYS` on a kernel without it, `EPERM` behind some filters, `EBADF` for a
/// descriptor that is not open.
pub fn compare_files(one: RawFd, other: RawFd) -> Result<Ordering, Errno> {
    /// `linux/kcmp.h`.
    const KCMP_FILE: libc::c_long = 0;
    let process = libc::c_long::from(std::process::id());
    let [one, other] = [one, other].map(libc::c_long::from);
    // SAFETY: takes numbers only, and compares.
    match unsafe { libc::syscall(libc::SYS_kcmp, process, process, KCMP_FILE, one, other) } {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(Errno::last()),
    }
}
