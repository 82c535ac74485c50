//! Whose VM this is: of a process and not of its forks, and of one [`Vm`] only.
//!
//! [`Vm`]: crate::Vm

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use kvm_memslots_shim::Kvm;

/// A word that is this process's [generation](GENERATIONS), and 0 in what is forked
/// from it (`MADV_WIPEONFORK`): asking takes no system call.
///
/// The page is never unmapped: there is one in a process.
static PAGE: OnceLock<Option<Page>> = OnceLock::new();

/// How many processes, from the first that used this on down to this one, have had
/// a generation. A fork has the count of its parent at the time, so what it opens
/// itself is of another generation than what it has from there.
static GENERATIONS: AtomicU32 = AtomicU32::new(0);

struct Page(NonNull<AtomicU32>);

// SAFETY: it is only used as the atomic that it points to.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

fn page() -> Option<&'static Page> {
    PAGE.get_or_init(|| {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // It is written at once.
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a new mapping of a page at least, which takes no other's place.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, kind, -1, 0) };
        if at == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: the mapping is this function's alone.
        if unsafe { libc::madvise(at, 4096, libc::MADV_WIPEONFORK) } != 0 {
            return None;
        }
        NonNull::new(at.cast::<AtomicU32>()).map(Page)
    })
    .as_ref()
}

impl Page {
    /// Of this process; its first one if it has none yet.
    fn generation(&self) -> u32 {
        let there = self.word().load(Ordering::Relaxed);
        if there != 0 {
            return there;
        }
        let new = GENERATIONS.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1);
        let (ours, theirs) = (Ordering::Relaxed, Ordering::Relaxed);
        // Another thread may have been faster.
        self.word().compare_exchange(0, new, ours, theirs).map_or_else(|there| there, |_| new)
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the page is mapped for ever, zeroed, and aligned.
        unsafe { self.0.as_ref() }
    }
}

/// Tells a process from its forks: its generation, or its id where the kernel has
/// no `MADV_WIPEONFORK` (before 4.14).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process(u32);

impl Process {
    pub(crate) fn this() -> Self {
        Self(page().map_or_else(std::process::id, Page::generation))
    }

    /// Whether this is another process now, forked from that one.
    pub(crate) fn is_fork(self) -> bool {
        let here = page().map_or_else(std::process::id, |page| page.word().load(Ordering::Relaxed));
        here != self.0
    }
}

/// The VMs that this process has open.
static OPEN: Mutex<Vec<Weak<Kvm>>> = Mutex::new(Vec::new());

/// Claims the VM behind `fd` for as long as `kvm`, which is the same, lives; whether nobody has it. Where the
/// kernel can't tell (no `kcmp`, or not allowed), it is taken for another one.
pub(super) fn claim(kvm: &Arc<Kvm>, fd: BorrowedFd<'_>) -> bool {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    open.retain(|other| other.strong_count() > 0);
    let mut others = open.iter().filter_map(Weak::upgrade);
    let taken = others.any(|other| other.same_vm(fd) == Some(true));
    if !taken {
        open.push(Arc::downgrade(kvm));
    }
    !taken
}
