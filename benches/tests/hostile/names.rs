//! Names, and numbers of descriptors, that are another's or nobody's.

use std::os::fd::AsRawFd;

use kvm_memslots::device::{Bus, Device, Doorbell};
use kvm_memslots::{Changes, ErrorKind, RegionSpec, at};
use kvm_memslots_kit::guest::{Access, Outcome};
use kvm_memslots_kit::host::SMALL_PAGE;
use vmm_sys_util::eventfd::EventFd;

use crate::common::vm_or_skip;
use crate::{GPA, Owned, Rig, ram};

/// A change of a set.
type Change<'a> = &'a dyn Fn(&mut Changes);

/// Regions and devices of one VM are nothing to another, alone or in a set, and neither
/// VM is changed.
#[test]
fn names_of_another_vm_are_refused() {
    let test = "names_of_another_vm_are_refused";
    let (Some(mut one), Some(mut other)) = (Rig::new(test), Rig::new(test)) else { return };
    let memory = [Owned::numbered(4, 1), Owned::numbered(4, 11)];
    let mut named = Vec::new();
    for (rig, memory) in [&one, &other].into_iter().zip(&memory) {
        let mut c = Changes::new();
        let region = c.map(ram(0, 4, memory.backing()).log_dirty());
        let doorbell = Doorbell::at(Bus::Mmio, 0xd000_0000).len(4);
        let device = Device::new("bell").ioeventfd(doorbell, EventFd::new(0).unwrap());
        let device = c.attach(device);
        rig.vm.apply(c).unwrap();
        named.push((region, device));
    }
    let [(own, _), (region, device)] = named[..] else { unreachable!() };
    let changes: [Change<'_>; 11] = [
        &|c| c.unmap(region),
        &|c| c.resize(region, SMALL_PAGE),
        &|c| _ = c.split(region, SMALL_PAGE),
        &|c| c.join(region),
        &|c| c.set_log_dirty(region, false),
        &|c| c.set_read_only(region, true),
        &|c| c.move_to(region, 2 * GPA),
        &|c| c.move_in_window(region, 0),
        &|c| c.replace(region, memory[0].backing()),
        &|c| c.detach(device),
        &|c| c.set_vector(device, 0, None),
    ];
    let seen = |rig: &Rig| (rig.vm.regions(), rig.vm.slots(0), rig.vm.devices());
    let before = [seen(&one), seen(&other)];
    for (n, change) in changes.iter().enumerate() {
        for with_others in [false, true] {
            let mut c = Changes::new();
            if with_others {
                c.unmap(own);
                c.map(ram(8, 1, memory[0].backing()));
            }
            change(&mut c);
            let error = one.vm.apply(c).unwrap_err();
            let unknown = ErrorKind::UnknownRegion(region);
            let kind = error.kind();
            let is_unknown = matches!(kind, ErrorKind::UnknownDevice { .. })
                || kind.to_string() == unknown.to_string();
            assert!(is_unknown, "change {n}: {error}");
            assert_eq!([seen(&one), seen(&other)], before, "change {n}");
        }
    }
    one.vm.dirty_log(region).unwrap_err();
    one.vm.device_regions(device).unwrap_err();
    assert_eq!((one.read(0), other.read(0)), (Outcome::Value(1), Outcome::Value(11)));
}

/// The VMM's descriptor is closed, and its number another VM's, while the library is at
/// work: it has one of its own.
#[test]
fn the_number_of_the_descriptor_becomes_another_vm_s() {
    let test = "the_number_of_the_descriptor_becomes_another_vm_s";
    let (Some(mut rig), Some(other)) = (Rig::new(test), vm_or_skip(test)) else { return };
    let (memory, more) = (Owned::numbered(4, 1), Owned::numbered(4, 11));
    let mut c = Changes::new();
    let first = c.map(ram(0, 4, memory.backing()));
    rig.vm.apply(c).unwrap();
    let (of_vm, of_other) = (rig.fd.as_raw_fd(), other.as_raw_fd());
    // In one step, so that no other thread is given the number.
    // SAFETY: both are this test's, and stay open under these numbers.
    assert_eq!(unsafe { libc::dup3(of_other, of_vm, libc::O_CLOEXEC) }, of_vm);
    let mut c = Changes::new();
    c.unmap(first);
    c.map(ram(8, 4, more.backing()));
    rig.vm.apply(c).unwrap();
    assert_eq!((rig.read(0), rig.read(8)), (Outcome::Mmio, Outcome::Value(11)));
    // What has the number now is the other VM, which can be opened beside it.
    let again = kvm_memslots::Vm::open(kvm_memslots::vm_fd(&rig.fd)).unwrap();
    let mut c = Changes::new();
    c.map(ram(0, 4, memory.backing()));
    again.apply(c).unwrap();
    assert_eq!((rig.read(0), rig.read(8)), (Outcome::Mmio, Outcome::Value(11)));
    again.close().unwrap();
    rig.vm.close().unwrap();
    assert_eq!(rig.read(8), Outcome::Mmio);
}

/// The number of an eventfd is something else's when its device goes: KVM can't be told
/// of the eventfd by it. What comes of that is an error or not, and the next sets are
/// right either way.
#[test]
fn the_number_of_an_eventfd_becomes_another_file_s() {
    let test = "the_number_of_an_eventfd_becomes_another_file_s";
    let Some(mut rig) = Rig::new(test) else { return };
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let keep = event.try_clone().unwrap();
    let doorbell = || Doorbell::at(Bus::Mmio, GPA + 0x10_0000).len(4);
    let mut c = Changes::new();
    let device = c.attach(Device::new("bell").ioeventfd(doorbell(), event.as_raw_fd()));
    rig.vm.apply(c).unwrap();
    let ring = Access::Store(GPA + 0x10_0000, 4, 1);
    rig.prober.drive(&[ring], |exit| panic!("{exit:?}")).unwrap();
    assert_eq!(keep.read().unwrap(), 1);
    let null = std::fs::File::open("/dev/null").unwrap();
    // SAFETY: both are this test's.
    unsafe { libc::dup3(null.as_raw_fd(), event.as_raw_fd(), libc::O_CLOEXEC) };
    let mut c = Changes::new();
    c.detach(device);
    let memory = Owned::numbered(1, 5);
    c.map(ram(0, 1, memory.backing()));
    if let Err(error) = rig.vm.apply(c) {
        println!("refused: {error}");
        // All of it, and the doorbell is as it was.
        assert_eq!((rig.vm.devices(), rig.read(0)), (vec![device], Outcome::Mmio));
        rig.prober.drive(&[ring], |exit| panic!("{exit:?}")).unwrap();
        assert_eq!(keep.read().unwrap(), 1);
        // SAFETY: as above.
        unsafe { libc::dup3(keep.as_raw_fd(), event.as_raw_fd(), libc::O_CLOEXEC) };
        let mut c = Changes::new();
        c.detach(device);
        rig.vm.apply(c).unwrap();
    }
    assert!(rig.vm.devices().is_empty());
    let mut exits = 0;
    rig.prober.drive(&[ring], |_| exits += 1).unwrap();
    assert_eq!(exits, 1);
}

/// A descriptor that is closed already, and one that is no memory's, as a region's file.
#[test]
fn descriptors_of_a_guest_memfd_that_are_none() {
    let test = "descriptors_of_a_guest_memfd_that_are_none";
    let Some(mut rig) = Rig::new(test) else { return };
    if !rig.vm.limits().guest_memfd {
        return crate::common::skip(test, "no slots with a guest_memfd");
    }
    let memory = Owned::numbered(4, 1);
    let event = EventFd::new(0).unwrap();
    for fd in [event.as_raw_fd(), 1_000_000, -1] {
        let mut c = Changes::new();
        c.map(ram(0, 2, memory.backing()));
        let backing = memory.backing().with_guest_memfd(fd, 0);
        c.map(RegionSpec::ram(at(2 * GPA, SMALL_PAGE), backing));
        let error = rig.vm.apply(c).unwrap_err();
        println!("{fd}: {error}");
        assert!(rig.vm.regions().is_empty());
        assert_eq!(rig.read(0), Outcome::Mmio);
    }
}
