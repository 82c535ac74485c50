//! ROM devices on the model: the three ways to flip, and what each costs.

use crate::common::{self, HVA, cost, on_model};
use kvm_memslots::backend::MemoryModel;
use kvm_memslots::backend::model::memory::{Fault, GuestAccess};
use kvm_memslots::deferred::{Deferral, Policy};
use kvm_memslots::{
    Access, Backing, Changes, Errno, ErrorKind, Limits, RegionSpec, RomDevice, RomMode, Vm, at,
};

const GPA: u64 = 0x400_0000;

fn spec() -> RegionSpec {
    // SAFETY: the model maps nothing, and no exit is served here.
    let memory = unsafe { Backing::borrowed(HVA, 0x1_0000, Access::Read) };
    RegionSpec::rom(at(GPA, 0x1_0000), memory).label("flash")
}

fn device(limits: Limits, mode: RomMode) -> (Vm, MemoryModel, RomDevice) {
    let policy = Deferral::default().policy(Policy::Fixed { exits: 1_000 });
    let (vm, model) = on_model(Vm::builder().deferral(policy), MemoryModel::new(limits));
    let device = RomDevice::new(&vm, spec(), mode).unwrap();
    (vm, model, device)
}

/// Flips to command mode and back `pairs` times; calls and grace periods.
fn flip(vm: &Vm, model: &MemoryModel, device: &mut RomDevice, pairs: u64) -> (u64, u64) {
    model.reset_counts();
    let mut reported = (0, 0);
    for _ in 0..pairs {
        for array in [false, true] {
            let report = device.set_array_mode(vm, array).unwrap().unwrap();
            reported = (reported.0 + report.ioctls, reported.1 + report.grace_periods);
            let served = vm.region_at(0, GPA).is_some_and(|region| region.deferred);
            let found = model.guest_at(0, GPA);
            let expected =
                if array && !served { GuestAccess::Ram { hva: HVA } } else { GuestAccess::Mmio };
            assert_eq!((found, device.in_array_mode()), (expected, array));
            assert!(device.set_array_mode(vm, array).unwrap().is_none());
        }
    }
    let counted = cost(model);
    assert_eq!(reported, counted);
    counted
}

#[test]
fn a_trap_costs_a_call_and_one_grace_period_in_all() {
    let (vm, model, mut device) = device(Limits::x86().with_trap(), RomMode::Auto);
    assert_eq!(device.mode(), RomMode::Trap);
    assert_eq!(flip(&vm, &model, &mut device, 100), (200, 1));
    assert_eq!(device.flips(), 200);
}

#[test]
fn deferral_starts_with_the_fifth_flip() {
    let (vm, model, mut device) = device(Limits::x86(), RomMode::Auto);
    assert_eq!(device.mode(), RomMode::Deferred { after: 4 });
    let deferred = |device: &RomDevice| vm.region(device.region().unwrap()).unwrap().deferred;
    // Two pairs as ever, since the guest may execute from it; then the last
    // removal.
    assert_eq!(flip(&vm, &model, &mut device, 2), (4, 6));
    assert!(!deferred(&device));
    assert_eq!(flip(&vm, &model, &mut device, 1), (1, 2));
    assert!(deferred(&device));
    assert_eq!(flip(&vm, &model, &mut device, 6_000), (0, 0));
}

#[test]
fn toggling_costs_three_grace_periods_a_pair() {
    let (vm, model, mut device) = device(Limits::x86(), RomMode::Toggle);
    assert_eq!(flip(&vm, &model, &mut device, 100), (200, 300));
}

#[test]
fn a_flip_that_fails_has_not_happened() {
    for (limits, mode) in [
        (Limits::x86(), RomMode::Toggle),
        (Limits::x86(), RomMode::Auto),
        (Limits::x86().with_trap(), RomMode::Trap),
    ] {
        let (vm, model, mut device) = device(limits, mode);
        for array in [false, true] {
            // A single change that is refused is asked for once more, with all
            // that a planner knows.
            model.inject(Fault::every(Errno::ENOMEM));
            let error = device.set_array_mode(&vm, array).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Refused { .. }), "{error}");
            assert_eq!((error.errno(), device.in_array_mode()), (Errno::ENOMEM, !array));
            model.clear_faults();
            device.set_array_mode(&vm, array).unwrap().unwrap();
            assert_eq!(device.in_array_mode(), array);
        }
        assert_eq!(model.guest_at(0, GPA), GuestAccess::Ram { hva: HVA });
        device.remove(&vm).unwrap();
        assert_eq!(model.slot_count(0), 0);
    }
}

#[test]
fn a_removal_that_fails_gives_the_device_back() {
    let (vm, model, device) = device(Limits::x86(), RomMode::Toggle);
    model.inject(Fault::every(Errno::ENOMEM));
    let (device, error) = device.remove(&vm).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOMEM);
    model.clear_faults();
    // The VMM may have unmapped the region itself.
    let mut c = Changes::new();
    c.unmap(device.region().unwrap());
    vm.apply(c).unwrap();
    device.remove(&vm).unwrap();
}

#[test]
fn a_trap_is_refused_where_the_kernel_has_none() {
    let (vm, model) = common::vm(Limits::x86());
    let error = RomDevice::new(&vm, spec(), RomMode::Trap).unwrap_err();
    assert!(error.to_string().contains("\"flash\""), "{error}");
    assert!(error.to_string().contains("KVM_CAP_MEM_TRAP"), "{error}");
    assert!(matches!(error.kind(), ErrorKind::TrapUnsupported), "{error}");
    assert_eq!((vm.regions().len(), model.counts().ioctls), (0, 0));
}
