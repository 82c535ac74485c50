//! Eventfds that are one, though their descriptors are two.

use std::os::fd::{AsRawFd, OwnedFd};

use kvm_memslots::device::{Bus, Device, DevicePart, Doorbell};
use kvm_memslots::{Errno, twins};

use crate::rig::eventfd;

/// Whether `kcmp` is not to be had, which is said.
fn lacks_kcmp(test: &str) -> bool {
    match twins::find([&with("any", &[&eventfd()])]) {
        Err(errno @ (Errno::ENOSYS | Errno::EPERM)) => {
            eprintln!("SKIPPED {test}: kcmp: {errno}");
            true
        }
        found => found.unwrap().is_some(),
    }
}

fn find<'d>(devices: impl IntoIterator<Item = &'d Device>) -> Option<String> {
    twins::find(devices).unwrap().map(|twins| twins.to_string())
}

fn with(name: &str, events: &[&OwnedFd]) -> Device {
    let device = Device::new(name);
    events.iter().fold(device, |device, event| device.vector(event.as_raw_fd(), None))
}

#[test]
fn duplicates_are_found_wherever_they_are() {
    let test = "duplicates_are_found_wherever_they_are";
    if lacks_kcmp(test) {
        return;
    }
    let events: Vec<OwnedFd> = (0..40).map(|_| eventfd()).collect();
    for twin in [0, 7, 19, 20, 39] {
        let copy = events[twin].try_clone().unwrap();
        let (low, high): (Vec<_>, Vec<_>) =
            (events.iter().take(20).collect(), events.iter().skip(20).collect());
        let devices = [with("low", &low), with("high", &high)];
        assert_eq!(find(&devices), None);
        let line = with("line", &[]).line(5, None, copy.as_raw_fd(), None);
        let found = find(devices.iter().chain([&line])).unwrap();
        let (name, index) = if twin < 20 { ("low", twin) } else { ("high", twin - 20) };
        let wanted = format!(
            "{} of line has the eventfd of vector {index} of {name}",
            DevicePart::Line { gsi: 5 }
        );
        assert!(found.starts_with(&wanted), "{found}");
        assert!(found.contains(&copy.as_raw_fd().to_string()), "{found}");
    }
}

#[test]
fn doorbells_may_share_and_closed_descriptors_are_told() {
    let test = "doorbells_may_share_and_closed_descriptors_are_told";
    if lacks_kcmp(test) {
        return;
    }
    let event = eventfd();
    let bell = |at| Doorbell::at(Bus::Mmio, at).len(4);
    let device = with("net0", &[&event])
        .ioeventfd(bell(0x1000), event.try_clone().unwrap())
        .ioeventfd(bell(0x2000), event.try_clone().unwrap());
    assert_eq!(find([&device]), None);
    let closed = Device::new("net1").vector(i32::MAX, None);
    assert_eq!(twins::find([&device, &closed]), Err(Errno::EBADF));
}
