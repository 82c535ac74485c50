//! Any sequence of attaches, changes and detaches, some of which KVM refuses,
//! leads to what a VMM would have got call by call.

use std::collections::BTreeMap;

use kvm_memslots::Errno;
use kvm_memslots::backend::model::events::Fault;
use kvm_memslots::device::{DeviceId, Msi, RouteTarget};
use proptest::prelude::*;

use crate::rig::{BAR_SIZE, Rig, device, msi};

#[derive(Debug, Clone)]
enum Op {
    Attach(Vec<u64>),
    Detach(Vec<u64>),
    Vectors(Vec<(u64, usize, Option<u32>)>),
    /// Nothing, which repairs.
    Empty,
}

fn op() -> impl Strategy<Value = (Op, Option<(u64, bool)>)> {
    let devices = || prop::collection::btree_set(0..6_u64, 1..4).prop_map(Vec::from_iter);
    let vector = (0..6_u64, 0..4_usize, prop::option::of(0x20..0x28_u32));
    let op = prop_oneof![
        3 => devices().prop_map(Op::Attach),
        2 => devices().prop_map(Op::Detach),
        4 => prop::collection::vec(vector, 1..6).prop_map(Op::Vectors),
        1 => Just(Op::Empty),
    ];
    (op, prop::option::weighted(0.3, (1..20_u64, any::<bool>())))
}

/// Vectors of each attached device, by its number: their messages, and whether
/// they ever had one.
type Expected = BTreeMap<u64, (DeviceId, [Option<Msi>; 4], [bool; 4])>;

fn check(rig: &Rig, expected: &Expected) {
    rig.assert_known();
    let state = rig.events.state();
    assert_eq!(
        rig.memory.slots(0).iter().map(|slot| slot.mapping.range().size()).sum::<u64>(),
        expected.len() as u64 * BAR_SIZE
    );
    assert_eq!(state.ioeventfds().count(), expected.len() * 2);
    let mut wanted: Vec<Msi> =
        expected.values().flat_map(|(_, msis, _)| msis.iter().copied().flatten()).collect();
    assert_eq!(state.irqfds().count(), wanted.len());
    // Each irqfd raises one message, of its own GSI.
    let mut raised: Vec<Msi> = state
        .irqfds()
        .map(|irqfd| match rig.events.signalled(irqfd.fd)[..] {
            [RouteTarget::Msi(msi)] => msi,
            ref other => panic!("{other:?}"),
        })
        .collect();
    wanted.sort_unstable();
    raised.sort_unstable();
    assert_eq!(raised, wanted);
    // What is masked keeps its route.
    let routed = expected.values().flat_map(|(.., routed)| routed).filter(|routed| **routed);
    assert_eq!(state.routes.len(), 40 + routed.count());
}

fn run(ops: Vec<(Op, Option<(u64, bool)>)>) {
    let rig = Rig::new();
    let mut expected = Expected::new();
    for (op, fault) in ops {
        if let Some((nth, forever)) = fault {
            let errno = Errno::ENOMEM;
            let fault = if forever { Fault::from_nth(nth, errno) } else { Fault::nth(nth, errno) };
            rig.events.inject(fault);
        }
        let mut wanted = expected.clone();
        let done = match op {
            Op::Attach(numbers) => {
                let free = numbers.iter().all(|n| !expected.contains_key(n));
                let attached = rig.attach_all(numbers.iter().map(|n| device(*n, 0)));
                assert!(free || attached.is_err());
                attached.map(|(ids, _)| {
                    let first = [Some(msi(0x30)), Some(msi(0x31)), Some(msi(0x32)), None];
                    wanted.extend(
                        numbers
                            .iter()
                            .zip(ids)
                            .map(|(n, id)| (*n, (id, first, first.map(|msi| msi.is_some())))),
                    );
                })
            }
            Op::Detach(numbers) => {
                let ids = numbers.iter().filter_map(|n| wanted.remove(n));
                let ids: Vec<DeviceId> = ids.map(|(id, ..)| id).collect();
                rig.detach_all(&ids).map(drop)
            }
            Op::Vectors(vectors) => rig
                .apply(|c| {
                    for (n, vector, data) in vectors {
                        let Some((id, msis, routed)) = wanted.get_mut(&n) else { continue };
                        c.set_vector(*id, vector, data.map(msi));
                        msis[vector] = data.map(msi);
                        routed[vector] |= data.is_some();
                    }
                })
                .map(drop),
            Op::Empty => rig.detach_all(&[]).map(drop),
        };
        rig.assert_known();
        rig.events.clear_faults();
        if done.is_ok() {
            expected = wanted;
            check(&rig, &expected);
        }
    }
    rig.detach_all(&[]).unwrap();
    check(&rig, &expected);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn any_sequence_leads_to_what_was_asked_for(ops in prop::collection::vec(op(), 1..30)) {
        run(ops);
    }
}
