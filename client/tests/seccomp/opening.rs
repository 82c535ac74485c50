//! Opening a VM, in each of the ways that ask KVM for something.

use std::fs::File;

use kvm_memslots::backend::OpenError;
use kvm_memslots::seccomp::{Call, OPEN, ORDER_CHECK, SCRATCH_VM, SLOT_ZAP_ALL};
use kvm_memslots::{Builder, Error, ErrorKind, Vm};

use crate::jail::{SKIP, STOPPED, end, in_child, only, run};
use crate::machine::{borrowed, open, vm_fd};

#[test]
fn ways_that_are_refused_among_them() {
    run("opening::ways_that_are_refused_among_them", || {
        let fd = vm_fd();
        let other = File::open("/").unwrap();
        // The second one finds that the first is another VM.
        let (first, second) = (vm_fd(), vm_fd());
        // Nobody hears warnings, so the order of the start is not asked for.
        only(&[OPEN]);
        let _vms = [open(&first), open(&second)];
        open(&fd);
        let error = Vm::open(&other).map(drop).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Open(OpenError::NotAVm { .. })), "{error}");
        let again = Vm::open(borrowed(&first)).map(drop);
        let refused = |error: &Error| matches!(error.kind(), ErrorKind::AlreadyOpen);
        // Without kcmp it is not told.
        assert!(again.as_ref().err().is_none_or(refused), "{again:?}");
        (fd, first, second, other)
    });
}

/// A subscriber that hears warnings, and forgets them.
struct Hears;

impl tracing::Subscriber for Hears {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {}

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// Ways to open a VM that ask KVM for more. Where `lists` has less than they take
/// there is no VM.
fn opened(fd: &kvm_ioctls::VmFd, builder: Builder, lists: &[&[Call]]) -> Vm {
    let _heard = tracing::subscriber::set_default(Hears);
    only(lists);
    builder.open(borrowed(fd)).unwrap()
}

#[test]
fn opening_where_warnings_are_heard() {
    run("opening::opening_where_warnings_are_heard", || {
        let fd = vm_fd();
        let vm = opened(&fd, Vm::builder(), &[OPEN, ORDER_CHECK]);
        (fd, vm)
    });
}

/// Without its list it is stopped, so the list is not there for nothing.
#[test]
fn the_order_is_asked_for() {
    let test = "opening::the_order_is_asked_for";
    let (code, why) = in_child(test, || {
        let fd = vm_fd();
        let vm = opened(&fd, Vm::builder(), &[OPEN]);
        (fd, vm)
    });
    match code {
        SKIP => eprintln!("SKIPPED {test}: {why}"),
        _ => assert_eq!(code == STOPPED, !ORDER_CHECK.is_empty(), "{code}: {why}"),
    }
}

#[test]
fn opening_without_the_quirk() {
    run("opening::opening_without_the_quirk", || {
        let fd = vm_fd();
        let builder = Vm::builder().order_check(false).disable_slot_zap_all(0);
        let vm = opened(&fd, builder, &[OPEN, SLOT_ZAP_ALL]);
        (fd, vm)
    });
}

/// The scratch VM is made where the kernel claims the trap flag.
#[test]
fn opening_with_a_scratch_vm() {
    run("opening::opening_with_a_scratch_vm", || {
        let fd = vm_fd();
        let builder = Vm::builder().order_check(false).allow_scratch_vm(true);
        let vm = opened(&fd, builder, &[OPEN, SCRATCH_VM]);
        if !vm.limits().trap {
            end(SKIP, "a kernel without KVM_CAP_MEM_TRAP: no scratch VM was made");
        }
        (fd, vm)
    });
}
