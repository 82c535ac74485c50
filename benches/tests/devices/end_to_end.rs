//! Real interrupts and real guest writes.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_memslots::device::{Bus, Device, DeviceId, Doorbell, Route};
use kvm_memslots::{
    Access, Backing, Builder, Changes, RegionId, RegionSpec, Report, Vm, at, vm_fd,
};
use kvm_memslots_kit::guest::interrupted::{GuestWrite, Interrupted};
use kvm_memslots_kit::host::{HostMemory, Pages};
use vmm_sys_util::eventfd::EventFd;

use crate::rig::{OWN_SLOT, PATIENCE, eventfd, full_vm, msi, signalled, split_vm};

const FIRST: u8 = 0x30;

/// A device with a vector each for `vectors` interrupts from `first` on.
fn with_vectors(name: &str, first: u8, vectors: u8) -> (Device, Vec<EventFd>) {
    let eventfds: Vec<EventFd> = (0..vectors).map(|_| eventfd()).collect();
    let interrupts = eventfds.iter().zip(first..);
    let device = interrupts.fold(Device::new(name), |device, (interrupt, vector)| {
        device.vector(interrupt.as_raw_fd(), Some(msi(vector)))
    });
    (device, eventfds)
}

fn open(vm: &kvm_ioctls::VmFd, options: impl FnOnce(Builder) -> Builder) -> Vm {
    let builder = Vm::builder().reserve_slots(0, OWN_SLOT..=OWN_SLOT);
    options(builder).open(vm_fd(vm)).unwrap()
}

fn apply(vm: &Vm, change: impl FnOnce(&mut Changes)) -> Report {
    let mut changes = Changes::new();
    change(&mut changes);
    vm.apply(changes).unwrap()
}

fn attach(vm: &Vm, device: Device) -> DeviceId {
    let mut changes = Changes::new();
    let id = changes.attach(device);
    vm.apply(changes).unwrap();
    id
}

#[test]
fn every_vector_arrives_after_attach_and_none_after_detach() {
    let test = "every_vector_arrives_after_attach_and_none_after_detach";
    let Some(vm) = split_vm(test) else { return };
    let mut guest = Interrupted::start(&vm, OWN_SLOT).unwrap();
    let vm = open(&vm, |builder| builder);
    let (setup, eventfds) = with_vectors("dev", FIRST, 128);
    let signal_all = || eventfds.iter().for_each(|eventfd| eventfd.write(1).unwrap());

    // What is signalled before is pending, and arrives.
    eventfds[5].write(1).unwrap();
    let id = attach(&vm, setup);
    assert!(guest.wait_for(FIRST + 5, 1, PATIENCE));
    for round in 1..=3 {
        signal_all();
        for vector in FIRST..FIRST + 128 {
            let pending = u64::from(vector == FIRST + 5);
            assert!(guest.wait_for(vector, round + pending, PATIENCE), "{vector:#x}");
        }
    }
    apply(&vm, |c| c.detach(id));
    let before: Vec<u64> = (FIRST..FIRST + 128).map(|vector| guest.count(vector)).collect();
    signal_all();
    // The guest takes another interrupt, and only that one.
    guest.write(&[GuestWrite { bus: Bus::Pio, addr: 0x99, len: 1, value: 0 }]).unwrap();
    let after: Vec<u64> = (FIRST..FIRST + 128).map(|vector| guest.count(vector)).collect();
    assert_eq!(after, before);
    assert!(eventfds.iter().all(|eventfd| signalled(eventfd) == 1), "nobody has read them");
}

#[test]
fn no_interrupt_is_lost_while_others_come_and_go() {
    let test = "no_interrupt_is_lost_while_others_come_and_go";
    let Some(vm) = split_vm(test) else { return };
    let guest = Interrupted::start(&vm, OWN_SLOT).unwrap();
    let vm = open(&vm, |builder| builder);
    let (setup, eventfds) = with_vectors("busy", FIRST, 8);
    let busy = attach(&vm, setup);
    let memory = HostMemory::reserve(16 << 12, Pages::Small).unwrap();
    let stop = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let pump = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                rounds += 1;
                for (eventfd, vector) in eventfds.iter().zip(FIRST..) {
                    eventfd.write(1).unwrap();
                    // An MSI is an edge: the next before this one has arrived
                    // would rightly be one with it.
                    assert!(guest.wait_for(vector, rounds, PATIENCE), "{vector:#x} is lost");
                }
            }
            rounds
        });
        for change in 0..100 {
            let (device, _eventfds) = with_vectors("other", 0x90, 16);
            // SAFETY: the memory is only accessed atomically, and outlives the
            // device.
            let backing = unsafe { Backing::borrowed(memory.hva(), 16 << 12, Access::ReadWrite) };
            let bar = RegionSpec::device(at(0x4000_0000, 16 << 12), backing);
            let doorbell = Doorbell::at(Bus::Mmio, 0xd000_0000).len(4);
            let device = device.region(RegionId::new(), bar).ioeventfd(doorbell, eventfd());
            let other = attach(&vm, device);
            // Another vector's message is changed and changed back, and one of
            // the other device's masked.
            apply(&vm, |c| {
                c.set_vector(other, 3, None);
                c.set_vector(other, 4, Some(msi(0xa0 + change % 16)));
            });
            apply(&vm, |c| c.detach(other));
        }
        stop.store(true, Ordering::Relaxed);
        pump.join().unwrap()
    });
    assert!(rounds > 10, "{rounds}");
    for vector in FIRST..FIRST + 8 {
        assert_eq!(guest.count(vector), rounds);
    }
    apply(&vm, |c| c.detach(busy));
}

#[test]
fn a_masked_vector_keeps_its_event() {
    let test = "a_masked_vector_keeps_its_event";
    let Some(vm) = split_vm(test) else { return };
    let mut guest = Interrupted::start(&vm, OWN_SLOT).unwrap();
    let vm = open(&vm, |builder| builder);
    let (setup, eventfds) = with_vectors("dev", FIRST, 2);
    let id = attach(&vm, setup);
    apply(&vm, |c| c.set_vector(id, 0, None));
    eventfds[0].write(1).unwrap();
    guest.write(&[GuestWrite { bus: Bus::Pio, addr: 0x99, len: 1, value: 0 }]).unwrap();
    assert_eq!(guest.count(FIRST), 0);
    // Unmasked with another message: it is that one that arrives.
    apply(&vm, |c| c.set_vector(id, 0, Some(msi(0x77))));
    assert!(guest.wait_for(0x77, 1, PATIENCE));
    assert_eq!(guest.count(FIRST), 0);
}

#[test]
fn the_vmms_own_interrupts_stay() {
    let test = "the_vmms_own_interrupts_stay";
    let Some(vm) = full_vm(test) else { return };
    let guest = Interrupted::start(&vm, OWN_SLOT).unwrap();
    let own = eventfd();
    let routes = Route::x86_defaults().into_iter().chain([Route::msi(30, msi(0x66))]);
    let routes: Vec<Route> = routes.collect();
    let entries: Vec<_> = routes.iter().map(Route::to_kvm).collect();
    vm.set_gsi_routing(&kvm_bindings::KvmIrqRouting::from_entries(&entries).unwrap()).unwrap();
    vm.register_irqfd(&own, 30).unwrap();

    let vm = open(&vm, |builder| builder.own_routes(routes));
    let (setup, eventfds) = with_vectors("dev", FIRST, 16);
    let id = attach(&vm, setup);
    for (eventfd, vector) in eventfds.iter().zip(FIRST..) {
        eventfd.write(1).unwrap();
        assert!(guest.wait_for(vector, 1, PATIENCE));
    }
    own.write(1).unwrap();
    assert!(guest.wait_for(0x66, 1, PATIENCE));
    apply(&vm, |c| c.detach(id));
    own.write(1).unwrap();
    assert!(guest.wait_for(0x66, 2, PATIENCE));
}

#[test]
fn ioeventfds_fire_for_their_writes_only() {
    let test = "ioeventfds_fire_for_their_writes_only";
    let Some(vm) = split_vm(test) else { return };
    let mut guest = Interrupted::start(&vm, OWN_SLOT).unwrap();
    let vm = open(&vm, |builder| builder);
    let write = |bus, addr, len, value| GuestWrite { bus, addr, len, value };
    let (mmio, port) = (0xd000_0000, 0x600);
    // Each with the writes that it is for.
    let ioeventfds = [
        (Bus::Mmio, mmio, 2, Some(1), vec![write(Bus::Mmio, mmio, 2, 1)]),
        (
            Bus::Mmio,
            mmio,
            4,
            None,
            vec![write(Bus::Mmio, mmio, 4, 0), write(Bus::Mmio, mmio, 4, 0xffff_ffff)],
        ),
        (
            Bus::Mmio,
            mmio + 8,
            8,
            Some(0x1_0000_0002),
            vec![write(Bus::Mmio, mmio + 8, 8, 0x1_0000_0002)],
        ),
        (
            Bus::Mmio,
            mmio + 16,
            0,
            None,
            vec![
                write(Bus::Mmio, mmio + 16, 1, 5),
                write(Bus::Mmio, mmio + 16, 2, 5),
                write(Bus::Mmio, mmio + 16, 4, 5),
                write(Bus::Mmio, mmio + 16, 8, 5),
            ],
        ),
        (Bus::Mmio, mmio + 32, 1, Some(7), vec![write(Bus::Mmio, mmio + 32, 1, 7)]),
        (Bus::Pio, port, 1, Some(9), vec![write(Bus::Pio, port, 1, 9)]),
        (Bus::Pio, port + 8, 2, None, vec![write(Bus::Pio, port + 8, 2, 3)]),
        (Bus::Pio, port + 16, 4, Some(4), vec![write(Bus::Pio, port + 16, 4, 4)]),
    ];
    let others = [
        write(Bus::Mmio, mmio, 2, 0),
        write(Bus::Mmio, mmio, 1, 1),
        write(Bus::Mmio, mmio, 8, 1),
        write(Bus::Mmio, mmio + 2, 2, 1),
        write(Bus::Mmio, mmio + 8, 8, 2),
        write(Bus::Mmio, mmio + 8, 4, 2),
        write(Bus::Mmio, mmio + 17, 1, 5),
        write(Bus::Mmio, mmio + 32, 1, 8),
        write(Bus::Mmio, mmio + 32, 2, 7),
        write(Bus::Pio, port, 1, 8),
        write(Bus::Pio, port, 2, 9),
        write(Bus::Pio, port + 8, 1, 3),
        write(Bus::Pio, port + 16, 4, 5),
        write(Bus::Mmio, port, 1, 9),
    ];
    // Low memory is the guest's own: that write goes there and nowhere else.
    let exits: Vec<GuestWrite> = others[..others.len() - 1].to_vec();

    let mut setup = Device::new("dev");
    let eventfds: Vec<EventFd> = ioeventfds.iter().map(|_| eventfd()).collect();
    for ((bus, addr, len, data, _), eventfd) in ioeventfds.iter().zip(&eventfds) {
        let doorbell = Doorbell::at(*bus, *addr).len(*len);
        let doorbell = data.map_or(doorbell, |value| doorbell.value(value));
        setup = setup.ioeventfd(doorbell, eventfd.as_raw_fd());
    }
    let id = attach(&vm, setup);
    assert_eq!(guest.write(&others).unwrap(), exits);
    assert!(eventfds.iter().all(|eventfd| signalled(eventfd) == 0));
    for ((.., writes), eventfd) in ioeventfds.iter().zip(&eventfds) {
        assert_eq!(guest.write(writes).unwrap(), [], "{writes:?}");
        assert_eq!(signalled(eventfd), writes.len() as u64, "{writes:?}");
        assert!(eventfds.iter().all(|eventfd| signalled(eventfd) == 0), "{writes:?}");
    }
    apply(&vm, |c| c.detach(id));
    for (.., writes) in &ioeventfds {
        assert_eq!(guest.write(writes).unwrap(), *writes);
    }
    assert!(eventfds.iter().all(|eventfd| signalled(eventfd) == 0));
}
