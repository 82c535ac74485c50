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
            if !deferred && vm.defers() == defers {
                return result;
            }
            let exit = abi::exit(self.vcpu.pages(), result.err().unwrap_or(0));
            if exit == Exit::Other || !self.known.is(self.call.fd) {
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
        (packed & 1 != 0).then(|| Mmio {
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
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::fd::AsRawFd as _;
    use std::ptr::null_mut;
    use std::sync::atomic::AtomicU32;
    use std::thread;

    use kvm_memslots::deferred::policy::Policy;

    use super::*;
    use crate::abi::RUN;
    use crate::decide::rules::{Rules, Way};
    use crate::mark;
    use crate::vm::tests::{FLASH, Model, among, ask, vm};

    /// Another thread may have the VM, and be in KVM with it: runs go on, guarded
    /// or not. Here they are runs of a file that is no vCPU.
    #[test]
    fn a_run_takes_no_lock() {
        const MARK: usize = 90;
        let file = marked(MARK);
        let fd = file.as_raw_fd();
        let vcpu: &'static Vcpu = Box::leak(Box::default());
        vcpu.has_mask(Some(0));
        vcpu.mapped_at(4096);
        let model = Model::default();
        let under = Box::leak(Box::new(vm(&model, Way::Defer, false, Policy::default())));
        let known = Known::new(&under.vm, Some(vcpu), MARK);
        let root = Root::alone().unwrap();
        let runs = || {
            under.vm.with_state(|_| {
                let run = move || {
                    let call = Call { fd, request: RUN, arg: null_mut() };
                    let result = run(root, known, vcpu, call);
                    (result, sys::errno())
                };
                thread::spawn(run).join().unwrap()
            })
        };
        assert_eq!(runs(), (Some(-1), libc::ENOTTY));
        assert_eq!(vcpu.inside.load(Ordering::Relaxed), OUTSIDE);
        // The next ones are guarded.
        ask(under, &model, &FLASH).unwrap();
        assert_eq!(under.vm.epoch(), 1);
        assert_eq!(runs(), (Some(-1), libc::ENOTTY));
    }

    /// A file that is marked, which no call of KVM's is for.
    fn marked(mark: usize) -> std::fs::File {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(mark::set(file.as_raw_fd(), mark));
        file
    }

    /// Numbers that are noted as a vCPU of one VM, and are one of another.
    #[test]
    fn a_run_is_of_what_its_number_is() {
        const FIRST: usize = 0;
        const SECOND: usize = 1;
        const VM: usize = 2;
        const OTHER: usize = 3;
        let [_vm, first, second] = [VM, FIRST, SECOND].map(marked);
        let vcpus: &'static [Vcpu] = Box::leak(Box::<[Vcpu; 2]>::default());
        vcpus[FIRST].made_for(OTHER);
        vcpus[SECOND].made_for(VM);
        for vcpu in vcpus {
            vcpu.mapped_at(4096);
        }
        let root = Root::alone().unwrap();
        let (model, idle) = (Model::default(), Model::default());
        let rules = Rules { way: Way::Defer, flips: 4, writable: false };
        let of = |model, mark| {
            let all = (vcpus, &root.deferring);
            &*Box::leak(Box::new(among(model, mark, all, rules, Policy::default())))
        };
        let (vm, other) = (of(&model, VM), of(&idle, OTHER));
        let known = Known::new(&other.vm, Some(&vcpus[FIRST]), FIRST);
        let run = |file: &std::fs::File| {
            let call = Call { fd: file.as_raw_fd(), request: RUN, arg: null_mut() };
            run(root, known, &vcpus[FIRST], call)
        };
        let back = |times| {
            for _ in 0..times {
                ask(vm, &model, &FLASH.gone()).unwrap();
                ask(vm, &model, &FLASH).unwrap();
            }
            vm.vm.defers_now()
        };
        ask(vm, &model, &FLASH).unwrap();
        assert!(!back(1), "too early");
        // Such a run begins before anything is deferred.
        vcpus[FIRST].enters(second.as_raw_fd());
        assert!(!back(6));
        // It was the other VM's.
        vcpus[FIRST].enters(first.as_raw_fd());
        assert!(back(1));
        // One that begins later.
        vcpus[FIRST].inside.store(OUTSIDE, Ordering::SeqCst);
        assert_eq!((run(&second), run(&first)), (None, Some(-1)));
        ask(vm, &model, &FLASH.gone()).unwrap();
        assert_eq!(run(&second), Some(-1));
    }

    /// Those that a run ends for are left for its end.
    #[test]
    fn signals_that_are_ignored_let_no_other_in() {
        static HANDLED: AtomicU32 = AtomicU32::new(0);
        extern "C" fn handler(_: c_int) {
            HANDLED.fetch_add(1, Ordering::SeqCst);
        }
        const OTHER: c_int = libc::SIGWINCH;
        let handler: extern "C" fn(c_int) = handler;
        // SAFETY: the handler adds to a count.
        unsafe { libc::signal(OTHER, handler as libc::sighandler_t) };
        let vcpu: &'static Vcpu = Box::leak(Box::default());
        // Not let in by KVM, as the VMM has asked.
        vcpu.has_mask(Some(1 << (OTHER - 1)));
        let model = Model::default();
        let under = Box::leak(Box::new(vm(&model, Way::Defer, false, Policy::default())));
        let known = Known::new(&under.vm, Some(vcpu), 0);
        let call = Call { fd: -1, request: RUN, arg: null_mut() };
        let mask = sys::set_mask(!0);
        for signal in [libc::SIGURG, OTHER] {
            // SAFETY: to this thread.
            unsafe { libc::raise(signal) };
        }
        let was_nothing = Guarded { known, vcpu, call, mask }.was_nothing();
        let waits = sys::pending() == 1 << (OTHER - 1);
        let handled = HANDLED.load(Ordering::SeqCst);
        sys::set_mask(mask);
        assert_eq!((was_nothing, waits, handled), (true, true, 0));
        assert_eq!(HANDLED.load(Ordering::SeqCst), 1);
    }

    /// Its mask of signals is not the one that was set here for another.
    #[test]
    fn a_run_changes_nothing_of_another_vcpus() {
        const MARK: usize = 94;
        let [first, second] = [MARK, 95].map(marked);
        let vcpu: &'static Vcpu = Box::leak(Box::default());
        vcpu.whose_mask.store(OURS, Ordering::Relaxed);
        let model = Model::default();
        let under = Box::leak(Box::new(vm(&model, Way::Defer, false, Policy::default())));
        let known = Known::new(&under.vm, Some(vcpu), MARK);
        let root = Root::alone().unwrap();
        let run = |file: &std::fs::File| {
            let call = Call { fd: file.as_raw_fd(), request: RUN, arg: null_mut() };
            (run(root, known, vcpu, call), vcpu.whose_mask.load(Ordering::Relaxed))
        };
        // It may be running, by another number.
        vcpu.inside.store(GUARDS, Ordering::Relaxed);
        assert_eq!(run(&second), (None, OURS));
        assert_eq!(vcpu.inside.load(Ordering::Relaxed), GUARDS);
        assert_eq!(run(&first), (Some(-1), NO_MASK));
        // Nothing is asked any more.
        assert_eq!(run(&second), (Some(-1), NO_MASK));
    }

    /// It may have had slots that were deferred.
    #[test]
    fn a_vm_that_is_gone_costs_runs_of_another_nothing() {
        const VCPU: usize = 91;
        const VM: usize = 92;
        const GONE: usize = 93;
        let _marks = mark::tests::MARKS_IN_USE.lock();
        let file = marked(VCPU);
        let vcpu: &'static Vcpu = Box::leak(Box::default());
        let root = Root::alone().unwrap();
        let all = (&[][..], &root.deferring);
        let rules = Rules { way: Way::Defer, flips: 4, writable: false };
        let model = Model::default();
        let under = Box::leak(Box::new(among(&model, VM, all, rules, Policy::default())));
        let known = Known::new(&under.vm, Some(vcpu), VCPU);
        root.deferring.put(GONE, true);
        for _ in 0..10_000 {
            let call = Call { fd: file.as_raw_fd(), request: RUN, arg: null_mut() };
            assert_eq!(run(root, known, vcpu, call), Some(-1));
        }
        assert!(!root.deferring.has(GONE));
    }
}
