//! Vectors that are masked, unmasked, given other messages and other eventfds.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use kvm_memslots::backend::model::events::{Call, Fault};
use kvm_memslots::backend::{EventLimits, EventModel, Irqchip};
use kvm_memslots::device::{Device, DeviceId, RouteTarget, Trigger};
use kvm_memslots::{Errno, ErrorKind, Limits};
use proptest::prelude::*;

use crate::rig::{Rig, device, eventfd, msi};

/// A device with that many vectors, none of which has a message.
fn masked(rig: &Rig, vectors: usize) -> (DeviceId, Vec<Arc<OwnedFd>>) {
    let fds: Vec<_> = (0..vectors).map(|_| Arc::new(eventfd())).collect();
    let device = Device::new("nic");
    let device = fds.iter().fold(device, |device, fd| device.vector(Arc::clone(fd), None));
    (rig.attach(device).unwrap(), fds)
}

/// A VM with no more than `gsis` of them.
fn short(gsis: u32) -> Rig {
    let limits = EventLimits { routes: 24 + gsis, ..EventLimits::x86() };
    let events = EventModel::new(Irqchip::Split).with_limits(limits);
    Rig::on(Limits::x86(), events, |builder| builder)
}

#[test]
fn masking_keeps_the_route() {
    let rig = Rig::new();
    let (id, fds) = masked(&rig, 64);
    let all = |data: Option<u32>| {
        let (_, report) = rig
            .apply(|c| {
                let message = |vector| data.map(|data| msi(data + vector));
                (0..64).for_each(|vector| c.set_vector(id, vector as usize, message(vector)));
            })
            .unwrap();
        rig.assert_known();
        report.events
    };
    assert_eq!(all(Some(0x20)).routing_calls, 1);
    let gsis: Vec<_> = (0..64).map(|vector| rig.vm.gsi(id, vector).unwrap()).collect();
    let (routes, assigned) = (rig.events.state().routes, rig.events.state().assigned);

    let mask = all(None);
    assert!(fds.iter().all(|fd| rig.events.signalled(fd.as_raw_fd()).is_empty()));
    assert_eq!(rig.events.state().routes, routes);
    let unmask = all(Some(0x20));
    assert_eq!(mask.calls() + unmask.calls(), 128);
    assert_eq!((mask.waits.in_calls, unmask.waits.in_calls), (0, 0));
    assert_eq!(rig.events.state().assigned, assigned);
    let after: Vec<_> = (0..64).map(|vector| rig.vm.gsi(id, vector).unwrap()).collect();
    assert_eq!(after, gsis);

    // With another message it is the table, once.
    all(None);
    let other = all(Some(0x21));
    assert_eq!((other.routing_calls, other.irqfd_calls), (1, 64));
    let raised = rig.events.signalled(fds[3].as_raw_fd());
    assert_eq!(raised, [RouteTarget::Msi(msi(0x24))]);
}

#[test]
fn a_trigger_is_masked_without_a_call() {
    let rig = Rig::new();
    let trigger = Arc::new(Trigger::new(eventfd()));
    let device = Device::new("nic").triggered_vector(Arc::clone(&trigger), Some(msi(0x30)));
    let id = rig.attach(device).unwrap();
    assert!(!trigger.is_masked());
    let before = rig.seen();
    let report = rig.set_vector(id, 0, None).unwrap();
    assert_eq!((report.calls(), trigger.is_masked()), (0, true));
    trigger.signal().unwrap();
    assert!(trigger.is_pending());
    let report = rig.set_vector(id, 0, Some(msi(0x30))).unwrap();
    assert_eq!((report.calls(), trigger.is_masked(), trigger.is_pending()), (0, false, false));
    assert_eq!(rig.seen(), before);

    // What is refused leaves the mask as it was, both ways.
    rig.events.inject(Fault::nth(1, Errno::ENOMEM).only(Call::Routing));
    rig.set_vector(id, 0, Some(msi(0x31))).unwrap_err();
    assert!(!trigger.is_masked());
    rig.events.inject(Fault::nth(1, Errno::ENOMEM).only(Call::AssignIrqfd));
    rig.apply(|c| {
        c.set_vector(id, 0, None);
        c.attach(Device::new("other").vector(eventfd(), Some(msi(1))))
    })
    .map(drop)
    .unwrap_err();
    assert!(!trigger.is_masked());
    rig.set_vector(id, 0, None).unwrap();
    rig.events.inject(Fault::nth(1, Errno::ENOMEM).only(Call::Routing));
    rig.set_vector(id, 0, Some(msi(0x31))).unwrap_err();
    assert!(trigger.is_masked());
    rig.set_vector(id, 0, Some(msi(0x31))).unwrap();
    rig.assert_known();

    rig.detach(id).unwrap();
    assert!(trigger.is_masked());
    assert_eq!(Arc::strong_count(&trigger), 1);
}

#[test]
fn a_vector_gets_another_eventfd() {
    let rig = Rig::new();
    let (id, fds) = masked(&rig, 2);
    rig.set_vector(id, 0, Some(msi(0x30))).unwrap();
    let new = Arc::new(eventfd());
    let swap = |vector| rig.apply(|c| c.set_vector_fd(id, vector, Arc::clone(&new)));
    let (_, report) = swap(0).unwrap();
    assert_eq!((report.events.routing_calls, report.events.irqfd_calls), (0, 2));
    assert_eq!(rig.events.signalled(fds[0].as_raw_fd()), []);
    assert_eq!(rig.events.signalled(new.as_raw_fd()), [RouteTarget::Msi(msi(0x30))]);
    assert_eq!(Arc::strong_count(&fds[0]), 1, "let go");

    // KVM has an eventfd once: the other vector can't have it, too.
    rig.set_vector(id, 1, Some(msi(0x31))).unwrap();
    let error = swap(1).map(drop).unwrap_err();
    assert_eq!(error.errno(), Errno::EBUSY);
    assert_eq!(rig.events.signalled(fds[1].as_raw_fd()), [RouteTarget::Msi(msi(0x31))]);
    rig.assert_known();
    // While it is masked, there is nothing to be done.
    rig.set_vector(id, 0, None).unwrap();
    let (_, report) = rig.apply(|c| c.set_vector_fd(id, 0, eventfd())).unwrap();
    assert_eq!(report.calls(), 0);
    let error = rig.apply(|c| c.set_vector_fd(id, 2, eventfd())).map(drop).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoSuchVector { vectors: 2 }), "{error}");
    rig.detach(id).unwrap();
    assert_eq!(Arc::strong_count(&new), 1);
}

#[test]
fn gsis_that_were_given_up_come_back_when_they_are_needed() {
    let rig = short(4);
    let (id, fds) = masked(&rig, 6);
    for vector in 0..4 {
        rig.set_vector(id, vector, Some(msi(0x30))).unwrap();
    }
    let error = rig.set_vector(id, 4, Some(msi(0x30))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoGsiLeft { .. }), "{error}");
    let gsi = |vector| rig.vm.gsi(id, vector).unwrap();
    let given_up = [gsi(2), gsi(0)];
    rig.set_vector(id, 2, None).unwrap();
    rig.set_vector(id, 0, None).unwrap();
    // The one that was masked first is first, and costs nothing beside.
    let report = rig.set_vector(id, 4, Some(msi(0x34))).unwrap();
    assert_eq!((report.events.routing_calls, report.events.irqfd_calls), (1, 1));
    assert_eq!([gsi(4), gsi(2), gsi(0)], [given_up[0], None, given_up[1]]);
    assert_eq!(rig.events.signalled(fds[4].as_raw_fd()), [RouteTarget::Msi(msi(0x34))]);
    // Two at once, of which one is masked in the same set.
    rig.apply(|c| {
        c.set_vector(id, 2, Some(msi(0x32)));
        c.set_vector(id, 1, None);
        c.set_vector(id, 5, Some(msi(0x35)));
    })
    .unwrap();
    assert_eq!((gsi(0), gsi(1)), (None, None));
    rig.assert_known();
    // A line may need one, too.
    let (vector, line) = (3, gsi(3).unwrap());
    rig.set_vector(id, vector, None).unwrap();
    let serial = Device::new("serial").line(line, None, eventfd(), None);
    rig.attach(serial).unwrap();
    assert_eq!(gsi(vector), None);
    rig.assert_known();
}

#[test]
fn a_device_is_detached_whatever_became_of_its_region() {
    for what in ["unmapped", "split", "moved", "resized"] {
        let rig = Rig::new();
        let before = rig.seen();
        let id = rig.attach(device(0, 5)).unwrap();
        let region = rig.vm.device_regions(id).unwrap()[0];
        let upper = rig
            .apply(|c| match what {
                "unmapped" => {
                    c.unmap(region);
                    None
                }
                "split" => Some(c.split(region, 0x1000)),
                "moved" => {
                    c.move_to(region, 0xe800_0000);
                    None
                }
                _ => {
                    c.resize(region, 0x1000);
                    None
                }
            })
            .unwrap()
            .0;
        rig.set_vector(id, 1, None).unwrap();
        rig.detach(id).unwrap();
        if let Some(upper) = upper {
            // What the VMM has split off is the VMM's.
            assert_eq!(rig.vm.region(upper).unwrap().range.size(), 0x3000, "{what}");
            rig.apply(|c| c.unmap(upper)).unwrap();
        }
        assert_eq!(rig.seen(), before, "{what}");
        rig.assert_known();
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    /// There are GSIs for four of seven vectors: a set is refused only if more
    /// than four are to raise something at its end or on the way.
    #[test]
    fn short_gsis_go_to_those_who_need_them(
        sets in prop::collection::vec(
            prop::collection::vec((0..7_usize, prop::option::of(0x20..0x24_u32)), 1..4),
            1..40,
        ),
    ) {
        let rig = short(4);
        let (id, fds) = masked(&rig, 7);
        let mut expected = [None; 7];
        for set in sets {
            let mut wanted = expected;
            let mut fits = true;
            let done = rig.apply(|c| {
                for (vector, data) in set {
                    c.set_vector(id, vector, data.map(msi));
                    wanted[vector] = data.map(msi);
                    fits &= wanted.iter().flatten().count() <= 4;
                }
            });
            prop_assert_eq!(done.is_ok(), fits, "{:?}", done);
            if fits {
                expected = wanted;
            }
            rig.assert_known();
            for (fd, msi) in fds.iter().zip(expected) {
                let raised = rig.events.signalled(fd.as_raw_fd());
                prop_assert_eq!(raised, Vec::from_iter(msi.map(RouteTarget::Msi)));
            }
        }
        rig.detach(id).unwrap();
        prop_assert!(rig.events.state().routes.is_empty());
    }
}
