//! Grace periods are counted by the kernel, and counted right.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{guest_or_skip, set_slot, skip, vm_or_skip};
use kvm_ioctls::{Kvm, VmFd};
use kvm_memslots_kit::grace::GraceCounter;
use kvm_memslots_kit::guest::{BusyVcpus, Work};
use kvm_memslots_kit::host::{HostMemory, LARGE_PAGE, Pages, SMALL_PAGE};

fn counter_or_skip(test: &str) -> Option<GraceCounter> {
    vm_or_skip(test)?;
    let new_vm = || Ok(Kvm::new()?.create_vm()?);
    match GraceCounter::calibrated(new_vm) {
        Ok(counter) => {
            eprintln!("{}: {}", counter.method(), counter.calibration());
            Some(counter)
        }
        Err(why) => {
            skip(test, why);
            None
        }
    }
}

fn create_and_delete(vm: &VmFd, slots: u32) {
    let memory = HostMemory::reserve(SMALL_PAGE, Pages::Small).unwrap();
    for slot in 0..slots {
        set_slot(vm, slot, u64::from(slot) * SMALL_PAGE, SMALL_PAGE, &memory, 0);
    }
    for slot in 0..slots {
        set_slot(vm, slot, 0, 0, &memory, 0);
    }
}

/// Far more than the trace buffer holds, so that lost records are counted too.
#[test]
fn many_changes_are_counted_exactly() {
    let test = "many_changes_are_counted_exactly";
    let Some(mut counter) = counter_or_skip(test) else { return };
    let vm = vm_or_skip(test).unwrap();
    let counted = counter.count(|| create_and_delete(&vm, 3000)).1.unwrap();
    assert_eq!(counted, 3000 + 2 * 3000);
}

#[test]
fn a_busy_vcpu_adds_nothing() {
    let test = "a_busy_vcpu_adds_nothing";
    let Some(mut counter) = counter_or_skip(test) else { return };
    for work in [Work::Spin, Work::FaultIn { bytes: LARGE_PAGE, pages: Pages::Small }] {
        let vm = vm_or_skip(test).unwrap();
        let Some(busy) = guest_or_skip(test, BusyVcpus::start(&vm, 1000, 1, work)) else { return };
        busy.wait_for_progress(Duration::from_mins(2)).unwrap();
        let counted = counter.count(|| create_and_delete(&vm, 200)).1.unwrap();
        assert_eq!(counted, 200 + 2 * 200, "{work:?}");
        busy.stop().unwrap();
    }
}

/// What other threads wait for, and what happens between counts, is left out.
#[test]
fn only_what_is_asked_for_is_counted() {
    let test = "only_what_is_asked_for_is_counted";
    let Some(mut counter) = counter_or_skip(test) else { return };
    let (vm, other) = (vm_or_skip(test).unwrap(), vm_or_skip(test).unwrap());
    let counted = counter.count(|| create_and_delete(&vm, 2)).1.unwrap();
    create_and_delete(&vm, 5);
    let none = counter.count(|| ()).1.unwrap();
    let thread = || {
        std::thread::scope(|scope| drop(scope.spawn(|| create_and_delete(&other, 50)).join()));
    };
    let elsewhere = counter.count(thread).1.unwrap();
    assert_eq!((counted, none, elsewhere), (6, 0, 0));
}

#[test]
fn the_instance_goes_with_the_counter() {
    let test = "the_instance_goes_with_the_counter";
    let Some(counter) = counter_or_skip(test) else { return };
    let instance = counter.instance().to_owned();
    assert!(instance.exists());
    drop(counter);
    assert!(!instance.exists());
}
