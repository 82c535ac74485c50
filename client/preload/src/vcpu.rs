//! What is known of one vCPU.

use std::ffi::c_int;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::abi::RUN_BYTES;

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
    /// Where the VMM has mapped what KVM shares for it; of more places than these any
    /// will do.
    pages: [AtomicU64; 4],
    /// Whether it was mapped once.
    was_mapped: AtomicBool,
    pub(crate) inside: AtomicU32,
    /// The number by which it runs, or ran, and the thread of the last guarded run.
    number: AtomicI32,
    thread: AtomicUsize,
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
        let take = |place: &AtomicU64| {
            place.compare_exchange(0, page, Ordering::AcqRel, Ordering::Acquire).is_ok()
        };
        let _ = self.pages().any(|known| known == page) || self.pages.iter().any(take);
        self.was_mapped.store(true, Ordering::Release);
    }

    /// Nothing that was mapped at these addresses is there any longer; whether its page was
    /// what began there.
    pub(crate) fn unmapped(&self, range: &Range<u64>) -> bool {
        let leave = |place: &AtomicU64| {
            let page = place.load(Ordering::Acquire);
            let gone = page != 0 && page < range.end && range.start < page + RUN_BYTES as u64;
            // Not what another thread has mapped meanwhile.
            gone && place.compare_exchange(page, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
                && page == range.start
        };
        self.pages.iter().fold(false, |any, place| any | leave(place))
    }

    /// Where its page is mapped.
    pub(crate) fn pages(&self) -> impl Iterator<Item = u64> {
        self.pages.iter().map(|page| page.load(Ordering::Acquire)).filter(|page| *page != 0)
    }

    pub(crate) fn has_page(&self) -> bool {
        self.pages().next().is_some()
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

    /// It begins a guarded run, by the thread `thread`.
    pub(crate) fn is_run_by(&self, thread: usize) {
        self.thread.store(thread, Ordering::Relaxed);
    }

    /// The number by which the thread `thread` ran it last, if KVM has a mask of signals
    /// for it since that is not the VMM's.
    pub(crate) fn masked_by(&self, thread: usize) -> Option<c_int> {
        let ours = self.whose_mask.load(Ordering::Relaxed) == OURS;
        let is = ours && self.thread.load(Ordering::Relaxed) == thread;
        is.then(|| self.number.load(Ordering::Relaxed))
    }

    /// Whether to look for VMs that are gone: a run asks for the sake of another.
    pub(crate) fn asks_often(&self) -> bool {
        let asked = self.asked.load(Ordering::Relaxed).wrapping_add(1);
        self.asked.store(asked, Ordering::Relaxed);
        asked % GUARDED == 0
    }

    /// Whether an exit of it can be served without losing a signal. One whose page was
    /// unmapped, as it was unplugged, may never run again; where it does, that is seen.
    pub(crate) fn is_ready(&self) -> bool {
        match self.inside.load(Ordering::SeqCst) {
            OUTSIDE => self.was_mapped.load(Ordering::Acquire),
            PLAIN => false,
            _ => self.has_page(),
        }
    }

    /// Whether a run that begins, at the VM's `epoch`, would be guarded.
    pub(crate) fn may_guard(&self, epoch: u32, defers_now: bool) -> bool {
        let left = self.left.load(Ordering::Relaxed) > 0;
        self.epoch.load(Ordering::Relaxed) != epoch || left || defers_now || self.owes()
    }

    /// Whether the run that begins, at the VM's `epoch`, is to be guarded.
    pub(crate) fn guards(&self, epoch: u32, defers_now: bool) -> bool {
        let guards = self.may_guard(epoch, defers_now);
        if self.epoch.swap(epoch, Ordering::Relaxed) != epoch {
            self.left.store(GUARDED, Ordering::Relaxed);
        }
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.saturating_sub(1), Ordering::Relaxed);
        guards
    }

    /// Whether there is an access whose memory was not there.
    pub(crate) fn owes(&self) -> bool {
        self.owed[1].load(Ordering::Relaxed) & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else KVM would end it with whatever is in the page.
    #[test]
    fn a_run_that_owes_an_access_is_guarded() {
        let vcpu = Vcpu::default();
        assert!(!vcpu.may_guard(0, false) && !vcpu.guards(0, false));
        vcpu.owed[1].store(1 | 2 << 8, Ordering::Relaxed);
        assert!(vcpu.may_guard(0, false) && vcpu.guards(0, false));
    }

    #[test]
    fn a_vcpu_that_is_unplugged_keeps_no_slot_from_being_deferred() {
        let vcpu = Vcpu::default();
        assert!(!vcpu.is_ready());
        vcpu.mapped_at(0x5000);
        vcpu.mapped_at(0x9000);
        // Beside them, and in the midst of one.
        assert!(!vcpu.unmapped(&(0x6000..0x9000)) && vcpu.pages().eq([0x5000, 0x9000]));
        assert!(!vcpu.unmapped(&(0x9800..0xa000)) && vcpu.pages().eq([0x5000]));
        assert!(vcpu.unmapped(&(0x5000..0x6000)) && !vcpu.has_page() && vcpu.is_ready());
        // It runs all the same.
        vcpu.inside.store(GUARDS, Ordering::SeqCst);
        assert!(!vcpu.is_ready());
        vcpu.mapped_at(0x7000);
        assert!(vcpu.pages().eq([0x7000]) && vcpu.is_ready());
    }
}
