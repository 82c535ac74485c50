//! Which file descriptors are taken, and what is known of a VM then.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::process::Command;

use kvm_bindings::KVM_CAP_MULTI_ADDRESS_SPACE;
use kvm_ioctls::Cap;
use kvm_memslots_shim::memory::{MemoryCalls, Op};
use kvm_memslots_shim::uapi::probe::Support;
use kvm_memslots_shim::{Errno, Kvm, KvmOptions, OpenError};

use crate::machine::{Machine, borrowed};

fn open(fd: BorrowedFd<'_>) -> Result<Kvm, OpenError> {
    Kvm::open(fd, KvmOptions::default())
}

#[test]
fn limits_are_those_of_the_vm() {
    let Some(machine) = Machine::new("limits_are_those_of_the_vm", 1) else { return };
    let limits = machine.kvm.limits();
    let slots = machine.vm.check_extension_int(Cap::NrMemslots);
    assert_eq!(Ok(limits.slots), u32::try_from(slots));
    let spaces = machine.vm.check_extension_raw(KVM_CAP_MULTI_ADDRESS_SPACE.into());
    assert_eq!(i32::from(limits.address_spaces), spaces.max(1));
    assert_eq!(limits.readonly, machine.vm.check_extension_int(Cap::ReadonlyMem) > 0);
    assert_eq!(limits.guest_memfd, machine.vm.check_extension_int(Cap::GuestMemfd) > 0);
    assert_eq!(machine.kvm.name(), "kvm");
}

#[test]
fn the_batch_ioctl_is_there_if_the_probe_says_so() {
    let test = "the_batch_ioctl_is_there_if_the_probe_says_so";
    let Some(machine) = Machine::new(test, 1) else { return };
    let answer = machine.kvm.check_all(0, &[]).map_err(|refused| refused.errno);
    match machine.kvm.support() {
        Support::Present { max_entries } => {
            assert_eq!(answer, Ok(()));
            assert!(machine.kvm.limits().batch.is_some_and(|batch| batch <= max_entries));
        }
        Support::Absent | Support::Impostor { .. } => {
            assert_eq!(answer, Err(Errno::ENOTTY));
            assert_eq!(machine.kvm.limits().batch, None);
        }
    }
}

#[test]
fn the_vm_fd_may_be_closed() {
    let Some(machine) = Machine::new("the_vm_fd_may_be_closed", 1) else { return };
    let Machine { kvm, vm, ram } = machine;
    drop(vm);
    // SAFETY: the memory is dropped after the VM, and not referred to.
    assert_eq!(unsafe { kvm.change(0, &Op::Create(ram.slot(0, 0, 1))) }, Ok(()));
    drop(kvm);
}

#[test]
fn dev_kvm_itself_is_recognised() {
    let Some(_machine) = Machine::new("dev_kvm_itself_is_recognised", 1) else { return };
    let kvm = kvm_ioctls::Kvm::new().unwrap();
    let error = open(borrowed(&kvm)).unwrap_err();
    assert!(matches!(error, OpenError::SystemFd(fd) if fd == kvm.as_raw_fd()));
    assert!(error.to_string().contains("/dev/kvm itself"));
    assert!(error.to_string().contains("KVM_CREATE_VM"));
}

#[test]
fn a_vcpu_fd_is_named() {
    let Some(machine) = Machine::new("a_vcpu_fd_is_named", 1) else { return };
    let vcpu = machine.vm.create_vcpu(0).unwrap();
    let error = open(borrowed(&vcpu)).unwrap_err();
    assert!(
        matches!(&error, OpenError::NotAVm { what, .. } if what.contains("kvm-vcpu")),
        "{error}"
    );
}

#[test]
fn other_files_are_named() {
    let (pipe, _other) = std::io::pipe().unwrap();
    let null = File::open("/dev/null").unwrap();
    let exe = File::open(std::env::current_exe().unwrap()).unwrap();
    let executable = std::env::current_exe().unwrap().display().to_string();
    let files =
        [(borrowed(&pipe), "pipe:"), (borrowed(&null), "/dev/null"), (borrowed(&exe), &executable)];
    for (fd, name) in files {
        let error = open(fd).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(name) && message.contains("ENOTTY"), "{message}");
        assert!(matches!(error, OpenError::NotAVm { errno: Errno::ENOTTY, .. }));
    }
}

#[test]
fn a_closed_fd_is_named() {
    const CLOSED: i32 = 1_000_000;
    // SAFETY: no descriptor has so high a number, so nobody's is used.
    let closed = unsafe { BorrowedFd::borrow_raw(CLOSED) };
    let error = open(closed).unwrap_err();
    assert!(matches!(error, OpenError::Duplicate { fd: CLOSED, errno: Errno::EBADF }), "{error}");
}

const FOREIGN: &str = "KVM_MEMSLOTS_TEST_FOREIGN_VM";

#[test]
fn a_vm_of_another_process_is_named() {
    let test = "a_vm_of_another_process_is_named";
    if let Ok(fd) = std::env::var(FOREIGN) {
        // SAFETY: the process that started this one left it open.
        let fd = unsafe { BorrowedFd::borrow_raw(fd.parse().unwrap()) };
        let error = open(fd).unwrap_err();
        assert!(matches!(error, OpenError::NotUsable { .. }), "{error}");
        assert!(error.to_string().contains("another process"));
        return;
    }
    let Some(machine) = Machine::new(test, 1) else { return };
    // Not close-on-exec.
    // SAFETY: duplicates an open descriptor; nobody else knows the new one.
    let fd = unsafe { libc::dup(machine.vm.as_raw_fd()) };
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "open::a_vm_of_another_process_is_named"])
        .env(FOREIGN, fd.to_string())
        .output()
        .unwrap();
    // SAFETY: it is open, and not used any more.
    unsafe { libc::close(fd) };
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{output}");
    assert!(output.contains("1 passed"), "{output}");
}

#[test]
fn one_vm_is_told_from_another() {
    let Some(machine) = Machine::new("one_vm_is_told_from_another", 1) else { return };
    let duplicate = borrowed(&machine.vm).try_clone_to_owned().unwrap();
    let Some(same) = machine.kvm.same_vm(borrowed(&machine.vm)) else {
        eprintln!("SKIPPED one_vm_is_told_from_another: the kernel has no kcmp");
        return;
    };
    assert!(same);
    assert_eq!(machine.kvm.same_vm(borrowed(&duplicate)), Some(true));
    let other = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
    assert_eq!(machine.kvm.same_vm(borrowed(&other)), Some(false));
    // SAFETY: no descriptor has so high a number, so nobody's is used.
    let closed = unsafe { BorrowedFd::borrow_raw(1_000_000) };
    assert_eq!(machine.kvm.same_vm(closed), None);
}
