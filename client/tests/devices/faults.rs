//! KVM refuses a call, at every place where it can.

use kvm_memslots::backend::model::{events, memory};
use kvm_memslots::backend::{EventState, Irqchip};
use kvm_memslots::device::{Device, DeviceId, Route};
use kvm_memslots::{Errno, Error, ErrorKind, HolePolicy, RegionId};

use crate::rig::{BAR, BAR_SIZE, HVA, Rig, device, eventfd, msi};

const ENOMEM: Errno = Errno::ENOMEM;

/// One device is attached, with a line; the work is about two others.
fn rig() -> (Rig, DeviceId) {
    let rig = Rig::new();
    let id = rig.attach(device(7, 9)).unwrap();
    (rig, id)
}

fn attach(rig: &Rig) -> Result<Vec<DeviceId>, Error> {
    rig.attach_all([device(0, 5), device(1, 9)]).map(|(ids, _)| ids)
}

/// Calls to routes, irqfds and ioeventfds of one attach, or of one detach.
const CALLS: u64 = 1 + GONE;
/// Those of a detach that come before memory: all but the routes.
const GONE: u64 = 2 * (4 + 2);

fn is_refused(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::EventRefused { errno: ENOMEM, .. })
}

/// What the error says is wrong, is.
fn assert_stuck(rig: &Rig, error: &Error, before: &EventState) {
    let ErrorKind::Stuck { surplus, missing, .. } = error.kind() else { panic!("{error}") };
    rig.assert_known();
    let real = rig.events.state();
    assert_eq!((&**surplus, &**missing), (&real.without(before), &before.without(&real)));
}

#[test]
fn an_attach_that_fails_leaves_everything_as_it_was() {
    for k in 1..=CALLS {
        let (rig, id) = rig();
        let before = rig.seen();
        rig.events.inject(events::Fault::nth(k, ENOMEM));
        let error = attach(&rig).unwrap_err();
        assert!(is_refused(&error), "{error}");
        assert!(error.device().is_some_and(|name| name.starts_with("dev")), "{error}");
        assert!(error.part().is_some() && error.change().is_some(), "{error}");
        assert_eq!(rig.seen(), before, "call {k}: {error}");
        rig.assert_known();
        assert_eq!(rig.vm.devices(), [id]);
        attach(&rig).unwrap();
        rig.assert_known();
    }
    let (rig, _) = rig();
    rig.events.inject(events::Fault::nth(CALLS + 1, ENOMEM));
    attach(&rig).expect("there is no such call");
}

#[test]
fn the_error_names_device_and_part() {
    use kvm_memslots::backend::model::events::Call;
    let cases = [
        (Call::Routing, 1, "device \"dev0\", interrupt routes: "),
        (Call::AssignIrqfd, 1, "device \"dev"),
        (Call::AssignIoeventfd, 3, "device \"dev1\", ioeventfd 0: "),
    ];
    for (call, nth, start) in cases {
        let (rig, _) = rig();
        rig.events.inject(events::Fault::nth(nth, ENOMEM).only(call));
        let error = attach(&rig).unwrap_err();
        let text = error.to_string();
        let change = error.change().unwrap();
        let text = text.strip_prefix(&format!("change {change}: ")).unwrap();
        assert!(text.starts_with(start), "{text}");
        assert!(text.ends_with("out of kernel memory, or over the cgroup's limit"), "{text}");
    }
}

#[test]
fn memory_that_is_refused_attaches_nothing() {
    let (rig, _) = rig();
    let before = rig.seen();
    let calls = rig.events.counts();
    rig.memory.inject(memory::Fault::nth(1, ENOMEM).only(memory::Call::SetRegion));
    let error = attach(&rig).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Refused { errno: ENOMEM, .. }), "{error}");
    assert_eq!(error.region().map(|region| region.gpa), Some(BAR), "{error}");
    assert_eq!((error.change(), error.device()), (Some(0), Some("dev0")), "{error}");
    assert_eq!(rig.seen(), before);
    assert_eq!(rig.events.counts(), calls, "memory comes first");
    attach(&rig).unwrap();
}

#[test]
fn a_detach_that_fails_leaves_everything_as_it_was() {
    for k in 1..=CALLS {
        let (rig, _) = rig();
        let ids = attach(&rig).unwrap();
        let before = rig.seen();
        rig.events.inject(events::Fault::nth(k, ENOMEM));
        let error = rig.detach_all(&ids).unwrap_err();
        assert!(is_refused(&error), "{error}");
        assert!(error.device().is_some_and(|name| name.starts_with("dev")), "{k}: {error}");
        assert_eq!(rig.seen(), before, "call {k}: {error}");
        rig.assert_known();
        rig.detach_all(&ids).unwrap();
        rig.assert_known();
    }
}

#[test]
fn memory_that_stays_keeps_the_devices_attached() {
    let (rig, _) = rig();
    let ids = attach(&rig).unwrap();
    let before = rig.seen();
    rig.memory.inject(memory::Fault::nth(1, ENOMEM).only(memory::Call::SetRegion));
    let error = rig.detach_all(&ids).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Refused { errno: ENOMEM, .. }), "{error}");
    assert!(error.region().is_some_and(|region| region.gpa < BAR + 2 * BAR_SIZE), "{error}");
    assert_eq!(rig.seen(), before);
    rig.assert_known();
    rig.detach_all(&ids).unwrap();
}

/// All calls fail from the k-th on: nothing can be taken back. The error says
/// what is live, and the next set of changes repairs it.
#[test]
fn what_is_stuck_is_known_and_repaired() {
    for detach in [false, true] {
        for k in 2..=CALLS {
            let (rig, _) = rig();
            let ids = if detach { attach(&rig).unwrap() } else { Vec::new() };
            let before = rig.seen();
            rig.events.inject(events::Fault::from_nth(k, ENOMEM));
            let error =
                if detach { rig.detach_all(&ids).map(drop) } else { attach(&rig).map(drop) };
            assert_stuck(&rig, &error.unwrap_err(), &before.1);
            assert_ne!(rig.events.state(), before.1, "call {k}");

            rig.detach_all(&[]).expect_err("KVM refuses everything");
            rig.events.clear_faults();
            rig.detach_all(&[]).unwrap();
            rig.assert_known();
            assert_eq!(rig.seen(), before, "call {k}");
            if detach { rig.detach_all(&ids).map(drop) } else { attach(&rig).map(drop) }.unwrap();
        }
    }
}

#[test]
fn memory_that_can_not_be_unmapped_again_is_named() {
    let (rig, _) = rig();
    let before = rig.seen();
    rig.events.inject(events::Fault::nth(3, ENOMEM));
    // The first two map the BARs.
    rig.memory.inject(memory::Fault::from_nth(3, ENOMEM).only(memory::Call::SetRegion));
    let error = attach(&rig).unwrap_err();
    let ErrorKind::Stuck { live, .. } = error.kind() else { panic!("{error}") };
    assert!(!live.is_empty(), "{error}");
    assert!(live.iter().all(|(_, slot)| rig.memory.slots(0).contains(slot)), "{live:?}");
    rig.assert_known();
    rig.memory.clear_faults();
    rig.detach_all(&[]).unwrap();
    assert_eq!(rig.seen(), before);
    attach(&rig).unwrap();
}

#[test]
fn vectors_that_are_refused_stay_as_they_were() {
    for k in 1..=3 {
        let (rig, id) = rig();
        let before = rig.seen();
        rig.events.inject(events::Fault::nth(k, ENOMEM));
        let error = rig
            .apply(|c| {
                c.set_vector(id, 0, None);
                c.set_vector(id, 3, Some(msi(0x80)));
            })
            .unwrap_err();
        assert_eq!(error.device(), Some("dev7"), "{error}");
        assert_eq!(rig.seen(), before);
        assert_eq!(rig.detach_all(&[]).unwrap().calls(), 0);
        rig.assert_known();
    }
}

/// Routes that KVM refuses for a reason of its own: the model has no pins.
#[test]
fn pins_that_there_are_not() {
    let rig = Rig::with(Irqchip::Split, |builder| builder);
    let device = device(0, 0).line(30, Some((2, 3)), eventfd(), None);
    let before = rig.seen();
    let error = rig.attach(device).unwrap_err();
    assert!(error.to_string().contains("pin that it does not have"), "{error}");
    assert_eq!(rig.seen(), before);
    assert!(!before.1.routes.contains(&Route::irqchip(30, 2, 3)));
}

/// Permanent BARs of neighbours share a slot. Detaching one of them would, call
/// by call, unmap the other's for a moment: that needs a gate.
#[test]
fn a_detach_that_opens_a_hole_is_refused_without_a_gate() {
    let rig = Rig::new();
    let permanent = |n: u64| {
        // SAFETY: the model maps nothing.
        let memory = unsafe {
            let access = kvm_memslots::Access::ReadWrite;
            kvm_memslots::Backing::borrowed(HVA + n * BAR_SIZE, BAR_SIZE, access)
        };
        let span = kvm_memslots::at(BAR + n * BAR_SIZE, BAR_SIZE);
        let spec = kvm_memslots::RegionSpec::ram(span, memory).permanent();
        Device::new(format!("dev{n}"))
            .region(RegionId::new(), spec)
            .vector(eventfd(), Some(msi(0x30)))
            .vector(eventfd(), None)
    };
    let (ids, report) = rig.attach_all([permanent(0), permanent(1)]).unwrap();
    assert_eq!(report.ioctls, 1);
    let before = rig.seen();
    for policy in [HolePolicy::Refuse, HolePolicy::Named] {
        rig.vm.set_hole_policy(policy).unwrap();
        let error = rig
            .apply(|c| {
                c.set_vector(ids[1], 1, Some(msi(0x80)));
                c.detach(ids[0]);
            })
            .unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Hole { named: false, .. }), "{error}");
        assert_eq!(rig.seen(), before);
        assert_eq!(rig.detach_all(&[]).unwrap().calls(), 0);
        assert_eq!(rig.seen(), before);
    }
    rig.vm.set_hole_policy(HolePolicy::NoVcpuRuns).unwrap();
    rig.detach(ids[0]).unwrap();
    rig.assert_known();
}

/// Memory stays, and then KVM does not take the interrupts back.
#[test]
fn a_detach_that_is_stuck_half_way_is_known_and_repaired() {
    for k in 1..=GONE {
        let (rig, _) = rig();
        let ids = attach(&rig).unwrap();
        let before = rig.seen();
        rig.memory.inject(memory::Fault::nth(1, ENOMEM).only(memory::Call::SetRegion));
        // The calls of the detach itself pass.
        rig.events.inject(events::Fault::from_nth(GONE + k, ENOMEM));
        let error = rig.detach_all(&ids).unwrap_err();
        assert_stuck(&rig, &error, &before.1);
        rig.events.clear_faults();
        rig.detach_all(&[]).unwrap();
        assert_eq!(rig.seen(), before, "call {k}");
        rig.detach_all(&ids).unwrap();
    }
}
