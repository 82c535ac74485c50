//! KVM refuses a call, at every place where it can.

use kvm_memslots::backend::Errno;
use kvm_memslots::backend::model::{Call, Fault};
use kvm_memslots::device::{DeviceError, DeviceErrorKind, DeviceId, EventCall, EventFault, Route};

use kvm_memslots::{Error, HolePolicy};

use crate::rig::{Rig, device, msi};

fn nth(nth: u64, forever: bool) -> EventFault {
    EventFault { only: None, nth, forever, errno: Errno::ENOMEM }
}

/// One device is attached, with a line; the work is about two others.
fn rig() -> (Rig, DeviceId) {
    let mut rig = Rig::new();
    let id = rig.eventing.attach(&mut rig.space, device(7, 9)).unwrap();
    (rig, id)
}

fn attach(rig: &mut Rig) -> Result<Vec<DeviceId>, DeviceError> {
    let setups = [device(0, 5), device(1, 9)];
    rig.eventing.attach_all(&mut rig.space, setups).map(|(ids, _)| ids)
}

/// Calls to routes, irqfds and ioeventfds of one attach, or of one detach.
const CALLS: u64 = 1 + 2 * (4 + 2);

#[test]
fn an_attach_that_fails_leaves_everything_as_it_was() {
    for k in 1..=CALLS {
        let (mut rig, _) = rig();
        let before = rig.seen();
        rig.events.lock().inject(nth(k, false));
        let error = attach(&mut rig).unwrap_err();
        assert!(matches!(*error.kind, DeviceErrorKind::Refused { errno: Errno::ENOMEM, .. }));
        let text = error.to_string();
        assert!(text.starts_with("device \"dev"), "{text}");
        assert_eq!(rig.seen(), before, "call {k}: {text}");
        rig.assert_known();
        assert_eq!(rig.eventing.len(), 1);
        attach(&mut rig).unwrap();
        rig.assert_known();
    }
    let (mut rig, _) = rig();
    rig.events.lock().inject(nth(CALLS + 1, false));
    attach(&mut rig).expect("there is no such call");
}

#[test]
fn the_error_names_device_and_part() {
    let cases = [
        (EventCall::Routing, 1, "device \"dev0\", interrupt routes: "),
        (EventCall::AssignIrqfd, 1, "device \"dev"),
        (EventCall::AssignIoeventfd, 3, "device \"dev1\", ioeventfd 0 at GPA 0xd0001000: "),
    ];
    for (only, nth, start) in cases {
        let (mut rig, _) = rig();
        let fault = EventFault { only: Some(only), nth, forever: false, errno: Errno::ENOMEM };
        rig.events.lock().inject(fault);
        let text = attach(&mut rig).unwrap_err().to_string();
        assert!(text.starts_with(start), "{text}");
        assert!(text.ends_with("out of kernel memory, or over the cgroup's limit"), "{text}");
    }
}

#[test]
fn memory_that_is_refused_attaches_nothing() {
    let (mut rig, _) = rig();
    let before = rig.seen();
    let calls = rig.events.lock().counts().clone();
    rig.memory.lock().inject(Fault::nth(1, Errno::ENOMEM).only(Call::SetRegion));
    let error = attach(&mut rig).unwrap_err();
    assert!(matches!(*error.kind, DeviceErrorKind::Memory(_)), "{error}");
    assert!(error.to_string().starts_with("device \"dev0\", region 0: "), "{error}");
    assert_eq!(rig.seen(), before);
    assert_eq!(*rig.events.lock().counts(), calls, "memory comes first");
    attach(&mut rig).unwrap();
}

#[test]
fn a_detach_that_fails_leaves_everything_as_it_was() {
    for k in 1..=CALLS {
        let (mut rig, _) = rig();
        let ids = attach(&mut rig).unwrap();
        let before = rig.seen();
        rig.events.lock().inject(nth(k, false));
        let error = rig.eventing.detach_all(&mut rig.space, &ids).unwrap_err();
        assert!(matches!(*error.kind, DeviceErrorKind::Refused { .. }), "{error}");
        assert!(error.to_string().starts_with("device \"dev"), "call {k}: {error}");
        assert_eq!(rig.seen(), before, "call {k}: {error}");
        rig.assert_known();
        rig.eventing.detach_all(&mut rig.space, &ids).unwrap();
        rig.assert_known();
    }
}

#[test]
fn memory_that_stays_keeps_the_devices_attached() {
    let (mut rig, _) = rig();
    let ids = attach(&mut rig).unwrap();
    let before = rig.seen();
    rig.memory.lock().inject(Fault::nth(1, Errno::ENOMEM).only(Call::SetRegion));
    let error = rig.eventing.detach_all(&mut rig.space, &ids).unwrap_err();
    assert!(matches!(*error.kind, DeviceErrorKind::Memory(_)), "{error}");
    assert!(error.to_string().starts_with("device \"dev0\", region 0: "), "{error}");
    assert_eq!(rig.seen(), before);
    rig.assert_known();
    rig.eventing.detach_all(&mut rig.space, &ids).unwrap();
}

/// All calls fail from the k-th on: nothing can be taken back. The error says
/// what is live, and the next commit repairs it.
#[test]
fn what_is_stuck_is_known_and_repaired() {
    for detach in [false, true] {
        for k in 2..=CALLS {
            let (mut rig, _) = rig();
            let ids = if detach { attach(&mut rig).unwrap() } else { Vec::new() };
            let (_, before) = rig.seen();
            rig.events.lock().inject(nth(k, true));
            let error = if detach {
                rig.eventing.detach_all(&mut rig.space, &ids).unwrap_err()
            } else {
                attach(&mut rig).unwrap_err()
            };
            let DeviceErrorKind::Stuck { surplus, missing, .. } = &*error.kind else {
                panic!("call {k}: {error}")
            };
            rig.assert_known();
            let real = rig.events.lock().state().clone();
            assert_eq!((&**surplus, &**missing), (&real.without(&before), &before.without(&real)));
            assert_ne!(real, before, "call {k}");

            rig.eventing.commit().expect_err("KVM refuses everything");
            rig.events.lock().clear_faults();
            rig.eventing.commit().unwrap();
            rig.assert_known();
            assert_eq!(*rig.events.lock().state(), before, "call {k}");
            if detach {
                rig.eventing.detach_all(&mut rig.space, &ids).unwrap();
            } else {
                attach(&mut rig).unwrap();
            }
        }
    }
}

#[test]
fn memory_that_can_not_be_unmapped_again_is_named() {
    let (mut rig, _) = rig();
    rig.events.lock().inject(nth(3, false));
    rig.memory.lock().inject(Fault::from_nth(2, Errno::ENOMEM).only(Call::SetRegion));
    let error = attach(&mut rig).unwrap_err();
    let DeviceErrorKind::MemoryStuck { regions, because, .. } = &*error.kind else {
        panic!("{error}")
    };
    assert!(matches!(*because.kind, DeviceErrorKind::Refused { .. }));
    rig.memory.lock().clear_faults();
    let mut tx = rig.space.begin();
    for region in regions {
        tx.unmap(*region).unwrap();
    }
    tx.commit().unwrap();
    attach(&mut rig).unwrap();
}

#[test]
fn a_commit_that_fails_forgets_what_was_staged() {
    for k in 1..=3 {
        let (mut rig, id) = rig();
        let before = rig.seen();
        rig.eventing.set_vector(id, 0, None).unwrap();
        rig.eventing.set_vector(id, 3, Some(msi(0x80))).unwrap();
        rig.events.lock().inject(nth(k, false));
        let error = rig.eventing.commit().unwrap_err();
        assert!(error.to_string().starts_with("device \"dev7\", "), "{error}");
        assert_eq!(rig.seen(), before);
        assert_eq!(rig.eventing.commit().unwrap().ioctls(), 0);
        rig.assert_known();
    }
}

/// Routes that KVM refuses for a reason of its own: the model has no pins.
#[test]
fn pins_that_there_are_not() {
    let mut rig = Rig::with(kvm_memslots::device::Irqchip::Split, |builder| builder);
    let mut setup = device(0, 0);
    setup.line(30, Some((2, 3)), crate::rig::eventfd(), None).unwrap();
    let before = rig.seen();
    let error = rig.eventing.attach(&mut rig.space, setup).unwrap_err();
    assert!(error.to_string().contains("pin that it does not have"), "{error}");
    assert_eq!(rig.seen(), before);
    assert!(!before.1.routes.contains(&Route::irqchip(30, 2, 3)));
}

/// The BARs of neighbours share a slot. Detaching one of them would, call by
/// call, unmap the other's for a moment: that needs a gate.
#[test]
fn a_detach_that_opens_a_hole_is_refused_without_a_gate() {
    let mut rig = Rig::new();
    rig.space.set_hole_policy(HolePolicy::Refuse);
    let (ids, _) = rig.eventing.attach_all(&mut rig.space, [device(0, 0), device(1, 0)]).unwrap();
    rig.eventing.set_vector(ids[1], 3, Some(msi(0x80))).unwrap();
    let before = rig.seen();
    let error = rig.eventing.detach(&mut rig.space, ids[0]).unwrap_err();
    assert!(matches!(&*error.kind, DeviceErrorKind::Memory(Error::Hole { .. })), "{error}");
    assert_eq!(rig.seen(), before);
    // What is staged still is: a commit that fails forgets it.
    rig.events.lock().inject(nth(1, false));
    rig.eventing.commit().unwrap_err();
    assert_eq!(rig.eventing.commit().unwrap().ioctls(), 0);
    assert_eq!(rig.seen(), before);
    rig.space.set_hole_policy(HolePolicy::NoVcpuRuns);
    rig.eventing.detach(&mut rig.space, ids[0]).unwrap();
    rig.assert_known();
}

/// Memory stays, and then KVM does not take the interrupts back.
#[test]
fn a_detach_that_is_stuck_half_way_is_known_and_repaired() {
    for k in 1..=CALLS {
        let (mut rig, _) = rig();
        let ids = attach(&mut rig).unwrap();
        let before = rig.seen();
        rig.memory.lock().inject(Fault::nth(1, Errno::ENOMEM).only(Call::SetRegion));
        // The calls of the detach itself pass.
        rig.events.lock().inject(nth(CALLS + k, true));
        let error = rig.eventing.detach_all(&mut rig.space, &ids).unwrap_err();
        let DeviceErrorKind::Stuck { surplus, missing, .. } = &*error.kind else {
            panic!("call {k}: {error}")
        };
        rig.assert_known();
        let real = rig.events.lock().state().clone();
        assert_eq!(**surplus, real.without(&before.1));
        assert_eq!(**missing, before.1.without(&real));
        rig.events.lock().clear_faults();
        rig.eventing.commit().unwrap();
        assert_eq!(rig.seen(), before, "call {k}");
        rig.eventing.detach_all(&mut rig.space, &ids).unwrap();
    }
}
