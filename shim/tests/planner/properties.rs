//! What every plan must be, on random layouts.

use std::collections::BTreeSet;

use kvm_memslots_shim::memory::{Extent, How, Op, Plan, PlanError};
use kvm_memslots_shim::{Limits, Range};
use proptest::prelude::*;

use crate::vm::{PAGE, Vm, assert_carried, check, drawn, extents, shifted};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn any_sequence_ends_in_exactly_the_wanted_layout(
        layouts in prop::collection::vec((prop::collection::vec(drawn(), 0..12), 0..4_u64), 1..6),
    ) {
        let limits = Limits::x86().with_guest_memfd();
        let mut vm = Vm::default();
        let mut previous = Vec::new();
        for (drawn, shift) in layouts {
            // Every other time memory that is there moves, which is what the
            // draws alone would hardly ever do.
            let wanted =
                if shift == 3 { shifted(&previous, 3) } else { extents(&drawn) };
            check(&mut vm, &wanted, &limits);
            previous = wanted;
        }
    }

    #[test]
    fn a_layout_that_fits_is_made_to_fit(
        layouts in prop::collection::vec(prop::collection::vec(drawn(), 0..12), 1..6),
    ) {
        let limits = Limits::x86();
        let mut vm = Vm { make_room: Some(0), ..Vm::default() };
        for drawn in layouts {
            let public: Vec<_> = drawn.into_iter().filter(|drawn| !drawn.memfd).collect();
            let wanted = extents(&public);
            // The fewest slots that can hold it: what an empty VM gets where
            // all are willing.
            let willing: Vec<_> = wanted.iter().map(|e| Extent { joins: true, ..*e }).collect();
            let fewest = Vm::default().plan(&willing, &limits).unwrap().ops.len() as u32;
            let highest = vm.slots.keys().max().map_or(0, |id| u32::from(*id) + 1);
            check(&mut vm, &wanted, &limits.with_slots(fewest.max(highest)));
            if fewest > 0 {
                let short = limits.with_slots(fewest - 1);
                let too_many =
                    PlanError::TooManySlots { needed: u64::from(fewest), available: fewest - 1 };
                let empty = Vm { make_room: Some(7), ..Vm::default() };
                prop_assert_eq!(empty.plan(&wanted, &short).unwrap_err(), too_many);
                prop_assert_eq!(Vm::default().plan(&willing, &short).unwrap_err(), too_many);
            }
        }
    }

    #[test]
    fn private_memory_is_not_given_up_for_others(
        before in prop::collection::vec(drawn(), 0..12),
        wanted in prop::collection::vec(drawn(), 0..12),
        short in 0..4_u32,
        spare in 0..4_u32,
    ) {
        let limits = Limits::x86().with_guest_memfd();
        let mut vm = Vm { make_room: Some(spare), ..Vm::default() };
        check(&mut vm, &extents(&before), &limits);
        let wanted = extents(&wanted);
        let gone = |plan: &Plan| -> BTreeSet<u16> {
            let gone = plan.ops.iter().filter(|op| op.invalidates()).filter_map(Op::before);
            gone.filter(|slot| slot.mapping.guest_memfd().is_some()).map(|slot| slot.id).collect()
        };
        let ample = vm.plan(&wanted, &limits).unwrap();
        let mut after = vm.clone();
        after.carry_out(&ample);
        let highest = vm.slots.keys().max().map_or(0, |id| u32::from(*id) + 1);
        let tight = (after.slots.len() as u32).saturating_sub(short).max(highest);
        if let Ok(plan) = vm.plan(&wanted, &limits.with_slots(tight)) {
            prop_assert_eq!(gone(&plan), gone(&ample));
            check(&mut vm, &wanted, &limits.with_slots(tight));
        }
    }

    #[test]
    fn a_plan_and_its_inverse_lead_back(
        before in prop::collection::vec(drawn(), 0..12),
        wanted in prop::collection::vec(drawn(), 0..12),
        shift in 0..4_u64,
    ) {
        let limits = Limits::x86().with_guest_memfd();
        let mut vm = Vm::default();
        check(&mut vm, &extents(&before), &limits);
        let start = vm.live();
        let wanted =
            if shift == 3 { shifted(&extents(&before), 3) } else { extents(&wanted) };
        let plan = vm.plan(&wanted, &limits).unwrap();
        vm.carry_out(&plan);
        let inverse = plan.inverse();
        prop_assert_eq!(inverse.cost(How::PerRegion, &mut false).ioctls, plan.cost(How::PerRegion, &mut false).ioctls);
        let before = vm.mapped();
        let missing = vm.carry_out(&inverse);
        assert_carried(&inverse, &before, &vm.mapped());
        let pages = |hole: &Range| (hole.gpa()..hole.end()).step_by(PAGE as usize);
        prop_assert_eq!(missing, inverse.holes.iter().flat_map(pages).collect::<Vec<_>>());
        prop_assert_eq!(vm.live(), start);
        prop_assert_eq!(inverse.inverse().ops, plan.ops);
    }

    #[test]
    fn order_of_the_input_does_not_matter(drawn in prop::collection::vec(drawn(), 0..12)) {
        let limits = Limits::x86().with_guest_memfd();
        let wanted = extents(&drawn);
        let reversed: Vec<_> = wanted.iter().rev().copied().collect();
        let vm = Vm::default();
        prop_assert_eq!(vm.plan(&wanted, &limits).unwrap(), vm.plan(&reversed, &limits).unwrap());
    }
}
