//! One VM: carries out what `decide` says.
//!
//! One lock a VM is held over memslot calls, and for as long as serving one
//! access takes; never while a vCPU runs. A vCPU that comes out of the guest
//! takes it only once something has been deferred. An access that is served may
//! fault on host memory with the lock held (userfaultfd): a memslot change then
//! waits for that fault, as it does in KVM, whose page faults hold
//! `kvm->srcu`.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::abi::Exit;
use crate::copy::copy;
use crate::decide::policy::Bill;
use crate::decide::region::Region;
use crate::decide::slots::{Access, Action, Repair, Rules, Slots, Way};
use crate::process::{now, say};
use crate::stats::COUNTS;

/// The calls of a VM's.
pub(crate) trait Kvm: Send + Sync {
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

/// What the data of an MMIO exit are copied to or from.
pub(crate) struct Data {
    pub(crate) bytes: *mut u8,
    /// When the vCPU last went on after an exit that was served, if it has not
    /// come out for another reason since.
    pub(crate) went_on: Option<u64>,
}

/// One VM.
pub(crate) struct Vm {
    kvm: Box<dyn Kvm>,
    state: Mutex<State>,
    /// Whether anything was ever deferred.
    deferring: AtomicBool,
    /// How often deferred slots were mapped.
    promotions: AtomicU64,
    /// Whether writes can be for slots that are deferred.
    writable: bool,
}

struct State {
    slots: Slots,
    bill: Bill,
    /// The VM is left alone.
    off: bool,
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
    pub(crate) fn new(kvm: Box<dyn Kvm>, rules: Rules, bill: Bill) -> Self {
        let state = State {
            slots: Slots::new(rules),
            bill,
            off: rules.way == Way::AsAsked,
            blind: false,
            tells: Tells::No,
            two: false,
        };
        Self {
            kvm,
            state: Mutex::new(state),
            deferring: AtomicBool::new(false),
            promotions: AtomicU64::new(0),
            writable: rules.writable,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what the VMM asks for; `pass` is the call as it is.
    pub(crate) fn set_region(&self, asked: &Asked, pass: &mut dyn FnMut() -> Answer) -> Answer {
        let start = now();
        let mut state = self.state();
        let answer = self.set_region_locked(&mut state, asked, pass);
        drop(state);
        COUNTS.asked.add(1);
        COUNTS.refused.add(u64::from(answer.is_err()));
        COUNTS.asked_ns.add(now() - start);
        answer
    }

    fn set_region_locked(
        &self,
        state: &mut State,
        asked: &Asked,
        pass: &mut dyn FnMut() -> Answer,
    ) -> Answer {
        let region = &asked.region;
        state.two = asked.two;
        if state.blind {
            return call(pass).0;
        }
        if state.slots.is_managed(region.slot) && state.slots.changes_flags(region) {
            let why =
                format!("slot {} gets flags {:#x} (dirty logging?)", region.slot, region.flags);
            self.off(state, &why);
        }
        let plan = state.slots.plan(region);
        for repair in &plan.repairs {
            COUNTS.put_right.add(1);
            // As a call fails whose own allocations do.
            self.repair(state, repair).inspect_err(|errno| {
                self.off(state, &format!("{repair:x?} failed with errno {errno}"));
            })?;
        }
        let action = self.act(state, plan.action);
        let answer = if action == Action::Pass { pass_on(state, region, pass) } else { Ok(0) };
        if answer.is_ok() {
            state.slots.done(region, action);
        }
        if state.slots.deferred() == 0 {
            state.bill.settled();
        }
        answer
    }

    /// Does `action` instead of what was asked for; what is left to be done.
    fn act(&self, state: &mut State, action: Action) -> Action {
        let done = match action {
            Action::Pass => return action,
            Action::Trap(region) => self.flip(state, &region.trapping()),
            Action::Untrap(region) => self.flip(state, &region),
            Action::Defer => self.defer(state),
            Action::Forget => {
                COUNTS.unused.add(1);
                Ok(())
            }
        };
        let Err(errno) = done else { return action };
        // A slot that traps only is deleted by that; if it can't be, what the VMM
        // asks for is what clears the bit.
        self.off(state, &format!("{action:x?} failed with errno {errno}"));
        Action::Pass
    }

    fn flip(&self, state: &State, region: &Region) -> Result<(), c_int> {
        COUNTS.flips.add(1);
        timed(|| self.kvm.set_region(region, state.two)).0
    }

    fn defer(&self, state: &mut State) -> Result<(), c_int> {
        if state.tells == Tells::No {
            self.kvm.tell_undecodable(true)?;
            state.tells = Tells::Asked;
        }
        // Before the VMM goes on and a vCPU can come upon it.
        self.deferring.store(true, Ordering::SeqCst);
        COUNTS.deferred.add(1);
        Ok(())
    }

    /// Makes one slot what the VMM believes it is.
    fn repair(&self, state: &mut State, repair: &Repair) -> Result<(), c_int> {
        COUNTS.calls.add(1);
        let (done, ns) = timed(|| self.kvm.set_region(&repair.call(), state.two));
        done?;
        if let Repair::Map(_) = repair {
            state.bill.mapped(ns);
            COUNTS.mapped.add(1);
            self.promotions.fetch_add(1, Ordering::SeqCst);
        }
        state.slots.repaired(repair);
        Ok(())
    }

    /// Leaves the VM alone from now on; first, KVM gets what the VMM believes
    /// it has.
    pub(crate) fn switch_off(&self, why: &str) {
        self.off(&mut self.state(), why);
    }

    /// The same, if there are slots that are not as the VMM asked for them or
    /// may one day not be. What comes after `why` is not followed.
    pub(crate) fn not_followed(&self, why: &str, changes_slots: bool) {
        let mut state = self.state();
        if state.slots.manages_any() || changes_slots {
            self.off(&mut state, why);
        }
        state.blind |= changes_slots;
    }

    fn off(&self, state: &mut State, why: &str) {
        if std::mem::replace(&mut state.off, true) {
            return;
        }
        let mut left = String::new();
        for repair in state.slots.repairs() {
            COUNTS.put_right.add(1);
            if let Err(errno) = self.repair(state, &repair) {
                left = format!("; {repair:x?} failed with errno {errno}");
            }
        }
        state.slots.stop();
        self.tell_no_more(state);
        say(&format!("switched off: {why}{left}"));
        COUNTS.switched_off(&format!("{why}{left}"));
    }

    /// The VMM asks itself to be told of accesses that KVM can't decode, or no
    /// longer.
    pub(crate) fn told_anyway(&self, on: bool) {
        self.state().tells = if on { Tells::Anyway } else { Tells::No };
    }

    /// Whether that is over: what KVM can't decode is then its own affair again.
    fn tell_no_more(&self, state: &mut State) -> bool {
        let over = state.tells == Tells::Asked && self.kvm.tell_undecodable(false).is_ok();
        if over {
            state.tells = Tells::No;
        }
        over
    }

    /// How often deferred slots were mapped, for [`came_out`](Self::came_out).
    pub(crate) fn promotions(&self) -> u64 {
        self.promotions.load(Ordering::SeqCst)
    }

    /// Whether an exit may have to be looked at.
    pub(crate) fn may_defer(&self) -> bool {
        self.deferring.load(Ordering::SeqCst)
    }

    /// A vCPU came out of the guest; whether it is to go on without the VMM.
    /// `before` is what `promotions` was when it went in.
    ///
    /// # Safety
    /// `data` is what the exit says, to be read, or written for a read.
    pub(crate) unsafe fn came_out(&self, exit: Exit, data: &Data, before: u64) -> bool {
        match exit {
            Exit::Undecodable => self.undecodable(before),
            Exit::Mmio { write: true, .. } if !self.writable => false,
            Exit::Mmio { space, gpa, bytes, write } => {
                let mut state = self.state();
                let access = state.slots.access(space, gpa, bytes, write);
                let Access::Serve { pieces, deferred } = access else { return false };
                if state.blind {
                    return false;
                }
                // SAFETY: the slots are there as the VMM sees it, so it has
                // their memory mapped, and the lock keeps it from seeing them
                // gone meanwhile. The caller vouches for the other side.
                unsafe { copy(&pieces, data.bytes, write) };
                let served = if write { &COUNTS.writes } else { &COUNTS.reads };
                served.add(1);
                if deferred {
                    let ns = data.went_on.map(|then| now().saturating_sub(then));
                    state.bill.exit(ns);
                    if state.bill.is_due(state.slots.deferred()) && self.promote(&mut state) {
                        COUNTS.promoted_by_exits.add(1);
                    }
                }
                true
            }
            Exit::Other => false,
        }
    }

    fn undecodable(&self, before: u64) -> bool {
        let mut state = self.state();
        if state.slots.deferred() > 0 {
            COUNTS.promoted_by_undecodable.add(1);
            return self.promote(&mut state);
        }
        // Another thread has mapped meanwhile what it was about.
        if self.promotions() != before {
            return true;
        }
        // Not ours. KVM is to do with it what it does when nobody asks.
        self.tell_no_more(&mut state)
    }

    /// Maps what is deferred; whether all is mapped.
    fn promote(&self, state: &mut State) -> bool {
        let mut all = true;
        for repair in state.slots.repairs() {
            if let (Repair::Map(region), Err(errno)) = (repair, self.repair(state, &repair)) {
                say(&format!("mapping slot {} failed with errno {errno}", region.slot));
                all = false;
            }
        }
        state.bill.settled();
        all
    }
}

/// The call as it is.
fn pass_on(state: &mut State, region: &Region, pass: &mut dyn FnMut() -> Answer) -> Answer {
    let (answer, ns) = call(pass);
    if answer.is_ok() && region.size == 0 {
        state.bill.unmapped(ns);
    } else if answer.is_ok() {
        state.bill.mapped(ns);
    }
    answer
}

/// The same, counted.
fn call(pass: &mut dyn FnMut() -> Answer) -> (Answer, u64) {
    COUNTS.calls.add(1);
    timed(pass)
}

fn timed<T>(call: impl FnOnce() -> T) -> (T, u64) {
    let start = now();
    let done = call();
    let ns = now() - start;
    COUNTS.called(ns);
    (done, ns)
}

#[cfg(test)]
mod tests;
