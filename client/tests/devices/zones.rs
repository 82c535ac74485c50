//! Coalesced zones: with their device and their region, and nobody else's way.

use std::sync::Arc;

use kvm_memslots::backend::model::events::{Call, Fault};
use kvm_memslots::backend::{EventLimits, EventModel, Irqchip, ZoneLimits};
use kvm_memslots::device::{Bus, Coalesced, Device, DevicePart, Doorbell, Zone, ZoneWrite};
use kvm_memslots::{Changes, Errno, ErrorKind, RegionId};

use crate::rig::{BAR, BAR_SIZE, Rig, bar, eventfd};

const ELSEWHERE: u64 = BAR + 16 * BAR_SIZE;
const PORTS: Coalesced = Coalesced::at(Bus::Pio, 0x600, 8);

/// A device with a zone behind the memory of its BAR, and one of ports.
fn vga(region: RegionId, gpa: u64) -> Device {
    Device::new("vga")
        .region(region, bar(gpa, 0x1000))
        .coalesced(Coalesced::in_region(region, 0x1000, 0x200))
        .coalesced(PORTS)
}

/// Whether the ring keeps a write, which no eventfd has got.
fn kept(rig: &Rig, bus: Bus, addr: u64) -> bool {
    assert_eq!(rig.events.guest_writes(bus, addr, 4, 7), None);
    rig.events.take_ring() == [ZoneWrite { bus, addr, len: 4, value: 7 }]
}

#[test]
fn a_zone_is_there_while_its_device_is_and_moves_with_its_region() {
    let rig = Rig::new();
    let region = RegionId::new();
    let (ids, report) = rig.attach_all([vga(region, BAR)]).unwrap();
    let zones = |report: &kvm_memslots::Report| {
        (report.events.zone_calls, report.events.waits.in_calls, report.calls() - report.ioctls)
    };
    assert_eq!(zones(&report), (2, 0, 2));
    assert!(kept(&rig, Bus::Mmio, BAR + 0x1000) && kept(&rig, Bus::Mmio, BAR + 0x11fc));
    assert!(!kept(&rig, Bus::Mmio, BAR + 0x11fd), "in part outside");
    assert!(kept(&rig, Bus::Pio, 0x604) && !kept(&rig, Bus::Pio, 0x608));
    rig.assert_known();

    let (_, moved) = rig.apply(|c| c.move_to(region, ELSEWHERE)).unwrap();
    assert_eq!(zones(&moved), (2, 1, 2));
    assert!(kept(&rig, Bus::Mmio, ELSEWHERE + 0x1000) && !kept(&rig, Bus::Mmio, BAR + 0x1000));
    rig.assert_known();

    let (_, unmapped) = rig.apply(|c| c.unmap(region)).unwrap();
    assert_eq!(zones(&unmapped), (1, 1, 1));
    assert!(!kept(&rig, Bus::Mmio, ELSEWHERE + 0x1000) && kept(&rig, Bus::Pio, 0x600));
    assert_eq!(zones(&rig.detach(ids[0]).unwrap()), (1, 1, 1));
    assert!(!kept(&rig, Bus::Pio, 0x600));
    rig.assert_known();
    assert!(rig.events.state().zones().next().is_none());
}

#[test]
fn a_set_costs_what_changes() {
    let rig = Rig::new();
    let region = RegionId::new();
    let id = rig.attach(vga(region, BAR)).unwrap();
    // Gone and back in one set: KVM need not know.
    let (_, swapped) = rig
        .apply(|c| {
            c.detach(id);
            c.attach(vga(RegionId::new(), BAR));
        })
        .unwrap();
    assert_eq!(swapped.events.zone_calls, 0);
    let mut c = Changes::new();
    c.detach(rig.vm.devices()[0]);
    let preview = rig.vm.preview(&c).unwrap();
    assert_eq!((preview.events.zone_calls, preview.events.waits.in_calls), (2, 2));
    rig.assert_known();
}

#[test]
fn zones_that_are_deferred_come_with_the_ioeventfds() {
    let rig = Rig::new();
    let id = rig.attach(vga(RegionId::new(), BAR).defer_ioeventfds()).unwrap();
    assert!(rig.events.state().zones().next().is_none());
    // They have their place all the same.
    let other = Device::new("other").coalesced(PORTS);
    assert_eq!(rig.attach(other).unwrap_err().errno(), Errno::EEXIST);
    let (_, report) = rig.apply(|c| c.assign_deferred_of(id)).unwrap();
    assert_eq!(report.events.zone_calls, 2);
    assert!(kept(&rig, Bus::Pio, 0x600));
    rig.assert_known();
}

#[test]
fn what_would_take_anothers_writes_is_refused() {
    let rig = Rig::new();
    let bell = Doorbell::at(Bus::Mmio, ELSEWHERE + 0x1100).len(2);
    rig.attach(vga(RegionId::new(), BAR)).unwrap();
    rig.attach(Device::new("net").ioeventfd(bell, eventfd())).unwrap();
    let before = rig.seen();
    let at = |addr, len| Device::new("new").coalesced(Coalesced::at(Bus::Mmio, addr, len));
    let refused = [
        ("vga", DevicePart::Zone { index: 0 }, at(BAR + 0x11ff, 1)),
        ("vga", DevicePart::Zone { index: 0 }, at(BAR, 0x1_0000)),
        ("net", DevicePart::Ioeventfd { index: 0 }, at(ELSEWHERE + 0x1101, 4)),
        ("net", DevicePart::Ioeventfd { index: 0 }, at(ELSEWHERE, 0x1101)),
    ];
    for (name, part, device) in refused {
        let error = rig.attach(device).unwrap_err();
        assert_eq!((error.errno(), error.device()), (Errno::EEXIST, Some("new")), "{error}");
        assert_eq!(error.part(), Some(DevicePart::Zone { index: 0 }));
        let ErrorKind::EventTaken { other, other_part, .. } = error.kind() else {
            panic!("{error}");
        };
        assert_eq!((&**other, *other_part), (name, part));
    }
    for bell in [Doorbell::at(Bus::Mmio, BAR + 0x11fe).len(4), Doorbell::at(Bus::Pio, 0x600)] {
        let error = rig.attach(Device::new("new").ioeventfd(bell, eventfd())).unwrap_err();
        let taken = matches!(error.kind(), ErrorKind::EventTaken { other_part, .. }
            if matches!(other_part, DevicePart::Zone { .. }));
        assert!(taken, "{error}");
    }
    let twice = at(0xd000_0000, 16).coalesced(Coalesced::at(Bus::Mmio, 0xd000_000f, 1));
    assert_eq!(rig.attach(twice).unwrap_err().errno(), Errno::EEXIST);
    assert_eq!(rig.seen(), before);

    // A neighbour is not in the way, and a region that would move a zone is.
    let region = RegionId::new();
    rig.attach(at(BAR + 0x1200, 0x10)).unwrap();
    rig.attach(
        Device::new("mover")
            .region(region, bar(BAR + 4 * BAR_SIZE, 0x1000))
            .coalesced(Coalesced::in_region(region, 0x1000, 0x200)),
    )
    .unwrap();
    let before = rig.seen();
    let error = rig.apply(|c| c.move_to(region, ELSEWHERE)).unwrap_err();
    assert_eq!((error.errno(), error.device()), (Errno::EEXIST, Some("mover")));
    assert_eq!(rig.seen(), before);
    rig.assert_known();
}

#[test]
fn what_kvm_would_not_take_or_not_give_back_is_refused() {
    let zone = |zone| Device::new("bad").coalesced(zone);
    let rig = Rig::new();
    for (bad, errno) in [
        (Coalesced::at(Bus::Mmio, BAR, 0), Errno::EINVAL),
        (Coalesced::at(Bus::Mmio, BAR, Zone::MAX_LEN + 1), Errno::EINVAL),
        (Coalesced::at(Bus::Mmio, u64::MAX - 3, 8), Errno::EINVAL),
    ] {
        assert_eq!(rig.attach(zone(bad)).unwrap_err().errno(), errno);
    }
    let events = |zones| {
        EventModel::new(Irqchip::Full).with_limits(EventLimits { zones, ..EventLimits::x86() })
    };
    let on = |limits| Rig::on(kvm_memslots::Limits::x86(), events(limits), |options| options);
    let mmio = Coalesced::at(Bus::Mmio, BAR, 8);
    let no_ports = on(ZoneLimits { ring_page: Some(1), pio: false });
    no_ports.attach(zone(mmio)).unwrap();
    assert_eq!(no_ports.attach(zone(PORTS)).unwrap_err().errno(), Errno::EOPNOTSUPP);
    let none = on(ZoneLimits::default());
    assert_eq!(none.attach(zone(mmio)).unwrap_err().errno(), Errno::EOPNOTSUPP);
    assert_eq!(none.vm.coalesced_ring(eventfd()).unwrap_err().errno(), Errno::EOPNOTSUPP);
    // No vCPU's.
    for fd in [eventfd(), std::fs::File::open("/dev/zero").unwrap().into()] {
        let error = rig.vm.coalesced_ring(fd).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NoRing { .. }), "{error}");
    }
}

#[test]
fn all_or_nothing_whichever_call_fails() {
    let region = RegionId::new();
    for nth in 1.. {
        let rig = Rig::new();
        let id = rig.attach(vga(region, BAR)).unwrap();
        rig.events.reset_counts();
        rig.events.inject(Fault::nth(nth, Errno::ENOMEM));
        let before = rig.seen();
        let result = rig.apply(|c| {
            c.detach(id);
            c.attach(
                Device::new("b")
                    .coalesced(PORTS)
                    .ioeventfd(Doorbell::at(Bus::Mmio, ELSEWHERE), Arc::new(eventfd())),
            );
            c.attach(Device::new("c").coalesced(Coalesced::at(Bus::Mmio, BAR, 16)));
        });
        rig.assert_known();
        let Err(error) = result else {
            // The zone of ports stays, as somebody else's.
            let counts = rig.events.counts();
            assert_eq!((counts.of(Call::RegisterZone), counts.of(Call::UnregisterZone)), (1, 1));
            return;
        };
        assert_eq!(error.errno(), Errno::ENOMEM);
        assert_eq!(rig.seen(), before, "call {nth}");
    }
}

#[test]
fn a_full_bus_is_said() {
    let rig = Rig::new();
    let zones = |from: u64, count: u64| {
        let at = |n| Coalesced::at(Bus::Pio, 0x1000 + n * 8, 8);
        (from..from + count).fold(Device::new("many"), |device, n| device.coalesced(at(n)))
    };
    // The PICs and ELCR are on it.
    rig.attach(zones(0, 997)).unwrap();
    let before = rig.seen();
    let error = rig.attach(zones(997, 1)).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOSPC);
    assert!(error.to_string().contains("NR_IOBUS_DEVS"), "{error}");
    assert_eq!(rig.seen(), before);
    rig.assert_known();
}
