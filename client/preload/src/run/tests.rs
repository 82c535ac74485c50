//! Runs of files that are no vCPUs.

#![allow(clippy::unwrap_used)]

use std::ffi::c_long;
use std::os::fd::AsRawFd as _;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32};
use std::thread;

use kvm_bindings::{
    KVM_EXIT_ARM_NISV, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION,
};
use kvm_memslots::deferred::policy::Policy;

use super::*;
use crate::abi::{CREATE_VM, RUN};
use crate::decide::region::Region;
use crate::decide::rules::{Rules, Way};
use crate::vm::machine::Vm;
use crate::vm::memslots::Kvm as _;
use crate::vm::tests::{FLASH, Model, Under, among, ask, vm};
use crate::{mark, next};

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

/// KVM as the test below has it: it tells of what it can't decode while it was asked to.
static TOLD: AtomicPtr<Told> = AtomicPtr::new(null_mut());

/// How it tells.
const UNDECODABLE: u32 =
    if cfg!(target_arch = "aarch64") { KVM_EXIT_ARM_NISV } else { KVM_EXIT_INTERNAL_ERROR };

struct Told {
    vm: &'static Vm,
    vcpu: c_int,
    page: *mut u32,
    /// Whether the guest does what can't be decoded.
    does: AtomicBool,
}

extern "C" fn answers(fd: usize, request: usize, arg: usize) -> c_long {
    // SAFETY: null, or what stays.
    let told = unsafe { TOLD.load(Ordering::SeqCst).as_ref() };
    let Some(told) = told.filter(|told| told.vcpu == fd as c_int) else {
        // SAFETY: a call of another test's, which vouches for it.
        let done = unsafe { sys::any(libc::SYS_ioctl, [fd, request, arg, 0, 0, 0]) };
        return done.map_or_else(
            |errno| {
                sys::set_errno(errno);
                -1
            },
            |result| result as c_long,
        );
    };
    let tells = told.does.load(Ordering::SeqCst) && told.vm.asked_to_tell();
    let reason = if tells { UNDECODABLE } else { KVM_EXIT_HLT };
    for (at, value) in [(2, reason), (8, KVM_INTERNAL_ERROR_EMULATION)] {
        // SAFETY: in the page.
        unsafe { told.page.wrapping_add(at).write_volatile(value) };
    }
    0
}

/// Not while slots are deferred, not when none is any more, and not long after that.
#[test]
fn a_vmm_is_not_told_what_only_the_library_has_asked_for() {
    let name = "a_vmm_is_not_told_what_only_the_library_has_asked_for";
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let made = kvm.map_err(|error| error.raw_os_error()).and_then(|kvm| {
        // SAFETY: makes a VM.
        unsafe { sys::ioctl(kvm.as_raw_fd(), CREATE_VM, null_mut()) }.map_err(Some)
    });
    let of_kvm = match made {
        Ok(vm) => vm,
        Err(errno) => return eprintln!("SKIPPED {name}: no VM: errno {errno:?}"),
    };
    let file = marked(0);
    assert!(mark::set(of_kvm, 1));
    let vcpus: &'static [Vcpu] = Box::leak(Box::<[Vcpu; 1]>::default());
    let page = sys::map(4096).unwrap();
    vcpus[0].made_for(1);
    vcpus[0].mapped_at(page as u64);
    vcpus[0].has_mask(Some(0));
    let root = Root::alone().unwrap();
    let model = Model::default();
    let rules = Rules { way: Way::Defer, flips: 4, writable: false };
    let under = among(&model, 1, (vcpus, &root.deferring), rules, Policy::default());
    under.vm.is_at(of_kvm);
    let under: &'static Under = Box::leak(Box::new(under));
    let told: &'static Told = Box::leak(Box::new(Told {
        vm: &under.vm,
        vcpu: file.as_raw_fd(),
        page: page.cast(),
        does: AtomicBool::new(true),
    }));
    TOLD.store(std::ptr::from_ref(told).cast_mut(), Ordering::SeqCst);
    next::instead(answers);
    let known = Known::new(&under.vm, Some(&vcpus[0]), 0);
    let run = || {
        let call = Call { fd: file.as_raw_fd(), request: RUN, arg: null_mut() };
        assert_eq!(run(root, known, &vcpus[0], call), Some(0));
        // SAFETY: in the page.
        (unsafe { page.cast::<u32>().wrapping_add(2).read_volatile() }, under.vm.asked_to_tell())
    };
    let slot = Region { hva: sys::map(4096).unwrap() as u64, ..FLASH };
    let away = || ask(under, &model, &slot.gone()).unwrap();
    let back = || ask(under, &model, &slot).unwrap();
    back();
    for _ in 0..3 {
        away();
        back();
    }
    assert!(under.vm.defers_now() && under.vm.asked_to_tell());
    assert_eq!(run(), (KVM_EXIT_HLT, false));
    assert!(!under.vm.defers_now());
    // KVM has mapped it.
    model.set_region(&slot, false).unwrap();
    away();
    back();
    away();
    assert!(!under.vm.defers_now() && under.vm.asked_to_tell());
    assert_eq!(run(), (KVM_EXIT_HLT, false));
    back();
    away();
    told.does.store(false, Ordering::SeqCst);
    let quiet = (0..5_000).find(|_| run() == (KVM_EXIT_HLT, false));
    // Each flip has the next runs looked at.
    assert_eq!(quiet, Some(4_096));
}
