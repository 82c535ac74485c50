//! ROM devices on the model: the three ways to flip, and what each costs.
#![allow(clippy::unwrap_used)]

use kvm_memslots::backend::model::{Fault, GuestAccess, SharedModel};
use kvm_memslots::backend::{Errno, Memslots, Model};
use kvm_memslots::deferred::{Deferral, Policy};
use kvm_memslots::{AddressSpace, Error, Limits, RegionSpec, RomDevice, RomMode};

const GPA: u64 = 0x400_0000;
const HVA: u64 = 0x7f00_0000_0000;

fn device(limits: Limits, mode: RomMode) -> (AddressSpace, SharedModel, RomDevice) {
    let model = Model::new(limits).shared();
    let backend: Box<dyn Memslots> = Box::new(model.clone());
    let policy = Deferral::default().policy(Policy::Fixed { exits: 1_000 });
    let mut space = AddressSpace::builder().deferral(policy).open_on(backend).unwrap();
    let spec = RegionSpec::rom(GPA, 0x1_0000, HVA).label("flash");
    // SAFETY: the model maps nothing, and no exit is served here.
    let device = unsafe { RomDevice::new(&mut space, spec, mode) }.unwrap();
    (space, model, device)
}

/// Flips to command mode and back `pairs` times; calls and grace periods.
fn flip(
    space: &mut AddressSpace,
    model: &SharedModel,
    device: &mut RomDevice,
    pairs: u64,
) -> (u64, u64) {
    model.lock().reset_counts();
    for _ in 0..pairs {
        for array in [false, true] {
            let report = device.set_array_mode(space, array).unwrap().unwrap();
            let served = space.region_at(GPA).is_some_and(|region| region.deferred);
            let found = model.lock().guest_at(0, GPA);
            let expected =
                if array && !served { GuestAccess::Ram { hva: HVA } } else { GuestAccess::Mmio };
            assert_eq!((found, device.in_array_mode()), (expected, array));
            assert!(device.set_array_mode(space, array).unwrap().is_none());
            let _ = report;
        }
    }
    let counts = model.lock().counts();
    (counts.ioctls, counts.grace_periods)
}

#[test]
fn a_trap_costs_a_call_and_no_grace_period() {
    let (mut space, model, mut device) = device(Limits::x86().with_trap(), RomMode::Auto);
    assert_eq!(device.mode(), RomMode::Trap);
    assert_eq!(flip(&mut space, &model, &mut device, 100), (200, 0));
    assert_eq!(device.flips(), 200);
}

#[test]
fn deferral_starts_with_the_fifth_flip() {
    let (mut space, model, mut device) = device(Limits::x86(), RomMode::Auto);
    assert_eq!(device.mode(), RomMode::Deferred { after: 4 });
    // Two pairs as ever, since the guest may execute from it; then the last
    // removal.
    assert_eq!(flip(&mut space, &model, &mut device, 2), (4, 6));
    assert!(!space.region(device.region().unwrap()).unwrap().deferred);
    assert_eq!(flip(&mut space, &model, &mut device, 1), (1, 2));
    assert!(space.region(device.region().unwrap()).unwrap().deferred);
    assert_eq!(flip(&mut space, &model, &mut device, 6_000), (0, 0));
}

#[test]
fn toggling_costs_three_grace_periods_a_pair() {
    let (mut space, model, mut device) = device(Limits::x86(), RomMode::Toggle);
    assert_eq!(flip(&mut space, &model, &mut device, 100), (200, 300));
}

#[test]
fn a_flip_that_fails_has_not_happened() {
    for (limits, mode) in [
        (Limits::x86(), RomMode::Toggle),
        (Limits::x86(), RomMode::Auto),
        (Limits::x86().with_trap(), RomMode::Trap),
    ] {
        let (mut space, model, mut device) = device(limits, mode);
        for array in [false, true] {
            model.lock().inject(Fault::nth(1, Errno::ENOMEM));
            let error = device.set_array_mode(&mut space, array).unwrap_err();
            assert!(matches!(error, Error::Refused { errno: Errno::ENOMEM, .. }), "{error}");
            assert_eq!(device.in_array_mode(), !array);
            device.set_array_mode(&mut space, array).unwrap().unwrap();
            assert_eq!(device.in_array_mode(), array);
        }
        assert_eq!(model.lock().guest_at(0, GPA), GuestAccess::Ram { hva: HVA });
        device.remove(&mut space).unwrap();
        assert_eq!(model.lock().slot_count(0), 0);
    }
}

#[test]
fn a_trap_is_refused_where_the_kernel_has_none() {
    let mut space = AddressSpace::builder().open_on(Box::new(Model::new(Limits::x86()))).unwrap();
    let spec = RegionSpec::rom(GPA, 0x1000, HVA).label("flash");
    // SAFETY: the model maps nothing.
    let error = unsafe { RomDevice::new(&mut space, spec, RomMode::Trap) }.unwrap_err();
    assert!(error.to_string().contains("\"flash\""), "{error}");
    assert!(error.to_string().contains("KVM_CAP_MEM_TRAP"), "{error}");
    assert_eq!(space.regions().count(), 0);
}
