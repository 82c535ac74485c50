//! Attach, change, detach: what KVM is asked, and what it has then.

use std::os::fd::AsRawFd;

use kvm_memslots::device::{
    Bus, DeviceErrorKind, DeviceSetup, EventCall, EventLimits, EventModel, Eventing, Irqchip,
    Route, RouteTarget, State,
};

use crate::rig::{Rig, device, eventfd, msi};

#[test]
fn sixteen_devices_are_one_transaction_and_one_table() {
    let mut rig = Rig::new();
    let before = rig.seen();
    let setups = (0..16).map(|n| device(n, 0));
    let (ids, report) = rig.eventing.attach_all(&mut rig.space, setups).unwrap();
    rig.assert_known();
    // The BARs are neighbours, and share a slot.
    assert_eq!(report.memory.unwrap().ioctls, 1);
    assert_eq!(report.events.routing_calls, 1);
    assert_eq!((report.events.irqfd_calls, report.events.ioeventfd_calls), (48, 32));
    assert_eq!(report.grace_periods(), 2);

    let report = rig.eventing.detach_all(&mut rig.space, &ids).unwrap();
    assert_eq!(report.events.routing_calls, 1);
    assert_eq!(report.events.waits.in_irqfd_shutdown, 48);
    let beyond = report.grace_periods() - report.events.waits.in_ioeventfd_deassign;
    assert_eq!(beyond, 3, "two for the slot's delete, one for the routes");
    assert_eq!(rig.seen(), before);
    rig.assert_known();
}

#[test]
fn vectors_enabled_one_by_one_are_one_table() {
    let mut rig = Rig::new();
    let mut setup = DeviceSetup::new("net0");
    for _ in 0..64 {
        setup.vector(eventfd(), None).unwrap();
    }
    let id = rig.eventing.attach(&mut rig.space, setup).unwrap();
    assert_eq!(rig.events.lock().counts().calls.len(), 0, "masked vectors cost nothing");
    for vector in 0..64 {
        rig.eventing.set_vector(id, vector, Some(msi(0x20 + vector as u32))).unwrap();
    }
    let report = rig.eventing.commit().unwrap();
    assert_eq!((report.events.routing_calls, report.events.irqfd_calls), (1, 64));
    rig.assert_known();

    // The same again, and there and back, cost nothing.
    rig.eventing.set_vector(id, 3, Some(msi(0x23))).unwrap();
    rig.eventing.set_vector(id, 4, None).unwrap();
    rig.eventing.set_vector(id, 4, Some(msi(0x24))).unwrap();
    assert_eq!(rig.eventing.commit().unwrap().ioctls(), 0);

    // Another message is the table alone: no event can get lost.
    rig.eventing.set_vector(id, 5, Some(msi(0x99))).unwrap();
    let report = rig.eventing.commit().unwrap();
    assert_eq!((report.events.routing_calls, report.events.irqfd_calls), (1, 0));

    // A masked vector keeps its events in the eventfd: no irqfd, no route.
    let gsi = rig.eventing.gsi(id, 5).unwrap().unwrap();
    rig.eventing.set_vector(id, 5, None).unwrap();
    let report = rig.eventing.commit().unwrap();
    assert_eq!((report.events.routing_calls, report.events.irqfd_calls), (1, 1));
    let state = rig.events.lock().state().clone();
    assert!(state.irqfds.iter().all(|irqfd| irqfd.gsi != gsi));
    assert!(state.routes.iter().all(|route| route.gsi != gsi));
}

#[test]
fn the_vmms_own_routes_stay() {
    let own = Route::msi(40, msi(0x77));
    let options = |builder: kvm_memslots::device::EventingBuilder| {
        builder.routes(Route::x86_defaults()).routes([own]).reserve_gsis(24..=30)
    };
    let mut rig = Rig::with(Irqchip::Full, options);
    let id = rig.eventing.attach(&mut rig.space, device(0, 0)).unwrap();
    let routes = rig.events.lock().state().routes.clone();
    assert!(routes.contains(&own));
    assert!(Route::x86_defaults().iter().all(|route| routes.contains(route)));
    for vector in 0..3 {
        let gsi = rig.eventing.gsi(id, vector).unwrap().unwrap();
        assert_eq!(gsi, 31 + vector as u32, "the lowest that is free");
    }
    // A change of its own goes along with the next commit.
    let other = Route::msi(41, msi(0x78));
    rig.eventing.set_own_routes(Route::x86_defaults().into_iter().chain([other])).unwrap();
    assert_eq!(rig.eventing.commit().unwrap().events.routing_calls, 1);
    let routes = rig.events.lock().state().routes.clone();
    assert!(routes.contains(&other) && !routes.contains(&own));

    rig.eventing.detach(&mut rig.space, id).unwrap();
    assert_eq!(rig.events.lock().state().routes.len(), 41);
}

#[test]
fn gsis_are_used_again() {
    let mut rig = Rig::new();
    for round in 0..3000 {
        let id = rig.eventing.attach(&mut rig.space, device(0, 0)).unwrap();
        assert_eq!(rig.eventing.gsi(id, 2).unwrap(), Some(26), "round {round}");
        rig.eventing.detach(&mut rig.space, id).unwrap();
    }
}

#[test]
fn level_triggered_lines_share_a_gsi() {
    let mut rig = Rig::new();
    let one = rig.eventing.attach(&mut rig.space, device(0, 5)).unwrap();
    let two = rig.eventing.attach(&mut rig.space, device(1, 5)).unwrap();
    let raises =
        |rig: &Rig| rig.events.lock().state().irqfds.iter().filter(|irqfd| irqfd.gsi == 5).count();
    assert_eq!(raises(&rig), 2);
    rig.eventing.detach(&mut rig.space, one).unwrap();
    assert_eq!(raises(&rig), 1);
    rig.eventing.detach(&mut rig.space, two).unwrap();
    assert_eq!(raises(&rig), 0);
    assert_eq!(rig.events.lock().state().routes.len(), 40);
}

#[test]
fn what_is_signalled_goes_where_it_should() {
    let mut rig = Rig::with(Irqchip::Full, |builder| builder.routes(Route::x86_defaults()));
    let mut setup = DeviceSetup::new("serial");
    setup.ioeventfd(Bus::Pio, 0x3f8, 1, None, eventfd()).unwrap();
    setup.vector(eventfd(), Some(msi(0x55))).unwrap();
    setup.line(4, None, eventfd(), None).unwrap();
    rig.eventing.attach(&mut rig.space, setup).unwrap();
    let events = rig.events.lock();
    let state = events.state();
    let irqfd = |gsi| state.irqfds.iter().find(|irqfd| irqfd.gsi == gsi).unwrap().fd;
    assert_eq!(events.signalled(irqfd(24)), [RouteTarget::Msi(msi(0x55))]);
    let pins = [RouteTarget::Irqchip { chip: 0, pin: 4 }, RouteTarget::Irqchip { chip: 2, pin: 4 }];
    assert_eq!(events.signalled(irqfd(4)), pins);
    let kick = state.ioeventfds.first().unwrap();
    assert_eq!(events.guest_writes(Bus::Pio, 0x3f8, 1, 9), Some(kick.fd));
    assert_eq!(events.guest_writes(Bus::Pio, 0x3f8, 2, 9), None);
    assert_eq!(events.guest_writes(Bus::Mmio, 0x3f8, 1, 9), None);
}

#[test]
fn devices_without_hardware_behind_them_ask_for_no_irqbypass() {
    let limits = EventLimits { routes: 4096, no_irqbypass: true, devid: false };
    let events = EventModel::new(Irqchip::Split).with_limits(limits).shared();
    let mut space = Rig::new().space;
    let mut eventing = Eventing::builder().open_on(Box::new(events.clone())).unwrap();
    let mut vfio = DeviceSetup::new("vfio");
    vfio.vector(eventfd(), Some(msi(1))).unwrap().may_bypass();
    let mut virtio = DeviceSetup::new("virtio");
    virtio.vector(eventfd(), Some(msi(2))).unwrap();
    eventing.attach_all(&mut space, [vfio, virtio]).unwrap();
    let flags: Vec<bool> =
        events.lock().state().irqfds.iter().map(|irqfd| irqfd.no_irqbypass).collect();
    assert_eq!(flags, [false, true]);
}

#[test]
fn ids_are_never_used_again() {
    let mut rig = Rig::new();
    let mut other = Rig::new();
    let first = rig.eventing.attach(&mut rig.space, device(0, 0)).unwrap();
    rig.eventing.detach(&mut rig.space, first).unwrap();
    let second = rig.eventing.attach(&mut rig.space, device(0, 0)).unwrap();
    assert_ne!(first, second);
    for (error, device) in [
        (rig.eventing.detach(&mut rig.space, first).unwrap_err(), first),
        (other.eventing.detach(&mut other.space, second).unwrap_err(), second),
    ] {
        let DeviceErrorKind::NotAttached { id } = *error.kind else { panic!("{error}") };
        assert_eq!(id, device);
    }
    let error = rig.eventing.detach_all(&mut rig.space, &[second, second]).unwrap_err();
    assert!(matches!(*error.kind, DeviceErrorKind::NamedTwice { .. }), "{error}");
    assert_eq!(rig.eventing.len(), 1);
}

/// The device holds its own descriptors: the caller's may be closed.
#[test]
fn eventfds_are_duplicated() {
    let mut rig = Rig::new();
    let mine = eventfd();
    let mut setup = DeviceSetup::new("dev");
    setup.vector(&mine, Some(msi(1))).unwrap();
    let raw = mine.as_raw_fd();
    drop(mine);
    rig.eventing.attach(&mut rig.space, setup).unwrap();
    let state: State = rig.eventing.live().clone();
    assert!(state.irqfds.iter().all(|irqfd| irqfd.fd != raw));
    assert_eq!(rig.events.lock().counts().of(EventCall::AssignIrqfd), 1);
}

#[test]
fn ioeventfds_can_be_left_to_the_commit() {
    let mut rig = Rig::new();
    let ids: Vec<_> = (0..3)
        .map(|n| {
            let mut setup = device(n, 0);
            setup.defer_ioeventfds();
            rig.eventing.attach(&mut rig.space, setup).unwrap()
        })
        .collect();
    assert_eq!(rig.events.lock().counts().of(EventCall::AssignIoeventfd), 0);
    // One that collides is seen all the same.
    let mut other = DeviceSetup::new("other");
    other.ioeventfd(Bus::Mmio, 0xd000_1000, 0, None, eventfd()).unwrap();
    rig.eventing.attach(&mut rig.space, other).map(drop).unwrap_err();

    rig.eventing.detach(&mut rig.space, ids[0]).unwrap();
    let errno = kvm_memslots::backend::Errno::ENOMEM;
    let fault = kvm_memslots::device::EventFault { only: None, nth: 3, forever: false, errno };
    rig.events.lock().inject(fault);
    rig.eventing.commit().unwrap_err();
    assert_eq!(rig.events.lock().state().ioeventfds.len(), 0);
    let report = rig.eventing.commit().unwrap();
    assert_eq!((report.ioctls(), report.events.ioeventfd_calls), (4, 4));
    rig.assert_known();
    rig.eventing.detach_all(&mut rig.space, &ids[1..]).unwrap();
    assert_eq!(rig.events.lock().state().ioeventfds.len(), 0);
}
