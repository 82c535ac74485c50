//! A guest in long mode enables 64 PCI devices by config writes, on real KVM.
#![allow(clippy::unwrap_used)]

mod common;

use common::{skip, vm_or_skip};
use kvm_memslots_bench::limit::Limit;
use kvm_memslots_bench::rig::{Rig, Target, Vcpus};
use kvm_memslots_bench::scenario::Workload;
use kvm_memslots_bench::strategy::{Spent, Strategy};
use kvm_memslots_kit::grace::GraceCounter;
use kvm_memslots_kit::guest::GuestError;
use kvm_memslots_kit::machine::new_vm;

const DEVICES: usize = 64;

/// What the guest's config writes, and its reads from all BARs after them, cost
/// the VMM: by its own account, and the grace periods that the kernel counted.
fn cost(
    test: &str,
    workload: Workload,
    strategy: Strategy,
    counter: Option<&mut GraceCounter>,
) -> Option<(Spent, Option<u64>)> {
    let scenario = workload.generate(DEVICES);
    let mut rig = match Rig::new(&scenario, strategy, Target::Kvm, Vcpus::NONE) {
        Err(error) if matches!(error.downcast_ref(), Some(GuestError::Unsupported)) => {
            skip(test, error);
            return None;
        }
        rig => rig.unwrap_or_else(|error| panic!("{strategy}: {error}")),
    };
    let mut apply = || rig.apply(&scenario.steps);
    let (spent, counted) = match counter {
        None => (apply(), None),
        Some(counter) => {
            let (spent, counted) = counter.count(apply);
            (spent, Some(counted.unwrap()))
        }
    };
    Some((spent.unwrap_or_else(|error| panic!("{strategy}: {error}")), counted))
}

#[test]
fn sixty_four_devices_take_three_grace_periods_at_most() {
    let test = "sixty_four_devices_take_three_grace_periods_at_most";
    if vm_or_skip(test).is_none() {
        return;
    }
    let has_batch = Target::Kvm.limits().unwrap().batch.is_some();
    let mut counter = GraceCounter::calibrated(new_vm);
    if let Err(why) = &counter {
        skip(test, why);
    }
    for (strategy, ioctls, grace_periods) in [
        // Today: each BAR, when its device is enabled.
        (Strategy::PerRegion, 128, 128),
        // A commit for each device, of two BARs that are far from each other.
        (Strategy::Shim, 128, 128),
        (Strategy::Batch, 64, 64),
        // One commit for all, of two slots: host and guest have the BARs of a
        // size one after the other.
        (Strategy::Deferred, if has_batch { 1 } else { 2 }, if has_batch { 1 } else { 2 }),
    ] {
        if strategy.needs_batch() && !has_batch {
            skip(test, "this kernel has no KVM_SET_USER_MEMORY_REGIONS");
            continue;
        }
        let counter = counter.as_mut().ok();
        let Some((spent, counted)) = cost(test, Workload::Pci, strategy, counter) else { return };
        assert_eq!((spent.ioctls, spent.grace_periods), (ioctls, grace_periods), "{strategy}");
        assert!(counted.is_none_or(|counted| counted == grace_periods), "{strategy}: {counted:?}");
    }
}

/// The guest rings each of 4 doorbells of 64 devices, and each is heard once.
#[test]
fn doorbells_of_sixty_four_devices_are_rung() {
    let test = "doorbells_of_sixty_four_devices_are_rung";
    if vm_or_skip(test).is_none() {
        return;
    }
    let has_batch = Target::Kvm.limits().unwrap().batch.is_some();
    for (strategy, of_memory) in [
        (Strategy::PerRegion, 128),
        (Strategy::Shim, 128),
        (Strategy::Deferred, if has_batch { 1 } else { 2 }),
    ] {
        let Some((spent, _)) = cost(test, Workload::PciDoorbells, strategy, None) else { return };
        let expected = (of_memory + 4 * DEVICES as u64, of_memory);
        assert_eq!((spent.ioctls, spent.grace_periods), expected, "{strategy}");
    }
}

/// The guest of the scenario is the only one that a VM has room for, and other
/// scenarios have none that could ask for what is deferred.
#[test]
fn what_can_not_be_compared_is_no_failure() {
    let test = "what_can_not_be_compared_is_no_failure";
    if vm_or_skip(test).is_none() {
        return;
    }
    let sparse = Workload::Sparse.generate(4);
    let deferred = Rig::new(&sparse, Strategy::Deferred, Target::Kvm, Vcpus::NONE);
    assert!(Limit::is(&deferred.err().unwrap()));
    let pci = Workload::Pci.generate(4);
    let busy = Vcpus { count: 1, ..Vcpus::NONE };
    assert!(Limit::is(&Rig::new(&pci, Strategy::Shim, Target::Kvm, busy).err().unwrap()));
    let on_model = Rig::new(&pci, Strategy::Deferred, Target::Model, Vcpus::NONE);
    assert!(Limit::is(&on_model.err().unwrap()));
}
