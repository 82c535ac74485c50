//! Bad input: an error that names device and part, and nothing attached.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_memslots::backend::model::events::FdKind;
use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::device::{Bus, Coalesced, Device, DevicePart, Doorbell, Event, Msi, Route};
use kvm_memslots::{Changes, Errno, Error, ErrorKind, Limits, RegionId, Vm};

use crate::rig::{BAR, Rig, bar, device, eventfd, msi};

/// Attaching fails so, with all devices as before.
fn refused(rig: &Rig, devices: Vec<Device>, start: &str) -> Error {
    let before = rig.seen();
    let there = rig.vm.devices();
    let last = devices.len() - 1;
    let error = rig.attach_all(devices).unwrap_err();
    let text = error.to_string();
    let text = text.strip_prefix(&format!("change {last}: ")).unwrap_or(&text);
    assert!(text.starts_with(start), "{error}");
    assert!(error.change().is_none_or(|change| change == last), "{error}");
    assert_eq!(rig.seen(), before);
    assert_eq!(rig.vm.devices(), there);
    rig.assert_known();
    error
}

/// They are KVM's to refuse: asking what a descriptor is would be a system call
/// more.
#[test]
fn descriptors_that_are_no_eventfds() {
    let rig = Rig::new();
    let file = Arc::new(File::open("/proc/self/maps").unwrap());
    let raw = file.as_raw_fd();
    for (kind, errno) in [(FdKind::Other, Errno::EINVAL), (FdKind::Closed, Errno::EBADF)] {
        rig.events.set_fd(raw, kind);
        let new = || Device::new("dev");
        let ack = Event::new(Arc::clone(&file));
        let port = Doorbell::at(Bus::Pio, 0x60).len(1);
        let line = DevicePart::Line { gsi: 3 };
        for (device, part, start) in [
            (
                new().vector(Arc::clone(&file), Some(msi(1))),
                DevicePart::Vector { index: 0 },
                "device \"dev\", vector 0: ",
            ),
            (
                new().ioeventfd(port, Arc::clone(&file)),
                DevicePart::Ioeventfd { index: 0 },
                "device \"dev\", ioeventfd 0: ",
            ),
            (
                new().line(3, None, eventfd(), Some(ack)),
                line,
                "device \"dev\", interrupt line at GSI 3: ",
            ),
        ] {
            let error = refused(&rig, vec![device], start);
            assert_eq!((error.part(), error.device()), (Some(part), Some("dev")), "{error}");
            assert!(matches!(error.kind(), ErrorKind::EventRefused { .. }), "{error}");
            assert_eq!(error.errno(), errno, "{error}");
        }
    }
}

#[test]
fn the_same_eventfd_twice() {
    let rig = Rig::new();
    let fd = Arc::new(eventfd());
    let device = Device::new("dev")
        .vector(Arc::clone(&fd), Some(msi(1)))
        .vector(Arc::clone(&fd), Some(msi(2)));
    let error = refused(&rig, vec![device], "device \"dev\", vector 1: KVM refused");
    assert_eq!(error.errno(), Errno::EBUSY);
    assert_eq!(Arc::strong_count(&fd), 1, "nobody holds it");
}

#[test]
fn ioeventfds_that_kvm_does_not_have() {
    let rig = Rig::new();
    let try_it = |len, addr, data: Option<u64>| {
        let doorbell = Doorbell::at(Bus::Mmio, addr).len(len);
        let doorbell = data.map_or(doorbell, |data| doorbell.value(data));
        let device = Device::new("dev").ioeventfd(doorbell, eventfd());
        refused(&rig, vec![device], "device \"dev\", ioeventfd 0: ")
    };
    let error = try_it(3, 0x1000, None);
    assert!(matches!(error.kind(), ErrorKind::IoeventfdLength { len: 3 }), "{error}");
    for error in [try_it(0, 0x1000, Some(1)), try_it(1, 0x1000, Some(256))] {
        assert!(matches!(error.kind(), ErrorKind::IoeventfdValue { .. }), "{error}");
    }
    let error = try_it(8, u64::MAX - 3, None);
    assert!(
        matches!(error.kind(), ErrorKind::EventWraps { len: 8, in_region: false, .. }),
        "{error}"
    );
}

#[test]
fn the_same_ioeventfd_twice() {
    let rig = Rig::new();
    rig.attach(device(0, 0)).unwrap();
    let with = |len, data: Option<u64>| {
        let doorbell = Doorbell::at(Bus::Mmio, 0xd000_0000).len(len);
        let doorbell = data.map_or(doorbell, |data| doorbell.value(data));
        Device::new("other").ioeventfd(doorbell, eventfd())
    };
    let start = "device \"other\", ioeventfd 0: ioeventfd at GPA 0xd0000000";
    let error = refused(&rig, vec![with(2, Some(1))], start);
    assert!(error.to_string().contains("ioeventfd 1 of device \"dev0\""), "{error}");
    refused(&rig, vec![with(2, None)], "device \"other\"");
    refused(&rig, vec![with(0, None)], "device \"other\"");
    refused(&rig, vec![with(4, None), with(4, Some(7))], "device \"other\"");
    // Another value and another length are other ioeventfds.
    rig.attach_all([with(2, Some(2)), with(4, None)]).unwrap();
}

#[test]
fn overlapping_bars() {
    let rig = Rig::new();
    let id = RegionId::new();
    let other = Device::new("other").region(id, bar(BAR + 0x1000, 0x1000).label("BAR 2"));
    let start = "device \"other\": RAM \"BAR 2\"";
    let error = refused(&rig, vec![device(0, 0), other.clone()], start);
    assert!(matches!(error.kind(), ErrorKind::Overlap { .. }), "{error}");
    assert_eq!(error.region().map(|region| region.id), Some(id));
    rig.attach(device(0, 0)).unwrap();
    refused(&rig, vec![device(1, 0), other], start);
}

#[test]
fn gsis_that_are_taken_or_do_not_exist() {
    let rig =
        Rig::with(Irqchip::Full, |b| b.own_routes(Route::x86_defaults()).reserve_gsis(50..=60));
    let line = |gsi, resample: bool| {
        let ack = resample.then(|| Event::new(eventfd()));
        Device::new("line").line(gsi, None, eventfd(), ack)
    };
    rig.attach_all([device(0, 5), line(6, false)]).unwrap();
    let start = "device \"line\", interrupt line at GSI";
    let cases = [
        (vec![line(4096, false)], "beyond KVM's limit"),
        (vec![line(55, false)], "the VMM, which reserved it"),
        (vec![line(5, false)], "a line of device \"dev0\""),
        (vec![line(6, true)], "a line of device \"line\""),
        (vec![line(7, false), line(7, false)], "a line of device \"line\""),
        (vec![line(24, true)], "a vector of device \"dev0\""),
    ];
    for (devices, what) in cases {
        let error = refused(&rig, devices, start);
        assert!(error.to_string().contains(what), "{error}");
    }
    let pin = Device::new("line").line(8, Some((2, 9)), eventfd(), None);
    let error = refused(&rig, vec![pin], start);
    assert!(matches!(error.kind(), ErrorKind::RouteTaken { gsi: 8 }), "{error}");
}

#[test]
fn more_routes_than_kvm_takes() {
    // One eventfd will do: nothing is asked of KVM.
    let fd = Arc::new(eventfd());
    let many = |count| {
        (0..count).fold(Device::new("many"), |device, vector| {
            device.vector(Arc::clone(&fd), Some(msi(vector)))
        })
    };
    let rig = Rig::new();
    let error = refused(&rig, vec![many(4096)], "device \"many\"");
    let too_many = matches!(error.kind(), ErrorKind::TooManyRoutes { routes: 4136, limit: 4096 });
    let no_gsi = matches!(error.kind(), ErrorKind::NoGsiLeft { limit: 4096 });
    assert!(too_many || no_gsi, "{error}");
    let rig = Rig::with(Irqchip::Full, |b| b.own_routes(Route::x86_defaults()).first_gsi(4090));
    let start = "device \"many\", vector 6: no GSI is left";
    let error = refused(&rig, vec![many(7)], start);
    assert!(matches!(error.kind(), ErrorKind::NoGsiLeft { limit: 4096 }), "{error}");
    assert_eq!(Arc::strong_count(&fd), 1, "nobody holds it");
    // Those that were taken for it are free again.
    let six = (0..6)
        .fold(Device::new("six"), |device, vector| device.vector(eventfd(), Some(msi(vector))));
    rig.attach(six).unwrap();
}

#[test]
fn what_the_vmm_says_of_its_routes_is_checked() {
    let open = |routes: Vec<Route>| {
        let memory = Arc::new(MemoryModel::new(Limits::x86()));
        let events = Arc::new(EventModel::new(Irqchip::Full));
        Vm::builder().own_routes(routes).open_on(memory, events).unwrap_err()
    };
    let error = open(vec![Route::msi(4096, msi(1))]);
    let beyond = ErrorKind::GsiBeyondLimit { gsi: 4096, limit: 4096 };
    assert_eq!(error.kind().to_string(), beyond.to_string());
    let error = open((0..4097).map(|n| Route::irqchip(n % 4000, n / 4000, 1)).collect());
    assert!(matches!(error.kind(), ErrorKind::TooManyRoutes { routes: 4097, .. }), "{error}");
    // And so is what it says later.
    let rig = Rig::new();
    let (seen, routes) = (rig.seen(), [Route::msi(4096, msi(1))]);
    let error = rig.apply(|c| c.set_own_routes(routes)).unwrap_err();
    assert_eq!((error.kind().to_string(), error.change()), (beyond.to_string(), Some(0)));
    assert_eq!(rig.seen(), seen);
}

#[test]
fn resampling_without_pins() {
    let rig = Rig::with(Irqchip::Split, |builder| builder);
    let error = refused(&rig, vec![device(0, 5)], "device \"dev0\", interrupt line at GSI 5");
    assert!(matches!(error.kind(), ErrorKind::EventRefused { errno: Errno::EINVAL, .. }));
    assert!(error.to_string().contains("KVM_CREATE_IRQCHIP"), "{error}");
    let rig = Rig::with(Irqchip::None, |builder| builder);
    refused(&rig, vec![device(0, 0)], "device \"dev0\", interrupt routes");
}

#[test]
fn vectors_that_there_are_not() {
    let rig = Rig::new();
    let id = rig.attach(device(0, 0)).unwrap();
    let error = rig.set_vector(id, 4, Some(msi(1))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoSuchVector { vectors: 4 }), "{error}");
    assert_eq!((error.device(), error.change()), (Some("dev0"), Some(0)));
    assert_eq!(error.part(), Some(DevicePart::Vector { index: 4 }));
    let from_its = Msi { devid: Some(8), ..msi(1) };
    let error = rig.set_vector(id, 0, Some(from_its)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoDevid), "{error}");
    rig.detach(id).unwrap();
    let error = rig.set_vector(id, 0, None).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnknownDevice { .. }), "{error}");
}

/// Behind the region's end is somewhere; behind the last address is nowhere, and
/// what is there would never ring.
#[test]
fn what_is_in_a_region_ends_before_addresses_do() {
    let rig = Rig::new();
    let last = u64::MAX - BAR;
    let with = |part: &dyn Fn(Device, RegionId) -> Device| {
        let id = RegionId::new();
        part(Device::new("dev").region(id, bar(BAR, 0x1000).label("BAR 0")), id)
    };
    let bell = |offset, len| {
        move |device: Device, id| {
            device.ioeventfd(Doorbell::in_region(id, offset).len(len), eventfd())
        }
    };
    let zone = |offset, len| {
        move |device: Device, id| device.coalesced(Coalesced::in_region(id, offset, len))
    };
    let bells = [(u64::MAX, 0), (last + 1, 0), (last - 3, 4)];
    for (offset, len) in bells {
        let start = "device \"dev\", ioeventfd 0: RAM \"BAR 0\"";
        let error = refused(&rig, vec![with(&bell(offset, len))], start);
        let kind = error.kind();
        let told = matches!(kind, ErrorKind::EventWraps { start, in_region: true, .. } if *start == offset);
        assert!(told && error.to_string().contains("size 0x1000"), "{error}");
        assert!(error.to_string().contains(&format!("{offset:#x}")), "{error}");
        assert_eq!(error.errno(), Errno::EINVAL);
    }
    for (offset, len) in [(last + 1, 8), (last - 3, 4)] {
        let start = "device \"dev\", coalesced zone 0: RAM \"BAR 0\"";
        let error = refused(&rig, vec![with(&zone(offset, len))], start);
        assert!(matches!(error.kind(), ErrorKind::EventWraps { .. }), "{error}");
    }
    let id = rig.attach(with(&bell(last - 4, 4))).unwrap();
    assert_eq!(rig.events.state().ioeventfds().count(), 1);
    rig.detach(id).unwrap();

    // Where the region is somewhere only later, and where it moves.
    let id = RegionId::new();
    rig.attach(bell(last - 0x1000, 4)(Device::new("late"), id)).unwrap();
    let (seen, start) = (rig.seen(), "device \"late\", ioeventfd 0: RAM");
    let map = |c: &mut Changes, gpa| c.map_as(id, bar(gpa, 0x1000));
    let error = rig.apply(|c| map(c, BAR + 0x2000)).unwrap_err();
    assert!(error.to_string().starts_with(start), "{error}");
    rig.apply(|c| map(c, BAR)).unwrap();
    let there = rig.seen();
    let error = rig.apply(|c| c.move_to(id, BAR + 0x2000)).unwrap_err();
    assert!(error.to_string().starts_with(start), "{error}");
    assert_eq!(rig.seen(), there);
    assert_ne!(seen, there);
    rig.assert_known();
}
