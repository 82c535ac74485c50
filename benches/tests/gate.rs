//! The gate keeps a running guest from seeing the holes that single calls make,
//! on real KVM.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{guest_or_skip, vm_or_skip};
use kvm_ioctls::VmFd;
use kvm_memslots::{
    Access, Backing, Changes, Executor, HolePolicy, RegionId, RegionSpec, Vm, at, vm_fd,
};
use kvm_memslots_bench::rig::{Busy, Rig, Target, Vcpus};
use kvm_memslots_bench::scenario::{REQUESTS_PER_CYCLE, Workload};
use kvm_memslots_bench::strategy::Strategy;
use kvm_memslots_kit::guest::{BusyVcpus, GuestError, Work};
use kvm_memslots_kit::host::{HostMemory, Pages, SMALL_PAGE};

const OWN_SLOT: u16 = 0;
const GPA: u64 = 0x100_0000;
const SMALL: u64 = 16 * SMALL_PAGE;
const LARGE: u64 = 32 * SMALL_PAGE;
const PATIENCE: Duration = Duration::from_mins(2);

/// A region that keeps a slot of its own, so that each change of its size is a
/// delete and a create.
fn region_alone(vm: &VmFd, memory: &HostMemory) -> (Vm, RegionId) {
    let vm = Vm::builder()
        .executor(Executor::PerRegion)
        .reserve_slots(0, OWN_SLOT..=OWN_SLOT)
        .open(vm_fd(vm))
        .unwrap();
    let mut changes = Changes::new();
    let region = changes.map(RegionSpec::ram(at(GPA, SMALL), backing(memory)).alone());
    vm.apply(changes).unwrap();
    (vm, region)
}

fn backing(memory: &HostMemory) -> Backing {
    // SAFETY: the tests keep the memory for as long as a vCPU runs, and access
    // it atomically only.
    unsafe { Backing::borrowed(memory.hva(), LARGE, Access::ReadWrite) }
}

fn resize(vm: &Vm, memory: &HostMemory, region: RegionId, size: u64) -> bool {
    let mut changes = Changes::new();
    // What it had shrunk by is the guest's again.
    changes.replace(region, backing(memory));
    changes.resize(region, size);
    vm.apply(changes).unwrap().vcpus_paused
}

#[test]
fn with_the_gate_a_guest_sees_no_hole() {
    let test = "with_the_gate_a_guest_sees_no_hole";
    let Some(vm) = vm_or_skip(test) else { return };
    let memory = HostMemory::reserve(LARGE, Pages::Small).unwrap();
    let (space, region) = region_alone(&vm, &memory);
    let work = Work::Touch { gpa: GPA, bytes: SMALL };
    let Some(busy) = guest_or_skip(test, BusyVcpus::start(&vm, OWN_SLOT, 2, work)) else { return };
    let busy = Arc::new(busy);
    space.set_hole_policy(HolePolicy::Gate(busy.clone())).unwrap();
    for round in 0..100 {
        busy.wait_for_progress(PATIENCE).unwrap();
        let size = if round % 2 == 0 { LARGE } else { SMALL };
        assert!(resize(&space, &memory, region, size), "round {round}");
    }
    busy.wait_for_progress(PATIENCE).unwrap();
    busy.stop().unwrap();
    assert_eq!(memory.read(SMALL - SMALL_PAGE), GPA + SMALL - SMALL_PAGE);
}

/// What the gate is for: told that no vCPU runs, the library leaves the hole
/// open, and a vCPU that does run falls into it.
#[test]
fn without_the_gate_a_guest_falls_into_the_hole() {
    let test = "without_the_gate_a_guest_falls_into_the_hole";
    let Some(vm) = vm_or_skip(test) else { return };
    let memory = HostMemory::reserve(LARGE, Pages::Small).unwrap();
    let (space, region) = region_alone(&vm, &memory);
    let work = Work::Touch { gpa: GPA, bytes: SMALL };
    let Some(busy) = guest_or_skip(test, BusyVcpus::start(&vm, OWN_SLOT, 1, work)) else { return };
    space.set_hole_policy(HolePolicy::NoVcpuRuns).unwrap();
    // A busy machine may keep the vCPU from running in any one hole.
    let start = Instant::now();
    let mut rounds = (0..).take_while(|_| start.elapsed() < PATIENCE);
    let fell = rounds.find_map(|round| {
        let size = if round % 2 == 0 { LARGE } else { SMALL };
        assert!(!resize(&space, &memory, region, size));
        busy.wait_for_progress(PATIENCE).err()
    });
    match fell {
        Some(GuestError::Died { exit, .. }) => assert!(exit.contains("MmioWrite"), "{exit}"),
        other => panic!("{other:?}"),
    }
}

/// The scenario whose requests cut slots: two a cycle, which stop the vCPU; the
/// others leave what stays mapped alone.
#[test]
fn only_requests_that_cut_a_slot_pause_vcpus() {
    let test = "only_requests_that_cut_a_slot_pause_vcpus";
    if vm_or_skip(test).is_none() {
        return;
    }
    let cycles = 5;
    let scenario = Workload::Resize.generate(cycles * REQUESTS_PER_CYCLE);
    let vcpu = Vcpus { count: 1, busy: Busy::Fault };
    let mut rig = match Rig::new(&scenario, Strategy::Shim, Target::Kvm, vcpu) {
        Err(error) if matches!(error.downcast_ref(), Some(GuestError::Unsupported)) => {
            return common::skip(test, error);
        }
        rig => rig.unwrap(),
    };
    let spent = rig.apply(&scenario.steps).unwrap();
    assert_eq!(spent.pauses, 2 * cycles as u64);
    rig.finish().unwrap();
}
