//! Whose VM this is: of a process and not of its forks, and of one [`Vm`] only.
//!
//! [`Vm`]: crate::Vm

use std::os::fd::BorrowedFd;
use std::ptr::{self, null_mut};
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use kvm_memslots_shim::Kvm;

/// What a process has of its own, zeroes in what is forked from it (`MADV_WIPEONFORK`).
#[derive(Debug)]
struct Own {
    /// Which [process](GENERATIONS) this is: asking takes no system call.
    generation: AtomicU32,
    /// The VMs that it has open. A list of another process's may be locked for ever.
    open: AtomicPtr<Open>,
}

#[derive(Debug)]
struct Open {
    list: Mutex<Vec<Weak<Kvm>>>,
    /// The one of the process that this was forked from.
    _parents: AtomicPtr<Self>,
}

/// Where the process's own is, once it was asked for. Never unmapped: there is one in a
/// process. No lock: a fork would find it taken by a thread that it has not.
static OWN: AtomicPtr<Own> = AtomicPtr::new(null_mut());

/// In its place where the kernel does not wipe memory (before 4.14).
static UNWIPED: Own = Own { generation: AtomicU32::new(0), open: AtomicPtr::new(null_mut()) };

/// The last list that was made, for leak checkers: they don't look into a page that was
/// mapped. The others follow.
static NEWEST: AtomicPtr<Open> = AtomicPtr::new(null_mut());

/// How many processes, from the first that used this on down to this one, have had
/// a generation. A fork has the count of its parent at the time, so what it opens
/// itself is of another generation than what it has from there.
static GENERATIONS: AtomicU32 = AtomicU32::new(0);

impl Own {
    fn of_this_process() -> &'static Self {
        let mut at = OWN.load(Ordering::Acquire);
        if at.is_null() {
            let new = Self::map().unwrap_or_else(|| ptr::from_ref(&UNWIPED).cast_mut());
            let set = OWN.compare_exchange(null_mut(), new, Ordering::AcqRel, Ordering::Acquire);
            // Of two threads at once one has mapped a page in vain.
            at = set.map_or_else(|there| there, |_| new);
        }
        // SAFETY: a static, or mapped for ever, aligned, and never anything else; zeroes
        // are a value of it.
        unsafe { &*at }
    }

    fn map() -> Option<*mut Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // It is written at once.
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a new mapping of a page at least, which takes no other's place.
        let at = unsafe { libc::mmap(null_mut(), 4096, access, kind, -1, 0) };
        if at == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: the mapping is this function's alone.
        let wiped = unsafe { libc::madvise(at, 4096, libc::MADV_WIPEONFORK) } == 0;
        wiped.then_some(at.cast())
    }

    /// Whether it is a fork's parent's, too.
    fn is_shared(&self) -> bool {
        ptr::eq(self, &raw const UNWIPED)
    }

    /// The generation of this process; its first one if it has none yet.
    fn generation(&self) -> u32 {
        let there = self.generation.load(Ordering::Relaxed);
        if there != 0 {
            return there;
        }
        let new = GENERATIONS.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1);
        let (ours, theirs) = (Ordering::Relaxed, Ordering::Relaxed);
        // Another thread may have been faster.
        self.generation.compare_exchange(0, new, ours, theirs).map_or_else(|there| there, |_| new)
    }

    fn open(&self) -> &'static Mutex<Vec<Weak<Kvm>>> {
        let mut at = self.open.load(Ordering::Acquire);
        if at.is_null() {
            let parents = AtomicPtr::new(NEWEST.load(Ordering::Relaxed));
            let new = Box::into_raw(Box::new(Open { list: Mutex::default(), _parents: parents }));
            let set =
                (self.open).compare_exchange(null_mut(), new, Ordering::AcqRel, Ordering::Acquire);
            at = match set {
                Ok(_) => {
                    NEWEST.store(new, Ordering::Relaxed);
                    new
                }
                Err(there) => {
                    // SAFETY: from above, and nobody has seen it.
                    drop(unsafe { Box::from_raw(new) });
                    there
                }
            };
        }
        // SAFETY: from above, by this process, and never freed.
        unsafe { &(*at).list }
    }
}

/// Tells a process from its forks: its generation, or its id where the kernel has
/// no `MADV_WIPEONFORK` (before 4.14).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process(u32);

impl Process {
    pub(crate) fn this() -> Self {
        let own = Own::of_this_process();
        Self(if own.is_shared() { std::process::id() } else { own.generation() })
    }

    /// Whether this is another process now, forked from that one.
    pub(crate) fn is_fork(self) -> bool {
        let own = Own::of_this_process();
        let generation = || own.generation.load(Ordering::Relaxed);
        self.0 != if own.is_shared() { std::process::id() } else { generation() }
    }
}

/// Claims the VM behind `fd` for as long as `kvm`, which is the same, lives; whether
/// nobody has it. Where the kernel can't tell (no `kcmp`, or not allowed), it is taken
/// for another one.
pub(super) fn claim(kvm: &Arc<Kvm>, fd: BorrowedFd<'_>) -> bool {
    let mut open = Own::of_this_process().open().lock().unwrap_or_else(PoisonError::into_inner);
    open.retain(|other| other.strong_count() > 0);
    let mut others = open.iter().filter_map(Weak::upgrade);
    let taken = others.any(|other| other.same_vm(fd) == Some(true));
    if !taken {
        open.push(Arc::downgrade(kvm));
    }
    !taken
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread opens a VM while another one forks: the child can open one all the same.
    #[test]
    fn a_fork_waits_for_no_thread_of_its_parent() {
        let list = || Own::of_this_process().open();
        let held = list().lock();
        // SAFETY: the child looks at memory, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let free = list().try_lock().is_ok_and(|list| list.is_empty());
            // SAFETY: does not return.
            unsafe { libc::_exit(i32::from(!free)) };
        }
        drop(held);
        let mut status = -1;
        // SAFETY: waits for that child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(status == 0 || Own::of_this_process().is_shared(), "{status:#x}");
    }
}
