//! What a VM is, and what is known of it.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use crate::counts::VmCounts;
use crate::decide::map::PLACES;
use crate::decide::policy::Bill;
use crate::decide::rules::Rules;
use crate::decide::slot::Slot;
use crate::decide::slots::Slots;
use crate::lock::Lock;
use crate::mark::{self, Set};
use crate::settings;
use crate::vcpu::Vcpu;
use crate::why::Why;

/// One VM, and what belongs to it.
pub(crate) struct Machine {
    vm: MaybeUninit<Vm>,
    entries: [MaybeUninit<Slot>; PLACES],
}

impl Machine {
    /// # Safety
    /// `at` are zeroes of this size, aligned, nobody else's, and there for good.
    pub(crate) unsafe fn at(at: *mut c_void) -> &'static mut Self {
        // SAFETY: the caller's; what may be unwritten.
        unsafe { &mut *at.cast() }
    }

    /// The VM that was made as `fd` and has mark `mark`, of `all`.
    pub(crate) fn set_up(
        &'static mut self,
        fd: c_int,
        mark: usize,
        all: All,
        rules: Rules,
    ) -> &'static Vm {
        self.vm.write(Vm::new(fd, mark, all, Slots::new(rules, &mut self.entries)))
    }
}

/// The vCPUs of all VMs of the process, by their marks, and which VMs have deferred slots.
pub(crate) type All = (&'static [Vcpu], &'static Set);

/// One VM.
pub(crate) struct Vm {
    /// The descriptor that it was made as.
    pub(crate) made_as: c_int,
    pub(crate) mark: usize,
    /// One of the VMM's descriptors of it, when that was last seen.
    pub(super) fd: AtomicI32,
    all: All,
    pub(super) state: Lock<State>,
    /// Flips of slots that may churn, and their first appearance.
    pub(super) epoch: AtomicU32,
    /// Whether a slot is deferred; how often one was.
    deferred: AtomicBool,
    pub(super) defers: AtomicU32,
    /// How often deferred slots were mapped.
    pub(super) promotions: AtomicU64,
    /// Whether KVM tells of what it can't decode as it was asked to here.
    asked_to_tell: AtomicBool,
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
    /// Which of the two calls KVM took last: an older one has but the first.
    pub(super) two: bool,
    /// Calls that were passed on without being followed.
    pub(crate) passed: Passed,
}

/// Calls that were passed on without being followed.
#[derive(Default)]
pub(crate) struct Passed {
    /// Those that change or read slots, by name. There are no more.
    pub(crate) calls: [(&'static str, u64); 8],
    /// Memslot calls since the VM is left alone.
    pub(crate) since_off: u64,
}

impl Passed {
    pub(super) fn add(&mut self, name: &'static str) {
        let place = self.calls.iter_mut().find(|(is, _)| *is == name || is.is_empty());
        if let Some((is, count)) = place {
            *is = name;
            *count += 1;
        }
    }
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
    pub(crate) fn new(fd: c_int, mark: usize, all: All, slots: Slots) -> Self {
        let state = State {
            slots,
            bill: Bill::new(settings::policy()),
            changes: 0,
            off: None,
            blind: false,
            tells: Tells::No,
            two: false,
            passed: Passed::default(),
        };
        Self {
            made_as: fd,
            mark,
            fd: AtomicI32::new(fd),
            all,
            state: Lock::new(state),
            epoch: AtomicU32::new(0),
            deferred: AtomicBool::new(false),
            defers: AtomicU32::new(0),
            promotions: AtomicU64::new(0),
            asked_to_tell: AtomicBool::new(false),
            counts: VmCounts::default(),
        }
    }

    /// Whether no exit of it can be met by a run that would lose a signal over it. A run
    /// that another VM's vCPU is noted for is that one's if its number says so: what was
    /// closed unseen may be a vCPU of this VM by now.
    pub(super) fn is_ready(&self) -> bool {
        self.all.0.iter().enumerate().all(|(mark, vcpu)| match vcpu.vm() {
            None => true,
            Some(vm) if vm == self.mark => vcpu.is_ready(),
            Some(_) => vcpu.lifted().is_none_or(|number| mark::is(number, mark)),
        })
    }

    /// Says, to its vCPUs and to those of others, whether a slot is deferred.
    pub(super) fn says_deferred(&self, is: bool) {
        self.deferred.store(is, Ordering::SeqCst);
        self.all.1.put(self.mark, is);
    }

    pub(crate) fn fd(&self) -> c_int {
        self.fd.load(Ordering::Acquire)
    }

    /// It has this number by now.
    pub(crate) fn is_at(&self, fd: c_int) {
        self.fd.store(fd, Ordering::Release);
    }

    /// What there is of it.
    pub(crate) fn with_state<R>(&self, what: impl FnOnce(&mut State) -> R) -> R {
        self.state.with(what)
    }

    /// The same, for the statistics, which the end of the program waits for: not if a
    /// call of another thread's takes longer than a second, as plain would end it.
    pub(crate) fn with_state_soon<R>(&self, what: impl FnOnce(&mut State) -> R) -> Option<R> {
        self.state.with_soon(1_000_000_000, what)
    }

    /// KVM tells of what it can't decode, or no longer.
    pub(super) fn tells(&self, state: &mut State, tells: Tells) {
        state.tells = tells;
        self.asked_to_tell.store(tells == Tells::Asked, Ordering::SeqCst);
    }

    /// Whether it does as it was asked to here: not all of that is the VMM's to know.
    pub(crate) fn asked_to_tell(&self) -> bool {
        self.asked_to_tell.load(Ordering::SeqCst)
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
        self.deferred.load(Ordering::SeqCst)
    }

    /// How often one was.
    pub(crate) fn defers(&self) -> u32 {
        self.defers.load(Ordering::SeqCst)
    }
}
