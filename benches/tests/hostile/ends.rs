//! The ends of address spaces, and of VMs.

use kvm_memslots::device::{Bus, Coalesced, Device, Doorbell};
use kvm_memslots::window::{Window, WindowSpec};
use kvm_memslots::{Changes, RegionSpec, at};
use kvm_memslots_kit::guest::Outcome;
use kvm_memslots_kit::host::SMALL_PAGE;
use vmm_sys_util::eventfd::EventFd;

use crate::{Owned, Rig, ram};

/// Doorbells and zones up to the last address are KVM's to take or to refuse, and none
/// reaches beyond; nothing is left of what is refused, and what is taken goes again.
#[test]
fn doorbells_and_zones_at_the_end_of_the_address_space() {
    let test = "doorbells_and_zones_at_the_end_of_the_address_space";
    let Some(mut rig) = Rig::new(test) else { return };
    let memory = Owned::numbered(1, 5);
    let mut c = Changes::new();
    c.map(ram(0, 1, memory.backing()));
    rig.vm.apply(c).unwrap();
    let empty = rig.vm.event_state().unwrap();
    let mut taken = 0;
    for bus in [Bus::Mmio, Bus::Pio] {
        for back in [0, 1, 2, 3, 4, 7, 8, 9, 16, 4096] {
            for len in [0_u32, 1, 2, 4, 8] {
                for value in [None, Some(0), Some(u64::MAX >> (64 - 8 * len.clamp(1, 8)))] {
                    let addr = 0_u64.wrapping_sub(back);
                    let doorbell = Doorbell::at(bus, addr).len(len);
                    let doorbell = value.into_iter().fold(doorbell, Doorbell::value);
                    let device = Device::new("end");
                    let device = device.ioeventfd(doorbell, EventFd::new(0).unwrap());
                    taken += u32::from(comes_and_goes(&rig, device, &empty));
                }
                let zone = Coalesced::at(bus, 0_u64.wrapping_sub(back), len);
                taken +=
                    u32::from(comes_and_goes(&rig, Device::new("end").coalesced(zone), &empty));
            }
        }
    }
    assert!(taken > 0);
    assert_eq!(rig.read(0), Outcome::Value(5));
}

/// Whether a device was attached, alone and beside memory that comes.
fn comes_and_goes(
    rig: &Rig,
    device: Device,
    empty: &(impl PartialEq<kvm_memslots::backend::EventState> + std::fmt::Debug),
) -> bool {
    let regions = rig.vm.regions();
    let mut c = Changes::new();
    let memory = Owned::numbered(1, 7);
    let region = c.map(ram(8, 1, memory.backing()));
    let id = c.attach(device);
    match rig.vm.apply(c) {
        Ok(_) => {
            let mut c = Changes::new();
            c.detach(id);
            c.unmap(region);
            rig.vm.apply(c).unwrap();
        }
        Err(error) => {
            let named = error.device().is_some();
            assert!(named, "{error}");
            assert!(!error.to_string().contains("internal"), "{error}");
            assert_eq!(rig.vm.regions(), regions, "{error}");
            assert_eq!(*empty, rig.vm.event_state().unwrap(), "{error}");
            return false;
        }
    }
    assert_eq!(rig.vm.regions(), regions);
    assert_eq!(*empty, rig.vm.event_state().unwrap());
    true
}

/// Memory and windows up to the last page: refused by the library or KVM, all of the
/// set with it.
#[test]
fn memory_at_the_end_of_the_address_space() {
    let test = "memory_at_the_end_of_the_address_space";
    let Some(mut rig) = Rig::new(test) else { return };
    let (memory, page) = (Owned::numbered(2, 5), SMALL_PAGE);
    for back in [1, 2, 3] {
        for pages in [1, 2] {
            let gpa = 0_u64.wrapping_sub(back * page);
            let mut c = Changes::new();
            c.map(ram(0, 2, memory.backing()));
            c.map(RegionSpec::ram(at(gpa, pages * page), memory.backing()));
            let error = rig.vm.apply(c).unwrap_err();
            assert!(error.errno().raw() != 0 && !error.to_string().contains("internal"), "{error}");
            assert!(rig.vm.regions().is_empty());
            if let Ok(window) = Window::new(WindowSpec::new(at(gpa, pages * page))) {
                let mut c = Changes::new();
                c.map(ram(0, 2, memory.backing()));
                c.map(window.region());
                rig.vm.apply(c).unwrap_err();
            }
            assert_eq!(rig.read(0), Outcome::Mmio);
        }
    }
}

/// Sets after the end: of a VM that was closed they are the first ones again, and names
/// from before mean nothing.
#[test]
fn sets_after_the_end_of_a_vm() {
    let test = "sets_after_the_end_of_a_vm";
    let Some(mut rig) = Rig::new(test) else { return };
    let memory = Owned::numbered(4, 1);
    let mut c = Changes::new();
    let before = c.map(ram(0, 4, memory.backing()).log_dirty());
    let device = Device::new("bell")
        .ioeventfd(Doorbell::at(Bus::Mmio, 0xd000_0000).len(4), EventFd::new(0).unwrap());
    let device = c.attach(device);
    let again = c.clone();
    rig.vm.apply(c).unwrap();
    rig.vm.close().unwrap();
    rig.vm.close().unwrap();
    let stale: [&dyn Fn(&mut Changes); 4] =
        [&|c| c.unmap(before), &|c| c.set_log_dirty(before, false), &|c| c.detach(device), &|c| {
            _ = c.split(before, SMALL_PAGE);
        }];
    for change in stale {
        let mut c = Changes::new();
        c.map(ram(8, 1, memory.backing()));
        change(&mut c);
        rig.vm.apply(c).unwrap_err();
        assert!(rig.vm.regions().is_empty() && rig.vm.devices().is_empty());
    }
    rig.vm.dirty_log(before).unwrap_err();
    // The same set, with the same names.
    rig.vm.apply(again.clone()).unwrap();
    assert_eq!(rig.read(3), Outcome::Value(4));
    // And once more, where all of it is there.
    rig.vm.apply(again).unwrap_err();
    assert_eq!(rig.read(3), Outcome::Value(4));
    // The VMM's handles go first, the library's next, and what the guest has is KVM's.
    let Rig { mut prober, vm, fd } = rig;
    drop((fd, vm));
    let read = kvm_memslots_kit::guest::Access::Read(crate::gpa(3));
    assert_eq!(prober.probe(&[read]).unwrap(), [Outcome::Mmio], "owned memory has gone");
}
