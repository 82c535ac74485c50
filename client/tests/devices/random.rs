//! Any sequence of attaches, changes and detaches, some of which KVM refuses,
//! leads to what a VMM would have got call by call.

use std::collections::BTreeMap;

use kvm_memslots::backend::Errno;
use kvm_memslots::device::{DeviceId, EventFault, Msi};
use proptest::prelude::*;

use crate::rig::{Rig, device, msi};

#[derive(Debug, Clone)]
enum Op {
    Attach(Vec<u64>),
    Detach(Vec<u64>),
    Vector(u64, usize, Option<u32>),
    Commit,
}

fn op() -> impl Strategy<Value = (Op, Option<(u64, bool)>)> {
    let devices = || prop::collection::btree_set(0..6_u64, 1..4).prop_map(Vec::from_iter);
    let op = prop_oneof![
        3 => devices().prop_map(Op::Attach),
        2 => devices().prop_map(Op::Detach),
        4 => (0..6_u64, 0..4_usize, prop::option::of(0x20..0x28_u32))
            .prop_map(|(device, vector, msi)| Op::Vector(device, vector, msi)),
        2 => Just(Op::Commit),
    ];
    (op, prop::option::weighted(0.3, (1..20_u64, any::<bool>())))
}

/// Vectors of each attached device, by its number.
type Expected = BTreeMap<u64, (DeviceId, [Option<Msi>; 4])>;

fn check(rig: &Rig, expected: &Expected) {
    rig.assert_known();
    let state = rig.events.lock().state().clone();
    assert_eq!(
        rig.memory.lock().slots(0).map(|slot| slot.mapping.range.size).sum::<u64>(),
        expected.len() as u64 * crate::rig::BAR_SIZE
    );
    assert_eq!(state.ioeventfds.len(), expected.len() * 2);
    let mut wanted: Vec<Msi> =
        expected.values().flat_map(|(_, msis)| msis.iter().copied().flatten()).collect();
    assert_eq!(state.irqfds.len(), wanted.len());
    // Each irqfd raises one message, of its own GSI.
    let events = rig.events.lock();
    let mut raised: Vec<Msi> = state
        .irqfds
        .iter()
        .map(|irqfd| match events.signalled(irqfd.fd)[..] {
            [kvm_memslots::device::RouteTarget::Msi(msi)] => msi,
            ref other => panic!("{other:?}"),
        })
        .collect();
    wanted.sort_unstable();
    raised.sort_unstable();
    assert_eq!(raised, wanted);
    assert_eq!(state.routes.len(), 40 + wanted.len());
}

fn run(ops: Vec<(Op, Option<(u64, bool)>)>) {
    let mut rig = Rig::new();
    let mut expected = Expected::new();
    let mut staged = Expected::new();
    for (op, fault) in ops {
        if let Some((nth, forever)) = fault {
            let errno = Errno::ENOMEM;
            rig.events.lock().inject(EventFault { only: None, nth, forever, errno });
        }
        let mut changed = false;
        match op {
            Op::Attach(numbers) => {
                let setups = numbers.iter().map(|n| device(*n, 0));
                let free = numbers.iter().all(|n| !expected.contains_key(n));
                let attached = rig.eventing.attach_all(&mut rig.space, setups);
                assert!(free || attached.is_err());
                if let Ok((ids, _)) = attached {
                    let first = [Some(msi(0x30)), Some(msi(0x31)), Some(msi(0x32)), None];
                    staged.extend(numbers.iter().zip(ids).map(|(n, id)| (*n, (id, first))));
                    changed = true;
                }
            }
            Op::Detach(numbers) => {
                let ids: Option<Vec<DeviceId>> =
                    numbers.iter().map(|n| expected.get(n).map(|(id, _)| *id)).collect();
                if let Some(ids) = ids {
                    if rig.eventing.detach_all(&mut rig.space, &ids).is_ok() {
                        staged.retain(|n, _| !numbers.contains(n));
                        changed = true;
                    }
                }
            }
            Op::Vector(n, vector, data) => {
                if let Some((id, msis)) = staged.get_mut(&n) {
                    rig.eventing.set_vector(*id, vector, data.map(msi)).unwrap();
                    msis[vector] = data.map(msi);
                }
            }
            Op::Commit => match rig.eventing.commit() {
                Ok(_) => changed = true,
                Err(_) => staged = expected.clone(),
            },
        }
        if changed {
            expected = staged.clone();
        }
        rig.assert_known();
        rig.events.lock().clear_faults();
        if changed {
            check(&rig, &expected);
        }
    }
    rig.eventing.commit().unwrap();
    check(&rig, &staged);
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
