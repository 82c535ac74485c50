//! The trap flag of a region.

use crate::common::{HVA, PAGE, batched, changes, map_all, memory, ram, vm};
use kvm_memslots::backend::model::memory::{Fault, GuestAccess};
use kvm_memslots::{Changes, Errno, ErrorKind, Limits, MemFlags, RegionSpec, at};
use proptest::collection::vec;
use proptest::prelude::*;

#[test]
fn a_flip_is_one_call_without_a_grace_period_but_the_first() {
    for limits in [Limits::x86().with_trap(), Limits::x86().with_trap().with_batch(64)] {
        let (vm, model) = vm(limits);
        let rom = RegionSpec::rom(at(PAGE, PAGE), memory(HVA + PAGE, PAGE)).trapped();
        let [ram, rom] = map_all(&vm, [ram(0, 1), rom]);
        assert_eq!(vm.slots(0).len(), 2, "never in a slot with others");
        let guest = |gpa| model.guest_at(0, gpa);
        assert_eq!(guest(PAGE), GuestAccess::Mmio);

        model.reset_counts();
        let flip = |on| changes(|c| c.set_trap(rom, on));
        let report = vm.apply(flip(false)).unwrap();
        assert_eq!((report.ioctls, report.grace_periods, report.slots), (1, 0, 2));
        assert_eq!(guest(PAGE), GuestAccess::Ram { hva: HVA + PAGE });
        assert_eq!(vm.region(rom).unwrap().flags, MemFlags::READONLY);
        assert_eq!(vm.apply(flip(false)).unwrap().ioctls, 0, "as it is");

        // The first that makes a region trap.
        for grace_periods in [1, 0] {
            let preview = vm.preview(&flip(true)).unwrap();
            assert_eq!((preview.ioctls, preview.grace_periods), (1, grace_periods));
            assert_eq!(vm.apply(flip(true)).unwrap().grace_periods, grace_periods);
            assert_eq!(vm.apply(flip(false)).unwrap().grace_periods, 0);
            assert_eq!(model.counts().grace_periods, 1);
        }

        // In a set with something else.
        model.reset_counts();
        let mut both = flip(true);
        both.set_log_dirty(ram, true);
        assert_eq!(vm.apply(both).unwrap().grace_periods, 1, "of the log");
        assert_eq!(guest(PAGE), GuestAccess::Mmio);
        assert_eq!(model.counts().grace_periods, 1);

        // Other flags leave it alone.
        vm.apply(changes(|c| c.set_log_dirty(rom, true))).unwrap();
        assert_eq!(guest(PAGE), GuestAccess::Mmio);
        let own = vm.slots(0);
        assert_eq!(own.len(), 2);
        assert!(own[1].mapping.flags().contains(MemFlags::TRAP | MemFlags::LOG_DIRTY_PAGES));
    }
}

#[test]
fn what_cannot_trap() {
    let (without, model) = vm(Limits::x86());
    let spec = || ram(0, 1).label("boot flash");
    let error = without.apply(changes(|c| _ = c.map(spec().trapped()))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TrapUnsupported));
    assert!(error.to_string().contains("boot flash"), "{error}");
    assert_eq!(model.counts().ioctls, 0);

    let (vm, model) = vm(Limits::x86().with_trap());
    let [id] = map_all(&vm, [spec()]);
    model.reset_counts();
    for on in [true, false] {
        let set = || changes(|c| c.set_trap(id, on));
        for error in [vm.preview(&set()).unwrap_err(), vm.apply(set()).unwrap_err()] {
            assert!(matches!(error.kind(), ErrorKind::NotAlone), "{error}");
            assert!(error.to_string().contains("alone"), "{error}");
        }
    }
    assert_eq!(model.counts().ioctls, 0);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Trap(bool),
    Log(bool),
    Move,
}

/// What the model counts, reports and previews say, also where KVM refuses a call after
/// a slot has begun to trap.
#[test]
fn preview_and_report_count_what_kvm_does() {
    let step = prop_oneof![
        4 => any::<bool>().prop_map(Step::Trap),
        1 => any::<bool>().prop_map(Step::Log),
        1 => Just(Step::Move),
    ];
    let set = (vec((0..4_usize, step), 2..7), prop_oneof![1 => Just(0), 1 => 2..4_u64]);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) };
    let batches = prop_oneof![Just(None), Just(Some(3)), Just(Some(64))];
    proptest!(config, |(sets in vec(set, 1..12), entries in batches)| {
        let limits = Limits::x86().with_trap().with_address_spaces(2);
        let (vm, model) = vm(batched(limits, entries));
        let rom = |page, space| ram(page, 1).alone().address_space(space);
        let regions = map_all(&vm, [rom(0, 0), rom(2, 0), rom(4, 1), rom(6, 1)]);
        let mut next = 100;
        for (steps, refused) in sets {
            let mut c = Changes::new();
            for (region, step) in steps {
                match step {
                    Step::Trap(on) => c.set_trap(regions[region], on),
                    Step::Log(on) => c.set_log_dirty(regions[region], on),
                    Step::Move => {
                        next += 2;
                        c.move_to(regions[region], next * PAGE);
                    }
                }
            }
            let planned = vm.preview(&c).unwrap().grace_periods;
            if refused > 0 {
                model.inject(Fault::nth(refused, Errno::ENOMEM));
            }
            let before = model.counts().grace_periods;
            let result = vm.apply(c);
            model.clear_faults();
            if let Ok(report) = result {
                prop_assert_eq!(report.grace_periods, model.counts().grace_periods - before);
                prop_assert_eq!(report.grace_periods, planned);
            }
        }
    });
}

#[test]
fn a_first_flip_that_was_taken_back_was_the_first() {
    let (vm, model) = vm(Limits::x86().with_trap());
    let [a, b] = map_all(&vm, [ram(0, 1).alone(), ram(2, 1).alone()]);
    let both = || changes(|c| [a, b].into_iter().for_each(|id| c.set_trap(id, true)));
    model.inject(Fault::nth(2, Errno::ENOMEM));
    vm.apply(both()).unwrap_err();
    model.reset_counts();
    assert_eq!(vm.preview(&both()).unwrap().grace_periods, 0);
    assert_eq!(vm.apply(both()).unwrap().grace_periods, 0);
    assert_eq!(model.counts().grace_periods, 0);
}
