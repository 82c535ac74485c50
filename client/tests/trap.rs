//! The trap flag of a region.
#![allow(clippy::unwrap_used)]

use kvm_memslots::backend::model::{GuestAccess, SharedModel};
use kvm_memslots::backend::{Memslots, Model};
use kvm_memslots::{AddressSpace, Error, Limits, MemFlags, RegionSpec};

const HVA: u64 = 0x7f00_0000_0000;

fn on_model(limits: Limits) -> (AddressSpace, SharedModel) {
    let model = Model::new(limits).shared();
    let backend: Box<dyn Memslots> = Box::new(model.clone());
    (AddressSpace::builder().open_on(backend).unwrap(), model)
}

#[test]
fn a_flip_is_one_call_without_a_grace_period() {
    for limits in [Limits::x86().with_trap(), Limits::x86().with_trap().with_batch(64)] {
        let (mut space, model) = on_model(limits);
        let mut tx = space.begin();
        // SAFETY: the model maps nothing.
        let ram = unsafe { tx.map(RegionSpec::ram(0, 0x1000, HVA)) }.unwrap();
        let rom = RegionSpec::rom(0x1000, 0x1000, HVA + 0x1000).trapped();
        // SAFETY: as above.
        let rom = unsafe { tx.map(rom) }.unwrap();
        assert_eq!(tx.commit().unwrap().slots, 2, "never in a slot with others");
        let guest = |gpa| model.lock().guest_at(0, gpa);
        assert_eq!(guest(0x1000), GuestAccess::Mmio);

        model.lock().reset_counts();
        let report = space.set_trap(rom, false).unwrap();
        assert_eq!((report.ioctls, report.grace_periods, report.slots), (1, 0, 2));
        assert_eq!(guest(0x1000), GuestAccess::Ram { hva: HVA + 0x1000 });
        assert_eq!(space.region(rom).unwrap().flags, MemFlags::READONLY);
        assert_eq!(space.set_trap(rom, false).unwrap().ioctls, 0, "as it is");

        // The same in a transaction, with something else.
        let mut tx = space.begin();
        tx.set_trap(rom, true).unwrap();
        let preview = tx.dry_run().unwrap();
        assert_eq!((preview.ioctls, preview.grace_periods), (1, 0));
        tx.set_flags(ram, MemFlags::LOG_DIRTY_PAGES).unwrap();
        assert_eq!(tx.commit().unwrap().grace_periods, 1, "of the log");
        assert_eq!(guest(0x1000), GuestAccess::Mmio);
        assert_eq!(model.lock().counts().grace_periods, 1);

        // Other flags leave it alone.
        let mut tx = space.begin();
        tx.set_flags(rom, MemFlags::READONLY | MemFlags::LOG_DIRTY_PAGES).unwrap();
        tx.commit().unwrap();
        assert_eq!(guest(0x1000), GuestAccess::Mmio);
        let own: Vec<_> = space.slots().collect();
        assert_eq!(own.len(), 2);
        assert!(own[1].mapping.flags.contains(MemFlags::TRAP | MemFlags::LOG_DIRTY_PAGES));
    }
}

#[test]
fn what_cannot_trap() {
    let (mut space, _) = on_model(Limits::x86());
    let spec = || RegionSpec::ram(0, 0x1000, HVA).label("boot flash");
    // SAFETY: the model maps nothing.
    let error = unsafe { space.begin().map(spec().trapped()) }.unwrap_err();
    assert!(matches!(error, Error::TrapUnsupported { .. }));
    assert!(error.to_string().contains("boot flash"), "{error}");

    let (mut space, model) = on_model(Limits::x86().with_trap());
    let mut tx = space.begin();
    // SAFETY: the model maps nothing.
    let id = unsafe { tx.map(spec()) }.unwrap();
    tx.commit().unwrap();
    model.lock().reset_counts();
    let error = space.set_trap(id, true).unwrap_err();
    assert!(matches!(error, Error::NotAlone { .. }) && error.to_string().contains("alone"));
    assert!(matches!(space.begin().set_trap(id, true), Err(Error::NotAlone { .. })));
    assert_eq!(model.lock().counts().ioctls, 0);
    let error = space.begin().set_flags(id, MemFlags::TRAP).unwrap_err();
    assert!(matches!(error, Error::FlagsNotSettable { .. }));
}
