//! One VM: carries out what `decide` says.
//!
//! One lock a VM is held over memslot calls, and while it is decided what becomes
//! of an exit; never while a vCPU runs or while guest memory is read.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering};

use crate::decide::map::PLACES;
use crate::decide::policy::Bill;
use crate::decide::region::Region;
use crate::decide::slots::{Access, Action, Repair, Rules, Slot, Slots, Way};
use crate::lock::Lock;
use crate::settings;
use crate::stats::{VmCounts, Why};
use crate::sys::now;
use crate::vcpu::{VCPUS, Vcpu};
use crate::{mark, memory};

/// The calls of a VM's.
pub(crate) trait Kvm {
    /// `KVM_SET_USER_MEMORY_REGION`, or `..._REGION2` if `two`.
    ///
    /// # Errors
    /// The errno.
    fn set_region(&self, region: &Region, two: bool) -> Result<(), c_int>;

    /// Has KVM come out, or no longer, of the guest for every access that it
    /// can't decode.
    ///
    /// # Errors
    /// The errno.
    fn tell_undecodable(&self, on: bool) -> Result<(), c_int>;
}

/// What the VMM asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) region: Region,
    /// By `KVM_SET_USER_MEMORY_REGION2`, which is used in its place then.
    pub(crate) two: bool,
}

/// How a call of the VMM's ends: its result and its errno.
pub(crate) type Answer = Result<c_int, c_int>;

/// An access of a guest's that came out as MMIO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mmio {
    /// The address space.
    pub(crate) space: u32,
    pub(crate) gpa: u64,
    /// 8 at most.
    pub(crate) bytes: usize,
    pub(crate) write: bool,
}

/// What became of an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Served {
    /// Nothing: it is for the VMM.
    No,
    /// The vCPU is to go on.
    Again,
    /// The memory is not there: what KVM would have answered.
    Fault(c_int),
}

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
    fd: AtomicI32,
    vcpus: &'static [Vcpu],
    made: AtomicU32,
    state: Lock<State>,
    /// Flips of slots that may churn, and their first appearance.
    epoch: AtomicU32,
    /// How many slots are deferred; how often one was.
    deferred: AtomicU32,
    defers: AtomicU32,
    /// How often deferred slots were mapped.
    promotions: AtomicU64,
    /// Whether calls are recorded.
    followed: AtomicBool,
    pub(crate) counts: VmCounts,
}

pub(crate) struct State {
    pub(crate) slots: Slots,
    bill: Bill,
    /// Counts changes of what the VMM believes.
    changes: u64,
    /// Why the VM is left alone.
    pub(crate) off: Option<Why>,
    /// What the VMM believes is no longer known.
    blind: bool,
    tells: Tells,
    /// Which of the two calls the VMM makes.
    two: bool,
}

/// Whether KVM comes out of the guest for each access that it can't decode.
#[derive(Clone, Copy, PartialEq)]
enum Tells {
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
            followed: AtomicBool::new(true),
            counts: VmCounts::default(),
        }
    }

    /// A new VM is here, `fd`, with its marks from `at` on. The one before it is
    /// gone.
    pub(crate) fn begin(&self, fd: c_int, at: i64, rules: Rules) {
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
            self.followed.store(true, Ordering::SeqCst);
            self.counts.clear(fd);
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

    /// What there is of it, for the statistics.
    pub(crate) fn with_state<R>(&self, what: impl FnOnce(&mut State) -> R) -> R {
        self.state.with(what)
    }

    /// Does what the VMM asks for; `pass` is the call as it is, `fd` the number
    /// that it comes by.
    pub(crate) fn set_region(
        &self,
        fd: c_int,
        kvm: &dyn Kvm,
        asked: &Asked,
        pass: &mut dyn FnMut() -> Answer,
    ) -> Answer {
        let start = now();
        self.fd.store(fd, Ordering::Release);
        self.state.with(|state| {
            let calls = self.counts.calls_and_flips();
            let answer = self.set_region_locked(state, kvm, asked, pass);
            let ns = now().saturating_sub(start);
            self.counts.asked.add(1);
            self.counts.refused.add(u64::from(answer.is_err()));
            self.counts.asked_ns.add(ns);
            let calls = self.counts.calls_and_flips() - calls;
            if let Some(counts) = state.slots.counts(asked.region.slot) {
                counts.asked += 1;
                counts.asked_ns += ns;
                counts.calls += calls;
            }
            answer
        })
    }

    fn set_region_locked(
        &self,
        state: &mut State,
        kvm: &dyn Kvm,
        asked: &Asked,
        pass: &mut dyn FnMut() -> Answer,
    ) -> Answer {
        let region = &asked.region;
        state.two = asked.two;
        if state.blind {
            return self.call(pass).0;
        }
        state.changes += 1;
        if state.slots.is_managed(region.slot) && state.slots.changes_flags(region) {
            self.restart(state, kvm, region.slot);
        }
        let plan = state.slots.plan(region);
        let next = |state: &State| state.slots.in_the_way(region).filter(|_| plan.repairs);
        while let Some(repair) = next(state) {
            self.counts.put_right.add(1);
            // As a call fails whose own allocations do.
            self.repair(state, kvm, &repair).inspect_err(|errno| {
                self.off(state, kvm, Why::repair(&repair, *errno));
            })?;
        }
        let action = self.act(state, kvm, plan.action);
        let answer = if action == Action::Pass { self.pass_on(state, region, pass) } else { Ok(0) };
        if answer.is_ok() {
            self.done(state, region, action);
        }
        if state.slots.deferred() == 0 {
            state.bill.settled();
        }
        answer
    }

    fn done(&self, state: &mut State, region: &Region, action: Action) {
        state.slots.done(region, action);
        self.deferred.store(state.slots.deferred() as u32, Ordering::SeqCst);
        let rules = state.slots.rules();
        // vCPUs have to be ready for exits that are served well before there
        // are any.
        if rules.way == Way::Defer && (region.size == 0 || rules.allow(region.flags)) {
            self.epoch.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Does `action` instead of what was asked for; what is left to be done.
    fn act(&self, state: &mut State, kvm: &dyn Kvm, action: Action) -> Action {
        let done = match action {
            Action::Pass => return action,
            Action::Trap(region) => self.flip(state, kvm, &region.trapping()),
            Action::Untrap(region) => self.flip(state, kvm, &region),
            Action::Defer => match self.defer(state, kvm) {
                Ok(false) => return Action::Pass,
                done => done.map(drop),
            },
            Action::Forget => {
                self.counts.unused.add(1);
                Ok(())
            }
        };
        let Err(errno) = done else { return action };
        // A slot that traps only is deleted by that; if it can't be, what the VMM
        // asks for is what clears the bit.
        self.off(state, kvm, Why::action(&action, errno));
        Action::Pass
    }

    fn flip(&self, state: &State, kvm: &dyn Kvm, region: &Region) -> Result<(), c_int> {
        self.counts.flips.add(1);
        self.timed(|| kvm.set_region(region, state.two)).0
    }

    /// Whether a slot may be deferred now: a vCPU that went into the guest before
    /// it had to reckon with that could lose a signal.
    fn defer(&self, state: &mut State, kvm: &dyn Kvm) -> Result<bool, c_int> {
        // First said, then looked: a vCPU does it the other way round.
        self.deferred.fetch_add(1, Ordering::SeqCst);
        if !self.vcpus().iter().all(Vcpu::is_ready) {
            self.deferred.fetch_sub(1, Ordering::SeqCst);
            return Ok(false);
        }
        if state.tells == Tells::No {
            kvm.tell_undecodable(true).inspect_err(|_| {
                self.deferred.fetch_sub(1, Ordering::SeqCst);
            })?;
            state.tells = Tells::Asked;
        }
        self.defers.fetch_add(1, Ordering::SeqCst);
        self.counts.deferred.add(1);
        Ok(true)
    }

    /// Makes one slot what the VMM believes it is.
    fn repair(&self, state: &mut State, kvm: &dyn Kvm, repair: &Repair) -> Result<(), c_int> {
        self.counts.calls.add(1);
        let (done, ns) = self.timed(|| kvm.set_region(&repair.call(), state.two));
        done?;
        if let Repair::Map(_) = repair {
            state.bill.mapped(ns);
            self.counts.mapped.add(1);
            self.promotions.fetch_add(1, Ordering::SeqCst);
        }
        state.slots.repaired(repair);
        self.deferred.store(state.slots.deferred() as u32, Ordering::SeqCst);
        Ok(())
    }

    /// One slot is left alone until it churns again.
    fn restart(&self, state: &mut State, kvm: &dyn Kvm, slot: u32) {
        if let Some(repair) = state.slots.repair_of(slot) {
            self.counts.put_right.add(1);
            if let Err(errno) = self.repair(state, kvm, &repair) {
                return self.off(state, kvm, Why::repair(&repair, errno));
            }
        }
        state.slots.restart(slot);
    }

    /// Leaves the VM alone from now on; first, KVM gets what the VMM believes
    /// it has.
    pub(crate) fn switch_off(&self, kvm: &dyn Kvm, why: Why) {
        self.state.with(|state| self.off(state, kvm, why));
    }

    /// The same, if there are slots that are not as the VMM asked for them or
    /// may one day not be. What comes after is not followed; `changes` says
    /// whether it can make other slots.
    pub(crate) fn not_followed(&self, kvm: &dyn Kvm, name: &'static str, changes: bool) {
        self.state.with(|state| {
            if state.slots.manages_any() || changes {
                self.off(state, kvm, Why::not_followed(name));
            }
            state.blind |= changes;
        });
    }

    /// The dirty log of one slot is asked for.
    pub(crate) fn logged(&self, kvm: &dyn Kvm, slot: u32) {
        self.state.with(|state| {
            if state.slots.is_managed(slot) {
                self.restart(state, kvm, slot);
            }
        });
    }

    fn off(&self, state: &mut State, kvm: &dyn Kvm, mut why: Why) {
        if state.off.is_some() {
            return;
        }
        state.off = Some(why);
        let mut from = 0;
        while let Some((at, repair)) = state.slots.repair(from) {
            self.counts.put_right.add(1);
            if let Err(errno) = self.repair(state, kvm, &repair) {
                why.left = Some(errno);
                from = at + 1;
            }
        }
        state.slots.stop();
        Self::tell_no_more(state, kvm);
        state.off = Some(why);
    }

    /// The VMM asks itself to be told of accesses that KVM can't decode, or no
    /// longer.
    pub(crate) fn told_anyway(&self, on: bool) {
        self.state.with(|state| state.tells = if on { Tells::Anyway } else { Tells::No });
    }

    /// Whether that is over: what KVM can't decode is then its own affair again.
    fn tell_no_more(state: &mut State, kvm: &dyn Kvm) -> bool {
        let over = state.tells == Tells::Asked && kvm.tell_undecodable(false).is_ok();
        if over {
            state.tells = Tells::No;
        }
        over
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

    /// An access came out of the guest as MMIO. `data` is what it wrote, or gets
    /// what it is to read. `since` is when the exit before it came out, if it
    /// was served.
    pub(crate) fn serve(
        &self,
        kvm: &dyn Kvm,
        access: Mmio,
        data: &mut [u8; 8],
        since: Option<u64>,
    ) -> Served {
        let Mmio { space, gpa, bytes, write } = access;
        loop {
            let seen = self.state.with(|state| {
                let found = state.slots.access(space, gpa, bytes, write);
                match found {
                    Access::Serve { .. } if state.blind => None,
                    Access::Serve { pieces, .. } if write => {
                        // Not once the slot may be gone.
                        let written = copy(&pieces, data, true);
                        Some((pieces, state.changes, written))
                    }
                    Access::Serve { pieces, .. } => Some((pieces, state.changes, Ok(()))),
                    Access::Pass => None,
                }
            });
            let Some((pieces, changes, mut copied)) = seen else { return Served::No };
            if !write {
                copied = copy(&pieces, data, false);
            }
            let done = self.state.with(|state| {
                // What was read may have been read after the slot was gone.
                if !write && state.changes != changes {
                    return None;
                }
                if let Err(errno) = copied {
                    return Some(Served::Fault(errno));
                }
                self.served(state, kvm, &access, since);
                Some(Served::Again)
            });
            if let Some(done) = done {
                return done;
            }
        }
    }

    fn served(&self, state: &mut State, kvm: &dyn Kvm, access: &Mmio, since: Option<u64>) {
        (if access.write { &self.counts.writes } else { &self.counts.reads }).add(1);
        let found = state.slots.access(access.space, access.gpa, access.bytes, access.write);
        let Access::Serve { slot, deferred, .. } = found else { return };
        if let Some(counts) = state.slots.counts(slot) {
            counts.exits += 1;
        }
        if deferred {
            state.bill.exit(since.map(|then| now().saturating_sub(then)));
            if state.bill.is_due(state.slots.deferred()) && self.promote(state, kvm) {
                self.counts.promoted_by_exits.add(1);
            }
        }
    }

    /// A vCPU came out of the guest for an access that KVM can't describe; whether
    /// it is to go on without the VMM. `before` is what `promotions` was when it
    /// went in.
    pub(crate) fn undecodable(&self, kvm: &dyn Kvm, before: u64) -> bool {
        self.state.with(|state| {
            if state.slots.deferred() > 0 {
                self.counts.promoted_by_undecodable.add(1);
                return self.promote(state, kvm);
            }
            // Another thread has mapped meanwhile what it was about.
            if self.promotions() != before {
                return true;
            }
            // Not ours. KVM is to do with it what it does when nobody asks.
            Self::tell_no_more(state, kvm)
        })
    }

    /// Maps what is deferred; whether all is mapped.
    fn promote(&self, state: &mut State, kvm: &dyn Kvm) -> bool {
        let mut from = 0;
        while let Some((at, repair)) = state.slots.repair(from) {
            let map = matches!(repair, Repair::Map(_));
            if !map || self.repair(state, kvm, &repair).is_err() {
                from = at + 1;
            }
        }
        state.bill.settled();
        state.slots.deferred() == 0
    }

    /// The call as it is.
    fn pass_on(
        &self,
        state: &mut State,
        region: &Region,
        pass: &mut dyn FnMut() -> Answer,
    ) -> Answer {
        let (answer, ns) = self.call(pass);
        if answer.is_ok() && region.size == 0 {
            state.bill.unmapped(ns);
        } else if answer.is_ok() {
            state.bill.mapped(ns);
        }
        answer
    }

    /// The same, counted.
    fn call(&self, pass: &mut dyn FnMut() -> Answer) -> (Answer, u64) {
        self.counts.calls.add(1);
        self.timed(pass)
    }

    fn timed<T>(&self, call: impl FnOnce() -> T) -> (T, u64) {
        let start = now();
        let done = call();
        let ns = now().saturating_sub(start);
        self.counts.called(ns);
        (done, ns)
    }
}

/// Between the pieces and the data of an exit.
fn copy(
    pieces: &[crate::decide::slots::Piece; 2],
    data: &mut [u8; 8],
    write: bool,
) -> Result<(), c_int> {
    let mut done = 0;
    for piece in pieces.iter().filter(|piece| piece.bytes > 0) {
        let Some(part) = data.get_mut(done..done + piece.bytes) else { return Err(libc::EFAULT) };
        if write {
            memory::write(piece.hva, part)?;
        } else {
            memory::read_steady(piece.hva, part)?;
        }
        done += piece.bytes;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
