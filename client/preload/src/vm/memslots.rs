//! Memslot calls: what is done in the place of those that the VMM makes.

use std::ffi::c_int;
use std::sync::atomic::Ordering;

use super::machine::{State, Tells, Vm};
use crate::decide::region::Region;
use crate::decide::rules::Way;
use crate::decide::slot::Repair;
use crate::decide::slots::{Action, Plan};
use crate::sys::now;
use crate::why::Why;

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

impl Vm {
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
            state.passed.since_off += u64::from(state.off.is_some());
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
        if state.blind {
            return self.call(pass).0;
        }
        state.changes += 1;
        if state.slots.is_managed(region.slot) && state.slots.changes_flags(region) {
            self.restart(state, kvm, region.slot);
        }
        // Whether KVM has the call at all it is to say.
        let plan = if asked.two && !state.two { Plan::PASS } else { state.slots.plan(region) };
        let next = |state: &State| state.slots.in_the_way(region).filter(|_| plan.repairs);
        while let Some(repair) = next(state) {
            self.counts.put_right.add(1);
            // As a call fails whose own allocations do.
            self.repair(state, kvm, &repair).inspect_err(|errno| {
                self.off(state, kvm, Why::repair(&repair, *errno));
            })?;
        }
        let action = self.act(state, kvm, plan.action);
        let answer = if action == Action::Pass { self.pass_on(state, asked, pass) } else { Ok(0) };
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
        self.says_deferred(state.slots.deferred() > 0);
        // vCPUs have to be ready for exits that are served well before there
        // are any.
        if state.slots.rules().way == Way::Defer && state.slots.may_churn(region.slot) {
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
        self.says_deferred(true);
        let as_before = || self.says_deferred(state.slots.deferred() > 0);
        if !self.is_ready() {
            as_before();
            return Ok(false);
        }
        if state.tells == Tells::No {
            kvm.tell_undecodable(true).inspect_err(|_| as_before())?;
            self.tells(state, Tells::Asked);
        }
        self.defers.fetch_add(1, Ordering::SeqCst);
        self.counts.deferred.add(1);
        Ok(true)
    }

    /// Makes one slot what the VMM believes it is.
    pub(super) fn repair(
        &self,
        state: &mut State,
        kvm: &dyn Kvm,
        repair: &Repair,
    ) -> Result<(), c_int> {
        self.counts.calls.add(1);
        let (done, ns) = self.timed(|| kvm.set_region(&repair.call(), state.two));
        done?;
        if let Repair::Map(_) = repair {
            state.bill.mapped(ns);
            self.counts.mapped.add(1);
            self.promotions.fetch_add(1, Ordering::SeqCst);
        }
        state.slots.repaired(repair);
        self.says_deferred(state.slots.deferred() > 0);
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
            state.passed.add(name);
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
        self.tell_no_more(state, kvm);
        state.off = Some(why);
    }

    /// The VMM asks itself to be told of accesses that KVM can't decode, or no
    /// longer.
    pub(crate) fn told_anyway(&self, on: bool) {
        let tells = if on { Tells::Anyway } else { Tells::No };
        self.state.with(|state| self.tells(state, tells));
    }

    /// Whether that is over: what KVM can't decode is then its own affair again.
    pub(super) fn tell_no_more(&self, state: &mut State, kvm: &dyn Kvm) -> bool {
        let over = state.tells == Tells::Asked && kvm.tell_undecodable(false).is_ok();
        if over {
            self.tells(state, Tells::No);
        }
        over
    }

    /// The call as it is.
    fn pass_on(
        &self,
        state: &mut State,
        asked: &Asked,
        pass: &mut dyn FnMut() -> Answer,
    ) -> Answer {
        let (answer, ns) = self.call(pass);
        if answer.is_ok() {
            state.two = asked.two;
        }
        if answer.is_ok() && asked.region.size == 0 {
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
