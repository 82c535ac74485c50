//! A mark on what a file descriptor stands for, by which it is known again:
//! under whatever number, and no longer once it is closed.
//!
//! A number says little: the VMM may close it in ways that are not seen (a
//! `FILE`, `io_uring`, another library's system call), and what it is next may be
//! another VM. To hold a descriptor of one's own would keep alive what the VMM
//! has closed.
//!
//! Each open file has an owner and a signal for asynchronous I/O, which KVM's files
//! never do. So the owner is this process, and how it is named (as a process or as a
//! thread) and the signal are a number that no other file of the process has had. The
//! kernel keeps the process itself there, not its number: one that comes later under
//! that number is another owner.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{process, sys};

/// Signals that there are, from 1 on.
const SIGNALS: usize = 64;
/// `F_OWNER_TID`, `F_OWNER_PID`: the kinds of owners, by number.
const KINDS: usize = 2;

/// Marks that a process can make.
pub(crate) const MARKS: usize = KINDS * SIGNALS;

const SET_SIGNAL: c_int = 10;
const GET_SIGNAL: c_int = 11;
const SET_OWNER: c_int = 15;
const GET_OWNER: c_int = 16;

/// `struct f_owner_ex`
#[repr(C)]
#[derive(Default)]
struct Owner {
    kind: c_int,
    pid: c_int,
}

/// Has `fd` be marked with `mark`; whether it can be told by that.
pub(crate) fn set(fd: c_int, mark: usize) -> bool {
    let mut owner = Owner { kind: (mark / SIGNALS) as c_int, pid: process::id() };
    // SAFETY: the structure that the command takes.
    let owned = unsafe { sys::fcntl(fd, SET_OWNER, (&raw mut owner) as usize) };
    // SAFETY: takes a number.
    let marked = owned.and_then(|_| unsafe { sys::fcntl(fd, SET_SIGNAL, mark % SIGNALS + 1) });
    marked.is_ok() && is(fd, mark)
}

/// What `fd` has been marked with by this process.
pub(crate) fn of(fd: c_int) -> Option<usize> {
    // SAFETY: takes nothing.
    let signal = unsafe { sys::fcntl(fd, GET_SIGNAL, 0) }.ok()? as usize;
    // What has none is not looked at further.
    let signal = signal.checked_sub(1)?;
    let mut owner = Owner::default();
    // SAFETY: fills in the structure.
    unsafe { sys::fcntl(fd, GET_OWNER, (&raw mut owner) as usize) }.ok()?;
    let kind = usize::try_from(owner.kind).ok().filter(|kind| *kind < KINDS)?;
    (owner.pid == process::id() && signal < SIGNALS).then_some(kind * SIGNALS + signal)
}

/// Whether `fd` is what has been marked with `mark`.
pub(crate) fn is(fd: c_int, mark: usize) -> bool {
    of(fd) == Some(mark)
}

/// Marks, each there or not, whatever order threads say it in. Zeroes are none.
#[derive(Debug, Default)]
pub(crate) struct Set([AtomicU64; KINDS]);

// A word has a bit for each signal.
const _: () = assert!(SIGNALS == u64::BITS as usize);

impl Set {
    /// Has `mark` be one of them, or no longer.
    pub(crate) fn put(&self, mark: usize, is: bool) {
        let (Some(word), bit) = (self.0.get(mark / SIGNALS), 1 << (mark % SIGNALS)) else { return };
        // Mostly it is so already: all vCPUs read this.
        if (word.load(Ordering::SeqCst) & bit != 0) == is {
            return;
        }
        if is {
            word.fetch_or(bit, Ordering::SeqCst);
        } else {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    pub(crate) fn has(&self, mark: usize) -> bool {
        let word = self.0.get(mark / SIGNALS).map_or(0, |word| word.load(Ordering::SeqCst));
        word & 1 << (mark % SIGNALS) != 0
    }

    /// Whether there is one beside `mark`.
    pub(crate) fn has_other(&self, mark: usize) -> bool {
        let own = |at| if at == mark / SIGNALS { 1 << (mark % SIGNALS) } else { 0 };
        let mut words = self.0.iter().enumerate();
        words.any(|(at, word)| word.load(Ordering::SeqCst) & !own(at) != 0)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd};
    use std::sync::Mutex;

    use super::*;

    /// For tests to which it matters which marks there are.
    pub(crate) static MARKS_IN_USE: Mutex<()> = Mutex::new(());

    /// A file that has no inode of its own, as those of KVM have none.
    fn file() -> OwnedFd {
        // SAFETY: makes a descriptor.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: just made.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    #[test]
    fn all_marks_are_known_under_every_number_and_gone_with_the_file() {
        let _marks = MARKS_IN_USE.lock();
        for mark in 0..MARKS {
            let (one, other) = (file(), file());
            assert!(of(one.as_raw_fd()).is_none());
            assert!(set(one.as_raw_fd(), mark));
            let again = one.try_clone().unwrap();
            // Never free: another test's thread would be given the number.
            let number = one.into_raw_fd();
            // SAFETY: numbers of this test's own: the file's old one is another's.
            assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), number) }, number);
            assert_eq!((of(again.as_raw_fd()), of(other.as_raw_fd())), (Some(mark), None));
            assert!(!is(number, mark));
            // SAFETY: just made.
            drop(unsafe { OwnedFd::from_raw_fd(number) });
        }
        assert!(!set(file().as_raw_fd(), MARKS), "no kind of owner");
    }

    /// A file of a process that is gone, or another one's.
    #[test]
    fn a_mark_is_its_process_s() {
        let file = file();
        // SAFETY: the child makes system calls only.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let mut owner = Owner { kind: 1, pid: sys::process_id() };
            // SAFETY: the structure that the command takes, and numbers, here and below.
            let set = unsafe { sys::fcntl(file.as_raw_fd(), SET_OWNER, (&raw mut owner) as usize) };
            // SAFETY: as above.
            let set = set.and(unsafe { sys::fcntl(file.as_raw_fd(), SET_SIGNAL, 1) });
            // No panic, which would go on with the parent's tests.
            // SAFETY: does not return.
            unsafe { libc::_exit(set.is_err().into()) };
        }
        let mut status = 0;
        // SAFETY: this process's child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!((status, of(file.as_raw_fd())), (0, None));
        assert!(set(file.as_raw_fd(), 3) && is(file.as_raw_fd(), 3));
    }

    #[test]
    fn a_set_has_what_was_put_there_last() {
        let set = Set::default();
        for mark in [0, 63, 64, MARKS - 1] {
            set.put(mark, true);
            set.put(mark, true);
            assert!(set.has(mark) && !set.has_other(mark));
            for other in (0..MARKS).filter(|other| *other != mark) {
                assert!(!set.has(other) && set.has_other(other), "{mark} {other}");
            }
            set.put(mark, false);
            set.put(mark, false);
        }
        set.put(MARKS, true);
        assert!(!set.has_other(0) && !set.has(MARKS));
    }

    #[test]
    fn what_is_no_descriptor_is_nothing() {
        assert!(!set(-1, 0) && of(-1).is_none());
    }
}
