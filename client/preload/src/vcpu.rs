//! What is known of one vCPU.

use std::ffi::c_int;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// `KVM_RUN`s that are guarded after the last flip of a slot that may churn.
const GUARDED: u32 = 4096;

/// Not in `KVM_RUN`.
pub(crate) const OUTSIDE: u32 = 0;
/// In it, as the VMM called it.
pub(crate) const PLAIN: u32 = 1;
/// In it, with signals blocked outside the guest.
pub(crate) const GUARDS: u32 = 2;

/// KVM's mask of signals is not set.
pub(crate) const NO_MASK: u32 = 0;
/// The VMM has set one.
pub(crate) const OF_VMM: u32 = 1;
/// It is `mask`.
pub(crate) const OURS: u32 = 2;

/// What is known of one vCPU; zeroes are one that has not run. A cache line or
/// two of its own: nobody else writes there in `KVM_RUN`.
#[repr(align(128))]
#[derive(Default)]
pub(crate) struct Vcpu {
    /// The mark of its VM, plus one.
    vm: AtomicUsize,
    /// Where the VMM has mapped what KVM shares for it.
    pub(crate) page: AtomicU64,
    pub(crate) inside: AtomicU32,
    /// The number by which it runs, or ran.
    number: AtomicI32,
    pub(crate) whose_mask: AtomicU32,
    pub(crate) mask: AtomicU64,
    /// The VM's epoch when this was last looked at, and guarded runs left.
    epoch: AtomicU32,
    left: AtomicU32,
    /// Runs of which was asked whether they are its own, for another VM's sake.
    asked: AtomicU32,
    /// An access whose memory was not there: where it was, and 1, its width and
    /// whether it writes, in the other.
    pub(crate) owed: [AtomicU64; 2],
}

impl Vcpu {
    /// It was made for the VM with mark `vm`.
    pub(crate) fn made_for(&self, vm: usize) {
        self.vm.store(vm + 1, Ordering::SeqCst);
    }

    /// The mark of its VM, if it was made.
    pub(crate) fn vm(&self) -> Option<usize> {
        self.vm.load(Ordering::SeqCst).checked_sub(1)
    }

    /// The VMM has mapped its page.
    pub(crate) fn mapped_at(&self, page: u64) {
        self.page.store(page, Ordering::Release);
    }

    /// The VMM has set a mask of signals itself, or none.
    pub(crate) fn has_mask(&self, mask: Option<u64>) {
        self.mask.store(mask.unwrap_or(0), Ordering::SeqCst);
        self.whose_mask.store(mask.map_or(NO_MASK, |_| OF_VMM), Ordering::SeqCst);
    }

    /// It begins a run by this number, as the VMM called it.
    pub(crate) fn enters(&self, number: c_int) {
        self.number.store(number, Ordering::Relaxed);
        self.inside.store(PLAIN, Ordering::SeqCst);
    }

    /// The number of the run that it is in, if that is as the VMM called it.
    pub(crate) fn lifted(&self) -> Option<c_int> {
        let inside = self.inside.load(Ordering::SeqCst) == PLAIN;
        inside.then(|| self.number.load(Ordering::Relaxed))
    }

    /// Whether to look for VMs that are gone: a run asks for the sake of another.
    pub(crate) fn asks_often(&self) -> bool {
        let asked = self.asked.load(Ordering::Relaxed).wrapping_add(1);
        self.asked.store(asked, Ordering::Relaxed);
        asked % GUARDED == 0
    }

    /// Whether an exit of it can be served without losing a signal.
    pub(crate) fn is_ready(&self) -> bool {
        self.inside.load(Ordering::SeqCst) != PLAIN && self.page.load(Ordering::Acquire) != 0
    }

    /// Whether the run that begins, at the VM's `epoch`, is to be guarded.
    pub(crate) fn guards(&self, epoch: u32, defers_now: bool) -> bool {
        if self.epoch.swap(epoch, Ordering::Relaxed) != epoch {
            self.left.store(GUARDED, Ordering::Relaxed);
        }
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.saturating_sub(1), Ordering::Relaxed);
        left > 0 || defers_now
    }
}
