//! What a VM is, and what is known of it.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering};

use crate::counts::VmCounts;
use crate::decide::map::PLACES;
use crate::decide::policy::Bill;
use crate::decide::rules::Rules;
use crate::decide::slot::Slot;
use crate::decide::slots::Slots;
use crate::lock::Lock;
use crate::vcpu::{VCPUS, Vcpu};
use crate::why::Why;
use crate::{mark, settings};

/// One VM, and what belongs to it. Except for the first field, zeroes are valid.
pub(crate) struct Machine {
    vm: MaybeUninit<Vm>,
    vcpus: [Vcpu; VCPUS],
    entries: [MaybeUninit<Slot>; PLACES],
}

impl Machine {
    /// # Safety
    /// `at` are zeroes of this size, aligned, nobody else's, and there for good.
    pub(crate) unsafe fn at(at: *mut c_void) -> &'static mut Self {
        // SAFETY: the caller's; atomics may be zero, and places unwritten.
        unsafe { &mut *at.cast() }
    }

    pub(crate) fn set_up(&'static mut self, rules: Rules) -> &'static Vm {
        self.vm.write(Vm::new(&self.vcpus, Slots::new(rules, &mut self.entries)))
    }
}

/// One VM.
pub(crate) struct Vm {
    /// Counts the VMs that were here, one after the other.
    generation: AtomicU32,
    /// Where its marks begin.
    mark: AtomicI64,
    /// One of the VMM's descriptors of it, when that was last seen.
    pub(super) fd: AtomicI32,
    vcpus: &'static [Vcpu],
    made: AtomicU32,
    pub(super) state: Lock<State>,
    /// Flips of slots that may churn, and their first appearance.
    pub(super) epoch: AtomicU32,
    /// How many slots are deferred; how often one was.
    pub(super) deferred: AtomicU32,
    pub(super) defers: AtomicU32,
    /// How often deferred slots were mapped.
    pub(super) promotions: AtomicU64,
    pub(crate) counts: VmCounts,
}

pub(crate) struct State {
    pub(crate) slots: Slots,
    pub(super) bill: Bill,
    /// Counts changes of what the VMM believes.
    pub(super) changes: u64,
    /// Why the VM is left alone.
    pub(crate) off: Option<Why>,
    /// What the VMM believes is no longer known.
    pub(super) blind: bool,
    pub(super) tells: Tells,
    /// Which of the two calls the VMM makes.
    pub(super) two: bool,
}

/// Whether KVM comes out of the guest for each access that it can't decode.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Tells {
    No,
    /// As it was asked to here.
    Asked,
    /// As the VMM has asked for it.
    Anyway,
}

impl Vm {
    pub(crate) fn new(vcpus: &'static [Vcpu], slots: Slots) -> Self {
        let state = State {
            slots,
            bill: Bill::new(settings::policy()),
            changes: 0,
            off: None,
            blind: false,
            tells: Tells::No,
            two: false,
        };
        Self {
            generation: AtomicU32::new(0),
            mark: AtomicI64::new(0),
            fd: AtomicI32::new(-1),
            vcpus,
            made: AtomicU32::new(0),
            state: Lock::new(state),
            epoch: AtomicU32::new(0),
            deferred: AtomicU32::new(0),
            defers: AtomicU32::new(0),
            promotions: AtomicU64::new(0),
            counts: VmCounts::default(),
        }
    }

    /// A new VM is here, `fd`, with its marks from `at` on. The one before it is
    /// gone, and its counts are `past`'s.
    pub(crate) fn begin(&self, fd: c_int, at: i64, rules: Rules, past: &VmCounts) {
        self.state.with(|state| {
            self.generation.fetch_add(1, Ordering::SeqCst);
            state.slots.clear(rules);
            state.bill = Bill::new(settings::policy());
            (state.changes, state.off, state.blind) = (state.changes + 1, None, false);
            (state.tells, state.two) = (Tells::No, false);
            self.vcpus().iter().for_each(Vcpu::clear);
            self.made.store(0, Ordering::SeqCst);
            self.mark.store(at, Ordering::SeqCst);
            self.fd.store(fd, Ordering::SeqCst);
            self.deferred.store(0, Ordering::SeqCst);
            self.counts.clear(fd, past);
        });
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// The mark of vCPU `index`, or of the VM itself.
    pub(crate) fn mark_of(&self, index: Option<usize>) -> i64 {
        self.mark.load(Ordering::Acquire) + index.map_or(0, |index| index as i64 + 1)
    }

    pub(crate) fn vcpus(&self) -> &'static [Vcpu] {
        &self.vcpus[..(self.made.load(Ordering::Acquire) as usize).min(self.vcpus.len())]
    }

    /// One more vCPU; its place.
    pub(crate) fn add_vcpu(&self) -> Option<usize> {
        let last = self.vcpus.len().min(mark::BYTES as usize - 1) as u32;
        let add = |made| (made < last).then_some(made + 1);
        let made = self.made.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).ok()?;
        Some(made as usize)
    }

    pub(crate) fn fd(&self) -> c_int {
        self.fd.load(Ordering::Acquire)
    }

    /// It has this number by now.
    pub(crate) fn is_at(&self, fd: c_int) {
        self.fd.store(fd, Ordering::Release);
    }

    /// What there is of it, for the statistics.
    pub(crate) fn with_state<R>(&self, what: impl FnOnce(&mut State) -> R) -> R {
        self.state.with(what)
    }

    /// How often deferred slots were mapped, for [`undecodable`](Self::undecodable).
    pub(crate) fn promotions(&self) -> u64 {
        self.promotions.load(Ordering::SeqCst)
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Whether a slot is deferred.
    pub(crate) fn defers_now(&self) -> bool {
        self.deferred.load(Ordering::SeqCst) > 0
    }

    /// How often one was.
    pub(crate) fn defers(&self) -> u32 {
        self.defers.load(Ordering::SeqCst)
    }
}
