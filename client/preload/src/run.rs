//! `KVM_RUN`.
//!
//! An exit that is served never reaches the VMM's loop, where it would look
//! whether a signal handler has asked it to stop. So no handler may run between
//! two `KVM_RUN`s that are one to the VMM: all signals are blocked around them,
//! and KVM lets them in while the guest runs (`KVM_SET_SIGNAL_MASK`), ending
//! that run with `EINTR`. A vCPU that may meet exits to be served goes in like
//! that from the first; slots are not deferred while one is inside that did not.

use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering;

use crate::abi::{self, Exit, SET_SIGNAL_MASK, SignalMask};
use crate::call::Call;
use crate::decide::access::Mmio;
use crate::kvm::Unasked;
use crate::root::{Known, Root};
use crate::vcpu::{GUARDS, NO_MASK, OF_VMM, OURS, OUTSIDE, Vcpu};
use crate::vm::exits::Served;
use crate::why::Why;
use crate::{memory, sys};

/// `KVM_RUN`, until there is something for the VMM. Not where it matters what the number
/// stands for, and that is something else by now.
pub(crate) fn run(root: &Root, known: Known, vcpu: &Vcpu, call: Call) -> Option<c_int> {
    let vm = known.vm;
    let another = || root.deferring.has_other(vm.mark);
    let lifts = vcpu.whose_mask.load(Ordering::Relaxed) == OURS;
    // Neither its mask of signals nor its page is another vCPU's, nor need that one's
    // VM be this one; nor is what is noted of it to change: it may be running.
    let asked = lifts || another() || vcpu.may_guard(vm.epoch(), vm.defers_now());
    if asked && !known.is(call.fd) {
        return None;
    }
    // First said, then looked: who defers a slot does it the other way round.
    vcpu.enters(call.fd);
    let (guards, another) = (vcpu.guards(vm.epoch(), vm.defers_now()), another());
    if !asked && (guards || another) && !known.is(call.fd) {
        vcpu.inside.store(OUTSIDE, Ordering::Release);
        return None;
    }
    if !guards {
        if another && vcpu.asks_often() {
            root.leave_gone();
        }
        if lifts {
            lift(vcpu, call.fd);
        }
        if vm.asked_to_tell() {
            vm.is_quiet(&Unasked(vm));
        }
        let result = call.plain();
        vcpu.inside.store(OUTSIDE, Ordering::Release);
        return Some(result);
    }
    if !vcpu.has_page() && vm.defers_now() {
        vm.switch_off(&Unasked(vm), Why::of("a vCPU runs whose page was not mapped"));
    }
    let before = sys::errno();
    vcpu.is_run_by(sys::thread());
    let mask = sys::set_mask(!0);
    let result = if let_in(vcpu, call.fd, mask) {
        vcpu.inside.store(GUARDS, Ordering::SeqCst);
        Guarded { known, vcpu, call, mask }.run()
    } else {
        vm.switch_off(&Unasked(vm), Why::of("KVM_SET_SIGNAL_MASK was refused"));
        sys::set_mask(mask);
        call.pass().map_err(|()| sys::errno())
    };
    vcpu.inside.store(OUTSIDE, Ordering::Release);
    // What has come meanwhile is handled here.
    sys::set_mask(mask);
    sys::set_errno(result.err().unwrap_or(before));
    Some(result.unwrap_or(-1))
}

/// Leaves KVM's mask of signals as the VMM left it: none.
pub(crate) fn lift(vcpu: &Vcpu, fd: c_int) {
    // SAFETY: takes no structure; there is no mask after that.
    let _ = unsafe { sys::ioctl(fd, SET_SIGNAL_MASK, std::ptr::null_mut()) };
    vcpu.whose_mask.store(NO_MASK, Ordering::Relaxed);
}

/// Has KVM let signals in as `mask`, unless the VMM has said which.
fn let_in(vcpu: &Vcpu, fd: c_int, mask: u64) -> bool {
    match vcpu.whose_mask.load(Ordering::Relaxed) {
        OF_VMM => return true,
        OURS if vcpu.mask.load(Ordering::Relaxed) == mask => return true,
        _ => {}
    }
    let mut set = SignalMask::new(mask);
    let at: *mut SignalMask = &raw mut set;
    // SAFETY: the structure that the request takes.
    let done = unsafe { sys::ioctl(fd, SET_SIGNAL_MASK, at.cast::<c_void>()) }.is_ok();
    if done {
        vcpu.mask.store(mask, Ordering::Relaxed);
        vcpu.whose_mask.store(OURS, Ordering::Relaxed);
    }
    done
}

/// A run while no signal handler runs outside the guest.
struct Guarded<'a> {
    known: Known,
    vcpu: &'a Vcpu,
    call: Call,
    /// The thread's mask, as the VMM has it.
    mask: u64,
}

impl Guarded<'_> {
    fn run(&self) -> Result<c_int, c_int> {
        let vm = self.known.vm;
        let mut since = None;
        if let Some(owed) = self.owed() {
            match self.serve(owed, None) {
                Served::Fault(errno) => return Err(errno),
                // The slot is gone: it is the VMM's, as it came out.
                Served::No => return Ok(0),
                Served::Again => {}
            }
        }
        loop {
            let (promotions, defers, deferred) = (vm.promotions(), vm.defers(), vm.defers_now());
            let result = self.call.pass().map_err(|()| sys::errno());
            let came_out = sys::now();
            if result == Err(libc::EINTR) && self.was_nothing() {
                since = None;
                continue;
            }
            let serves = deferred || vm.defers() != defers;
            if !serves && !vm.asked_to_tell() {
                return result;
            }
            let exit = abi::exit(self.vcpu.pages(), result.err().unwrap_or(0));
            let ours = exit == Exit::Undecodable || serves && exit != Exit::Other;
            if !ours || !self.known.is(self.call.fd) {
                return result;
            }
            let again = match exit {
                Exit::Mmio(mmio) => match self.serve(mmio, since) {
                    Served::Fault(errno) => return Err(errno),
                    served => served == Served::Again,
                },
                _ => vm.undecodable(&Unasked(vm), promotions),
            };
            if !again {
                return result;
            }
            since = Some(came_out);
        }
    }

    /// Serves an access, if that is to be done here, and notes one that can't be
    /// as its memory is not there: KVM would try it again.
    fn serve(&self, mmio: Mmio, since: Option<u64>) -> Served {
        let vm = self.known.vm;
        let mut places = self.vcpu.pages().map(abi::data);
        let mut data = [0; 8];
        // Where the VMM has unmapped the page nobody can serve anything.
        if mmio.write && !places.any(|at| memory::read(at, &mut data).is_ok()) {
            return Served::No;
        }
        let served = vm.serve(&Unasked(vm), mmio, &mut data, since);
        let owes = matches!(served, Served::Fault(_));
        let packed = 1 | (mmio.bytes as u64) << 8 | u64::from(mmio.write) << 16;
        self.vcpu.owed[0].store(mmio.gpa, Ordering::Relaxed);
        let space = u64::from(mmio.space) << 32;
        self.vcpu.owed[1].store(if owes { packed | space } else { 0 }, Ordering::Relaxed);
        if served == Served::Again && !mmio.write {
            let Some(bytes) = data.get(..mmio.bytes) else { return Served::No };
            // A place may be one that is only read from.
            if !places.any(|at| memory::write(at, bytes).is_ok()) {
                return Served::No;
            }
        }
        served
    }

    fn owed(&self) -> Option<Mmio> {
        let packed = self.vcpu.owed[1].load(Ordering::Relaxed);
        self.vcpu.owes().then(|| Mmio {
            space: (packed >> 32) as u32,
            gpa: self.vcpu.owed[0].load(Ordering::Relaxed),
            bytes: (packed >> 8) as usize & 0xff,
            write: packed >> 16 & 1 != 0,
        })
    }

    /// Whether the run ended for signals only that are ignored. Blocked, they
    /// wait all the same; without the library they would have gone unnoticed.
    fn was_nothing(&self) -> bool {
        // KVM's mask is this one, whoever has set it. What the thread itself
        // blocks waits, and ends a run, without the library too.
        let waiting = sys::pending() & !self.vcpu.mask.load(Ordering::Relaxed);
        let mut signals = (1..=64).filter(|signal| waiting & 1 << (signal - 1) != 0);
        let goes = |signal: c_int| self.mask & 1 << (signal - 1) == 0 && sys::is_ignored(signal);
        if waiting == 0 || !signals.all(goes) {
            return false;
        }
        // They go, and no other comes in: the guest goes on without its handler's being
        // heard.
        sys::set_mask(!waiting);
        sys::set_mask(!0);
        true
    }
}

#[cfg(test)]
mod tests;
