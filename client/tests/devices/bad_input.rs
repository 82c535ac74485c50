//! Bad input: an error that names device and part, and nothing attached.

use std::fs::File;
use std::os::fd::BorrowedFd;

use kvm_memslots::RegionSpec;
use kvm_memslots::backend::Errno;
use kvm_memslots::device::{
    Bus, DeviceErrorKind as Kind, DeviceSetup, EventModel, Eventing, FdKind, Irqchip, Msi, Route,
};

use crate::rig::{BAR, Rig, device, eventfd, msi};

/// Attaching fails so, with all devices as before.
fn refused(rig: &mut Rig, setups: Vec<DeviceSetup>, start: &str) -> Kind {
    let before = rig.seen();
    let devices = rig.eventing.len();
    let error = rig.eventing.attach_all(&mut rig.space, setups).unwrap_err();
    assert!(error.to_string().starts_with(start), "{error}");
    assert_eq!(rig.seen(), before);
    assert_eq!(rig.eventing.len(), devices);
    rig.assert_known();
    *error.kind
}

#[test]
fn descriptors_that_are_no_eventfds() {
    let mut setup = DeviceSetup::new("dev");
    let file = File::open("/proc/self/maps").unwrap();
    let error = setup.vector(&file, None).map(drop).unwrap_err();
    assert!(error.to_string().starts_with("device \"dev\", vector 0: file descriptor"), "{error}");
    assert!(matches!(*error.kind, Kind::NotAnEventfd { .. }));
    let error = setup.ioeventfd(Bus::Pio, 0x60, 1, None, &file).map(drop).unwrap_err();
    assert!(error.to_string().contains("ioeventfd 0 at port 0x60"), "{error}");
    let error = setup.line(3, None, eventfd(), Some(&file)).map(drop).unwrap_err();
    assert!(error.to_string().contains("interrupt line at GSI 3"), "{error}");

    // SAFETY: nothing has the descriptor, which is what is tested.
    let closed = unsafe { BorrowedFd::borrow_raw(i32::MAX - 7) };
    let error = setup.vector(closed, None).map(drop).unwrap_err();
    assert!(matches!(*error.kind, Kind::NotOpen { errno: Errno::EBADF, .. }), "{error}");
}

/// What the checks can't see, KVM does.
#[test]
fn descriptors_that_kvm_refuses() {
    let mut rig = Rig::new();
    let fd = eventfd();
    // The same eventfd twice: duplicates have numbers of their own, so the
    // model is told that all are the same.
    let mut setup = DeviceSetup::new("dev");
    setup.vector(&fd, Some(msi(1))).unwrap().vector(&fd, Some(msi(2))).unwrap();
    for raw in 0..100_000 {
        rig.events.lock().set_fd(raw, FdKind::Eventfd(1));
    }
    let kind = refused(&mut rig, vec![setup], "device \"dev\", vector 1: KVM refused");
    assert!(matches!(kind, Kind::Refused { errno: Errno::EBUSY, .. }), "{kind}");
}

#[test]
fn ioeventfds_that_kvm_does_not_have() {
    let mut setup = DeviceSetup::new("dev");
    let mut kind = |len, addr, data| {
        *setup.ioeventfd(Bus::Mmio, addr, len, data, eventfd()).map(drop).unwrap_err().kind
    };
    assert!(matches!(kind(3, 0x1000, None), Kind::IoeventfdLength { len: 3 }));
    assert!(matches!(kind(0, 0x1000, Some(1)), Kind::IoeventfdDatamatch { .. }));
    assert!(matches!(kind(1, 0x1000, Some(256)), Kind::IoeventfdDatamatch { .. }));
    assert!(matches!(kind(8, u64::MAX - 3, None), Kind::IoeventfdWraps { .. }));
}

#[test]
fn the_same_ioeventfd_twice() {
    let mut rig = Rig::new();
    rig.eventing.attach(&mut rig.space, device(0, 0)).unwrap();
    let with = |len, data| {
        let mut setup = DeviceSetup::new("other");
        setup.ioeventfd(Bus::Mmio, 0xd000_0000, len, data, eventfd()).unwrap();
        setup
    };
    let start = "device \"other\", ioeventfd 0 at GPA 0xd0000000: ioeventfd 1 at GPA 0xd0000000 \
                 of device \"dev0\"";
    refused(&mut rig, vec![with(2, Some(1))], start);
    refused(&mut rig, vec![with(2, None)], "device \"other\"");
    refused(&mut rig, vec![with(0, None)], "device \"other\"");
    refused(&mut rig, vec![with(4, None), with(4, Some(7))], "device \"other\"");
    // Another value and another length are other ioeventfds.
    rig.eventing.attach_all(&mut rig.space, [with(2, Some(2)), with(4, None)]).unwrap();
}

#[test]
fn overlapping_bars() {
    let mut rig = Rig::new();
    let mut other = DeviceSetup::new("other");
    let bar = RegionSpec::device(BAR + 0x1000, 0x1000, 0x7e00_0000_0000).label("BAR 2");
    // SAFETY: the model maps nothing.
    unsafe { other.region(bar) };
    let start = "device \"other\", region 0: device memory \"BAR 2\" at GPA 0xe0001000";
    let setups = vec![device(0, 0), other.clone()];
    let kind = refused(&mut rig, setups, start);
    assert!(kind.to_string().contains("overlaps"), "{kind}");
    rig.eventing.attach(&mut rig.space, device(0, 0)).unwrap();
    refused(&mut rig, vec![device(1, 0), other], start);
}

#[test]
fn gsis_that_are_taken_or_do_not_exist() {
    let mut rig =
        Rig::with(Irqchip::Full, |b| b.routes(Route::x86_defaults()).reserve_gsis(50..=60));
    let line = |gsi, resample: bool| {
        let mut setup = DeviceSetup::new("line");
        let ack = eventfd();
        setup.line(gsi, None, eventfd(), resample.then_some(&ack as _)).unwrap();
        setup
    };
    rig.eventing.attach_all(&mut rig.space, [device(0, 5), line(6, false)]).unwrap();
    let start = "device \"line\", interrupt line at GSI";
    let cases = [
        (vec![line(4096, false)], "beyond KVM's limit"),
        (vec![line(55, false)], "the VMM, which reserved it"),
        (vec![line(5, false)], "a line of device \"dev0\""),
        (vec![line(6, true)], "a line of device \"line\""),
        (vec![line(7, false), line(7, false)], "a line of device \"line\""),
        (vec![line(24, true)], "a vector of device \"dev0\""),
    ];
    for (setups, what) in cases {
        let kind = refused(&mut rig, setups, start);
        assert!(kind.to_string().contains(what), "{kind}");
    }
    let mut pin = DeviceSetup::new("line");
    pin.line(8, Some((2, 9)), eventfd(), None).unwrap();
    let kind = refused(&mut rig, vec![pin], start);
    assert!(matches!(kind, Kind::RouteTaken { gsi: 8 }), "{kind}");
}

#[test]
fn more_routes_than_kvm_takes() {
    let mut rig = Rig::new();
    let many = |count| {
        let mut setup = DeviceSetup::new("many");
        let fd = eventfd();
        for vector in 0..count {
            // One eventfd will do: nothing is asked of KVM.
            setup.vector(&fd, Some(msi(vector))).unwrap();
        }
        setup
    };
    let (soft, _) = nix_limit();
    if soft < 4200 {
        eprintln!("SKIPPED more_routes_than_kvm_takes: {soft} descriptors a process");
        return;
    }
    let kind = refused(&mut rig, vec![many(4096)], "device \"many\", interrupt routes: 4136");
    assert!(matches!(kind, Kind::TooManyRoutes { routes: 4136, limit: 4096 }), "{kind}");
    let mut rig = Rig::with(Irqchip::Full, |b| b.routes(Route::x86_defaults()).first_gsi(4090));
    let kind = refused(&mut rig, vec![many(7)], "device \"many\", vector 6: no GSI is left");
    assert!(matches!(kind, Kind::NoGsiLeft { limit: 4096 }), "{kind}");
    // Those that were taken for it are free again.
    let mut setup = DeviceSetup::new("six");
    for vector in 0..6 {
        setup.vector(eventfd(), Some(msi(vector))).unwrap();
    }
    rig.eventing.attach(&mut rig.space, setup).unwrap();
}

/// As many descriptors as the process may have.
fn nix_limit() -> (u64, u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes the structure.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: reads the structure.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    (limit.rlim_cur, limit.rlim_max)
}

#[test]
fn what_the_vmm_says_of_its_routes_is_checked() {
    let open = |routes: Vec<Route>| {
        let model = Box::new(EventModel::new(Irqchip::Full));
        *Eventing::builder().routes(routes).open_on(model).unwrap_err().kind
    };
    let kind = open(vec![Route::msi(4096, msi(1))]);
    assert!(matches!(kind, Kind::GsiBeyondLimit { gsi: 4096, limit: 4096 }), "{kind}");
    let kind = open((0..4097).map(|n| Route::irqchip(n % 4000, n / 4000, 1)).collect());
    assert!(matches!(kind, Kind::TooManyRoutes { routes: 4097, .. }), "{kind}");
}

#[test]
fn resampling_without_pins() {
    let mut rig = Rig::with(Irqchip::Split, |builder| builder);
    let kind = refused(&mut rig, vec![device(0, 5)], "device \"dev0\", interrupt line at GSI 5");
    assert!(matches!(kind, Kind::Refused { errno: Errno::EINVAL, .. }), "{kind}");
    assert!(kind.to_string().contains("KVM_CREATE_IRQCHIP"), "{kind}");
    let mut rig = Rig::with(Irqchip::None, |builder| builder);
    refused(&mut rig, vec![device(0, 0)], "device \"dev0\", interrupt routes");
}

#[test]
fn vectors_that_there_are_not() {
    let mut rig = Rig::new();
    let id = rig.eventing.attach(&mut rig.space, device(0, 0)).unwrap();
    let error = rig.eventing.set_vector(id, 4, Some(msi(1))).unwrap_err();
    assert!(error.to_string().starts_with("device \"dev0\", vector 4: "), "{error}");
    let from_its = Msi { devid: Some(8), ..msi(1) };
    let error = rig.eventing.set_vector(id, 0, Some(from_its)).unwrap_err();
    assert!(matches!(*error.kind, Kind::NoDevid), "{error}");
    rig.eventing.detach(&mut rig.space, id).unwrap();
    let error = rig.eventing.set_vector(id, 0, None).unwrap_err();
    assert!(matches!(*error.kind, Kind::NotAttached { .. }), "{error}");
}
