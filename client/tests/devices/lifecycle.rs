//! Attach, change, detach: what KVM is asked, and what it has then.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_memslots::backend::model::events::{Call, Fault};
use kvm_memslots::backend::{EventLimits, EventModel, Irqchip};
use kvm_memslots::device::{Bus, Device, Doorbell, Event, Route, RouteTarget, Trigger};
use kvm_memslots::{Errno, ErrorKind, Limits};

use crate::rig::{Rig, device, eventfd, msi};

#[test]
fn sixteen_devices_are_one_set_and_one_table() {
    for (limits, slots) in [(Limits::x86(), 16), (Limits::x86().with_batch(64), 1)] {
        let events = EventModel::new(Irqchip::Full);
        let rig = Rig::on(limits, events, |b| b.own_routes(Route::x86_defaults()));
        let before = rig.seen();
        let (ids, report) = rig.attach_all((0..16).map(|n| device(n, 0))).unwrap();
        rig.assert_known();
        assert_eq!((report.ioctls, report.events.routing_calls), (slots, 1));
        assert_eq!((report.events.irqfd_calls, report.events.ioeventfd_calls), (48, 32));
        assert_eq!(report.waits(), slots + 1);
        let all = format!("{} calls, {} waits for grace periods, ", slots + 81, slots + 1);
        assert!(report.to_string().starts_with(&all), "{report}");

        let report = rig.detach_all(&ids).unwrap();
        assert_eq!(report.events.routing_calls, 1);
        assert_eq!(report.events.waits.in_irqfd_shutdown, 48);
        let beyond = report.waits() - report.events.waits.in_ioeventfd_deassign;
        assert_eq!(beyond, report.grace_periods + 1, "and one for the routes");
        assert!(report.grace_periods <= 2 * slots);
        assert_eq!(rig.seen(), before);
        rig.assert_known();
    }
}

#[test]
fn vectors_enabled_together_are_one_table() {
    let rig = Rig::new();
    let net = (0..64).fold(Device::new("net0"), |device, _| device.vector(eventfd(), None));
    let id = rig.attach(net).unwrap();
    assert_eq!(rig.events.counts().calls.len(), 0, "masked vectors cost nothing");
    let (_, report) = rig
        .apply(|c| {
            (0..64).for_each(|vector| c.set_vector(id, vector, Some(msi(0x20 + vector as u32))));
        })
        .unwrap();
    assert_eq!((report.events.routing_calls, report.events.irqfd_calls), (1, 64));
    rig.assert_known();

    // The same again, and there and back, cost nothing.
    let (_, report) = rig
        .apply(|c| {
            c.set_vector(id, 3, Some(msi(0x23)));
            c.set_vector(id, 4, None);
            c.set_vector(id, 4, Some(msi(0x24)));
        })
        .unwrap();
    assert_eq!(report.calls(), 0);

    // Another message is the table alone: no event can get lost.
    let report = rig.set_vector(id, 5, Some(msi(0x99))).unwrap();
    assert_eq!((report.events.routing_calls, report.events.irqfd_calls), (1, 0));
}

#[test]
fn the_vmms_own_routes_stay() {
    let own = Route::msi(40, msi(0x77));
    let rig = Rig::with(Irqchip::Full, |builder| {
        builder.own_routes(Route::x86_defaults().into_iter().chain([own])).reserve_gsis(24..=30)
    });
    let id = rig.attach(device(0, 0)).unwrap();
    let routes = rig.events.state().routes;
    assert!(routes.contains(&own));
    assert!(Route::x86_defaults().iter().all(|route| routes.contains(route)));
    for vector in 0..3 {
        let gsi = rig.vm.gsi(id, vector).unwrap().unwrap();
        assert_eq!(gsi, 31 + vector as u32, "the lowest that is free");
    }
    // A change of its own.
    let other = Route::msi(41, msi(0x78));
    let all = Route::x86_defaults().into_iter().chain([other]);
    let (_, report) = rig.apply(|c| c.set_own_routes(all)).unwrap();
    assert_eq!(report.events.routing_calls, 1);
    let routes = rig.events.state().routes;
    assert!(routes.contains(&other) && !routes.contains(&own));

    rig.detach(id).unwrap();
    assert_eq!(rig.events.state().routes.len(), 41);
}

#[test]
fn gsis_are_used_again() {
    let rig = Rig::new();
    for round in 0..3000 {
        let id = rig.attach(device(0, 0)).unwrap();
        assert_eq!(rig.vm.gsi(id, 2).unwrap(), Some(26), "round {round}");
        rig.detach(id).unwrap();
    }
}

#[test]
fn level_triggered_lines_share_a_gsi() {
    let rig = Rig::new();
    let one = rig.attach(device(0, 5)).unwrap();
    let two = rig.attach(device(1, 5)).unwrap();
    let raises = || rig.events.state().irqfds().filter(|irqfd| irqfd.gsi == 5).count();
    assert_eq!(raises(), 2);
    rig.detach(one).unwrap();
    assert_eq!(raises(), 1);
    rig.detach(two).unwrap();
    assert_eq!(raises(), 0);
    assert_eq!(rig.events.state().routes.len(), 40);
}

#[test]
fn eventfds_share_an_msi_of_the_vmms_own() {
    let routes = [Route::msi(30, msi(7)), Route::irqchip(5, 0, 5)];
    let rig = Rig::new();
    rig.apply(|c| c.set_own_routes(routes)).unwrap();
    let queue = |gsi| Device::new("queue").line(gsi, None, eventfd(), None);
    let (ids, _) = rig.attach_all([queue(30), queue(30)]).unwrap();
    let irqfds: Vec<_> = rig.events.state().irqfds().collect();
    assert_eq!(irqfds.len(), 2);
    for irqfd in irqfds {
        assert_eq!(rig.events.signalled(irqfd.fd), [RouteTarget::Msi(msi(7))]);
    }
    rig.detach(ids[0]).unwrap();
    assert_eq!(rig.events.state().irqfds().count(), 1);
    // A pin has one that asks for no acknowledgement.
    rig.attach(queue(5)).unwrap();
    let error = rig.attach(queue(5)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::GsiTaken { gsi: 5, .. }), "{error}");
}

/// A line goes on when the VMM takes its route back: no vector gets its GSI.
#[test]
fn a_gsi_is_its_lines_whatever_becomes_of_the_route() {
    let rig = Rig::with(Irqchip::Split, |builder| builder.own_routes([Route::msi(24, msi(0x50))]));
    let line = rig.attach(Device::new("line").line(24, None, eventfd(), None)).unwrap();
    rig.apply(|c| c.set_own_routes([])).unwrap();
    let vector = || Device::new("nic").vector(eventfd(), Some(msi(0x30)));
    let one = rig.attach(vector()).unwrap();
    assert_eq!(rig.vm.gsi(one, 0).unwrap(), Some(25));
    rig.detach(line).unwrap();
    let two = rig.attach(vector()).unwrap();
    assert_eq!(rig.vm.gsi(two, 0).unwrap(), Some(24));
    rig.assert_known();
}

#[test]
fn what_is_signalled_goes_where_it_should() {
    let rig = Rig::new();
    let serial = Device::new("serial")
        .ioeventfd(Doorbell::at(Bus::Pio, 0x3f8).len(1), eventfd())
        .vector(eventfd(), Some(msi(0x55)))
        .line(4, None, eventfd(), None);
    rig.attach(serial).unwrap();
    let (events, state) = (&rig.events, rig.events.state());
    let irqfd = |gsi| state.irqfds().find(|irqfd| irqfd.gsi == gsi).unwrap().fd;
    assert_eq!(events.signalled(irqfd(24)), [RouteTarget::Msi(msi(0x55))]);
    let pins = [RouteTarget::Irqchip { chip: 0, pin: 4 }, RouteTarget::Irqchip { chip: 2, pin: 4 }];
    assert_eq!(events.signalled(irqfd(4)), pins);
    let kick = state.ioeventfds().next().unwrap();
    assert_eq!(events.guest_writes(Bus::Pio, 0x3f8, 1, 9), Some(kick.fd));
    assert_eq!(events.guest_writes(Bus::Pio, 0x3f8, 2, 9), None);
    assert_eq!(events.guest_writes(Bus::Mmio, 0x3f8, 1, 9), None);
}

#[test]
fn devices_without_hardware_behind_them_ask_for_no_bypass() {
    let limits = EventLimits { no_irqbypass: true, ..EventLimits::x86() };
    let events = EventModel::new(Irqchip::Split).with_limits(limits);
    let rig = Rig::on(Limits::x86(), events, |builder| builder);
    let vfio = Device::new("vfio").vector(eventfd(), Some(msi(1))).may_bypass();
    let virtio = Device::new("virtio").vector(eventfd(), Some(msi(2)));
    rig.attach_all([vfio, virtio]).unwrap();
    let state = rig.events.state();
    let flags: Vec<bool> = state.irqfds().map(|irqfd| irqfd.no_irqbypass).collect();
    assert_eq!(flags, [false, true]);
}

#[test]
fn ids_are_never_used_again() {
    let (rig, other) = (Rig::new(), Rig::new());
    let first = rig.attach(device(0, 0)).unwrap();
    rig.detach(first).unwrap();
    let second = rig.attach(device(0, 0)).unwrap();
    assert_ne!(first, second);
    let errors = [
        (rig.detach(first), first),
        (other.detach(second), second),
        (rig.detach_all(&[second, second]), second),
    ];
    for (result, device) in errors {
        let error = result.unwrap_err();
        let ErrorKind::UnknownDevice { id } = *error.kind() else { panic!("{error}") };
        assert_eq!(id, device);
    }
    assert_eq!(rig.vm.devices(), [second]);
    // A set that was applied already, in this VM.
    let mut c = kvm_memslots::Changes::new();
    c.attach(device(1, 0));
    rig.vm.apply(c.clone()).unwrap();
    let error = rig.vm.apply(c).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Twice { .. }), "{error}");
}

/// The descriptors are the caller's own, held until the device is detached.
#[test]
fn eventfds_are_held_as_they_are() {
    let rig = Rig::new();
    let mine = Arc::new(eventfd());
    let device = Device::new("dev").vector(Arc::clone(&mine), Some(msi(1)));
    let id = rig.attach(device).unwrap();
    let state = rig.vm.event_state().unwrap();
    assert!(state.irqfds().all(|irqfd| irqfd.fd == mine.as_raw_fd()));
    assert_eq!(rig.events.counts().of(Call::AssignIrqfd), 1);
    assert!(Arc::strong_count(&mine) > 1, "held");
    rig.set_vector(id, 0, None).unwrap();
    rig.detach(id).unwrap();
    assert_eq!(Arc::strong_count(&mine), 1, "let go");
}

#[test]
fn one_devices_ioeventfds_can_be_assigned_when_its_driver_is_there() {
    let rig = Rig::new();
    let ids = [0, 1].map(|n| rig.attach(device(n, 0).defer_ioeventfds()).unwrap());
    let (_, report) = rig.apply(|c| c.assign_deferred_of(ids[1])).unwrap();
    assert_eq!(report.events.ioeventfd_calls, 2);
    rig.assert_known();
    let (_, report) = rig.apply(|c| c.assign_deferred_of(ids[1])).unwrap();
    assert_eq!(report.calls(), 0);
    // One that is attached in the same set, and does not wait.
    let set = |c: &mut kvm_memslots::Changes| {
        let id = c.attach(device(2, 0).defer_ioeventfds());
        c.assign_deferred_of(id);
    };
    assert_eq!(rig.apply(set).unwrap().1.events.ioeventfd_calls, 2);
    rig.detach(ids[0]).unwrap();
    let error = rig.apply(|c| c.assign_deferred_of(ids[0])).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOENT, "{error}");
    let (said, error) = (error.to_string(), std::io::Error::from(error));
    assert_eq!((error.kind(), error.to_string()), (std::io::ErrorKind::NotFound, said));
}

#[test]
fn ioeventfds_can_be_left_to_later() {
    let rig = Rig::new();
    let attach = |n| rig.attach(device(n, 0).defer_ioeventfds()).unwrap();
    let ids: Vec<_> = (0..3).map(attach).collect();
    assert_eq!(rig.events.counts().of(Call::AssignIoeventfd), 0);
    // One that collides is seen all the same.
    let doorbell = Doorbell::at(Bus::Mmio, 0xd000_1000);
    rig.attach(Device::new("other").ioeventfd(doorbell, eventfd())).map(drop).unwrap_err();

    rig.detach(ids[0]).unwrap();
    rig.events.inject(Fault::nth(3, Errno::ENOMEM));
    rig.apply(kvm_memslots::Changes::assign_deferred).unwrap_err();
    assert_eq!(rig.events.state().ioeventfds().count(), 0);
    let (_, report) = rig.apply(kvm_memslots::Changes::assign_deferred).unwrap();
    assert_eq!((report.calls(), report.events.ioeventfd_calls), (4, 4));
    rig.assert_known();
    rig.detach_all(&ids[1..]).unwrap();
    assert_eq!(rig.events.state().ioeventfds().count(), 0);
}

/// A descriptor is asked for its number once: what it says later, or that it panics
/// then, is nothing that KVM is told of.
#[test]
fn a_descriptor_is_asked_once() {
    use std::os::fd::{OwnedFd, RawFd};
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Once(OwnedFd, AtomicBool);

    impl AsRawFd for Once {
        fn as_raw_fd(&self) -> RawFd {
            assert!(!self.1.swap(true, Ordering::Relaxed), "asked again");
            self.0.as_raw_fd()
        }
    }

    let once = || Once(eventfd(), AtomicBool::new(false));
    let rig = Rig::new();
    let bell = Doorbell::at(Bus::Mmio, 0xd000_0000).len(4);
    let trigger = Arc::new(Trigger::new(once()));
    let device = Device::new("dev")
        .ioeventfd(bell, once())
        .vector(once(), Some(msi(1)))
        .triggered_vector(Arc::clone(&trigger), Some(msi(2)))
        .line(5, None, once(), Some(Event::new(once())));
    let id = rig.attach(device).unwrap();
    trigger.signal().unwrap();
    rig.set_vector(id, 0, None).unwrap();
    rig.apply(|c| c.set_vector_fd(id, 0, once())).unwrap();
    rig.set_vector(id, 0, Some(msi(3))).unwrap();
    rig.assert_known();
    rig.detach(id).unwrap();
    rig.assert_known();
}
