//! Coalesced zones: the model of them against KVM, and the ring as a guest fills it.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_ioctls::{VcpuFd, VmFd};
use kvm_memslots::backend::{EventCalls, EventModel, EventOp, Irqchip, Kvm, KvmOptions};
use kvm_memslots::device::{Bus, Coalesced, Device, Doorbell, Ioeventfd, Zone, ZoneWrite};
use kvm_memslots::{Access, Backing, Changes, CoalescedRing, Errno, RegionId, RegionSpec, Vm, at};
use kvm_memslots::{HolePolicy, vm_fd};
use kvm_memslots_kit::guest::interrupted::{GuestWrite, Interrupted};
use kvm_memslots_kit::host::{HostMemory, Pages};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use vmm_sys_util::eventfd::EventFd;

use crate::rig::{OWN_SLOT, eventfd, signalled, split_vm};

/// As a library's user borrows it.
fn fd(file: &impl AsRawFd) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the file stays open while it is borrowed.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(file.as_raw_fd()) }
}

/// The ring, through a vCPU that does not run.
fn ring(vm: &VmFd, of: &Vm) -> (CoalescedRing, VcpuFd) {
    let vcpu = vm.create_vcpu(1).unwrap();
    (of.coalesced_ring(fd(&vcpu)).unwrap(), vcpu)
}

fn drain(ring: &mut CoalescedRing) -> Vec<ZoneWrite> {
    let mut writes = Vec::new();
    ring.drain(|write| writes.push(write));
    writes
}

#[derive(Debug, Clone)]
enum Op {
    Register(Zone),
    Unregister(Zone),
    Assign(Ioeventfd),
    Deassign(Ioeventfd),
    Write(GuestWrite),
    /// Write where an ioeventfd is.
    Ring(usize),
}

fn place() -> impl Strategy<Value = (Bus, u64)> {
    prop_oneof![
        2 => (0..12_u64).prop_map(|n| (Bus::Mmio, 0xd000_0000 + n)),
        1 => (0..6_u64).prop_map(|n| (Bus::Pio, 0x600 + n)),
    ]
}

fn zone() -> impl Strategy<Value = Zone> {
    let near = (place(), prop_oneof![12 => 1..10_u32, 1 => Just(0)]);
    // Clear of where the guest says that it is done.
    let far = (Just(Bus::Mmio), select(vec![0xe000_0000, u64::MAX - 3]));
    let far = (far, select(vec![1, 0x1000, 0x7fff_ffff, u32::MAX]));
    prop_oneof![12 => near, 1 => far].prop_map(|((bus, addr), len)| Zone { bus, addr, len })
}

/// The descriptor's number stands for it. None of any length: KVM has those on a
/// second bus, which it asks first where the processor tells it of such writes.
fn ioeventfd() -> impl Strategy<Value = Ioeventfd> {
    (place(), select(vec![1, 2, 4]), 0..3_i32).prop_map(|((bus, addr), len, fd)| Ioeventfd {
        bus,
        addr,
        len,
        datamatch: None,
        fd,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let write = (place(), select(vec![1, 2, 4]), any::<u8>());
    prop_oneof![
        3 => zone().prop_map(Op::Register),
        2 => zone().prop_map(Op::Unregister),
        3 => ioeventfd().prop_map(Op::Assign),
        1 => ioeventfd().prop_map(Op::Deassign),
        2 => (0..4_usize).prop_map(Op::Ring),
        4 => write.prop_map(|((bus, addr), len, value)| {
            Op::Write(GuestWrite { bus, addr, len, value: value.into() })
        }),
    ]
}

#[derive(Debug, Default)]
struct Seen {
    accepted: usize,
    refused: usize,
    kept: usize,
    fired: usize,
    exits: usize,
}

/// A VM and its model.
struct Pair {
    kvm: Kvm,
    model: EventModel,
    guest: Interrupted,
    ring: CoalescedRing,
    eventfds: Vec<EventFd>,
    _held: (VcpuFd, VmFd),
}

impl Pair {
    fn new(vm: VmFd) -> Self {
        let guest = Interrupted::start(&vm, OWN_SLOT).unwrap();
        let kvm = Kvm::open(vm_fd(&vm), KvmOptions::default()).unwrap();
        let (ring, vcpu) = {
            let library = Vm::open(vm_fd(&vm)).unwrap();
            ring(&vm, &library)
        };
        let eventfds = (0..3).map(|_| eventfd()).collect();
        let model = EventModel::new(Irqchip::Split);
        Self { kvm, model, guest, ring, eventfds, _held: (vcpu, vm) }
    }

    fn call(&self, op: &EventOp, seen: &mut Seen) -> Result<(), String> {
        let (kvm, model) = (self.kvm.change(op), self.model.change(op));
        *(if kvm.is_ok() { &mut seen.accepted } else { &mut seen.refused }) += 1;
        if kvm == model { Ok(()) } else { Err(format!("KVM answers {kvm:?}, the model {model:?}")) }
    }

    fn apply(&mut self, op: &Op, seen: &mut Seen) -> Result<(), String> {
        let real = |at: &Ioeventfd| {
            let fd = self.eventfds[usize::try_from(at.fd).unwrap()].as_raw_fd();
            Ioeventfd { fd, ..*at }
        };
        match op {
            Op::Register(zone) => self.call(&EventOp::Assign((*zone).into()), seen),
            Op::Unregister(zone) => self.call(&EventOp::Deassign((*zone).into()), seen),
            Op::Assign(at) => self.call(&EventOp::Assign(real(at).into()), seen),
            Op::Deassign(at) => self.call(&EventOp::Deassign(real(at).into()), seen),
            Op::Write(write) => self.write(*write, seen),
            Op::Ring(n) => {
                let live: Vec<Ioeventfd> = self.model.state().ioeventfds().collect();
                let Some(at) = live.get(n % live.len().max(1)) else { return Ok(()) };
                let write = GuestWrite { bus: at.bus, addr: at.addr, len: at.len, value: 7 };
                self.write(write, seen)
            }
        }
    }

    fn write(&mut self, write: GuestWrite, seen: &mut Seen) -> Result<(), String> {
        let fires = self.model.guest_writes(write.bus, write.addr, write.len, write.value);
        let keeps = self.model.take_ring();
        let exits = self.guest.write(&[write]).map_err(|error| error.to_string())?;
        let kept = drain(&mut self.ring);
        if kept != keeps {
            return Err(format!("{write:x?}: the ring has {kept:x?}, the model {keeps:x?}"));
        }
        let exited = fires.is_none() && keeps.is_empty();
        if exits.len() != usize::from(exited) {
            return Err(format!("{write:x?} comes out as {exits:x?}"));
        }
        for eventfd in &self.eventfds {
            let count = signalled(eventfd);
            if count != u64::from(fires == Some(eventfd.as_raw_fd())) {
                return Err(format!("{write:x?} signalled {eventfd:?} {count} times"));
            }
        }
        seen.exits += exits.len();
        seen.kept += kept.len();
        seen.fired += usize::from(fires.is_some());
        Ok(())
    }
}

#[test]
fn the_model_of_zones_answers_as_kvm_does() {
    let test = "devices::the_model_of_zones_answers_as_kvm_does";
    if split_vm(test).is_none() {
        return;
    }
    let vms = std::env::var("MEMSLOTS_DIFFERENTIAL_VMS").ok().and_then(|vms| vms.parse().ok());
    let cases = vms.unwrap_or(40);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let seen = std::cell::RefCell::new(Seen::default());
    let run = TestRunner::new(config).run(&vec(op(), 1..60), |ops| {
        let mut pair = Pair::new(split_vm(test).unwrap());
        for (index, op) in ops.iter().enumerate() {
            let applied = pair.apply(op, &mut seen.borrow_mut());
            applied.map_err(|why| TestCaseError::fail(format!("op {index}, {op:x?}: {why}")))?;
        }
        Ok(())
    });
    if let Err(error) = run {
        panic!("{error}");
    }
    let seen = seen.into_inner();
    eprintln!("{seen:?}");
    let Seen { accepted, refused, kept, fired, exits } = seen;
    assert!([accepted, refused, kept, fired, exits].iter().all(|count| *count > 5));
}

fn write(addr: u64) -> GuestWrite {
    GuestWrite { bus: Bus::Mmio, addr, len: 4, value: addr & 0xffff }
}

#[test]
fn a_devices_zone_keeps_the_guests_writes_where_its_region_is() {
    let test = "devices::a_devices_zone_keeps_the_guests_writes_where_its_region_is";
    let Some(fd) = split_vm(test) else { return };
    let mut guest = Interrupted::start(&fd, OWN_SLOT).unwrap();
    let vm = Vm::builder().holes(HolePolicy::NoVcpuRuns);
    let vm = vm.reserve_slots(0, OWN_SLOT..=OWN_SLOT).open(vm_fd(&fd)).unwrap();
    let (mut ring, vcpu) = ring(&fd, &vm);
    // The ring needs no descriptor.
    drop(vcpu);
    let memory = Arc::new(HostMemory::reserve(0x2000, Pages::Small).unwrap());
    let region = RegionId::new();
    let ram = |gpa| {
        // SAFETY: nothing but the guest uses it, which is gone before.
        let backing = unsafe { Backing::borrowed(memory.hva(), 0x1000, Access::ReadWrite) };
        RegionSpec::ram(at(gpa, 0x1000), backing)
    };
    let bell = eventfd();
    let mut c = Changes::new();
    let device = c.attach(
        Device::new("vga")
            .region(region, ram(0xd000_0000))
            .coalesced(Coalesced::in_region(region, 0x1000, 0x800))
            .ioeventfd(Doorbell::in_region(region, 0x1800).len(4), bell.try_clone().unwrap()),
    );
    let report = vm.apply(c).unwrap();
    assert_eq!((report.events.zone_calls, report.events.ioeventfd_calls), (1, 1));

    let mut expect = |base: u64, is_there: bool| {
        let writes = [0x1000, 0x17fc, 0x1800].map(|offset| write(base + offset));
        let exits = guest.write(&writes).unwrap();
        let kept: Vec<u64> = drain(&mut ring).iter().map(|write| write.addr).collect();
        let rang = signalled(&bell);
        if is_there {
            assert_eq!((exits, rang), (vec![], 1));
            assert_eq!(kept, [base + 0x1000, base + 0x17fc]);
        } else {
            assert_eq!((exits, rang), (writes.to_vec(), 0));
            assert_eq!(kept, [0_u64; 0]);
        }
    };
    expect(0xd000_0000, true);
    let mut c = Changes::new();
    c.move_to(region, 0xd800_0000);
    let moved = vm.apply(c).unwrap();
    assert_eq!((moved.events.zone_calls, moved.events.ioeventfd_calls), (2, 2));
    expect(0xd000_0000, false);
    expect(0xd800_0000, true);
    let mut c = Changes::new();
    c.detach(device);
    vm.apply(c).unwrap();
    expect(0xd800_0000, false);
}

#[test]
fn a_full_ring_lets_writes_exit_and_loses_none() {
    let test = "devices::a_full_ring_lets_writes_exit_and_loses_none";
    let Some(fd) = split_vm(test) else { return };
    let mut guest = Interrupted::start(&fd, OWN_SLOT).unwrap();
    let vm = Vm::builder().reserve_slots(0, OWN_SLOT..=OWN_SLOT).open(vm_fd(&fd)).unwrap();
    let (mut ring, _vcpu) = ring(&fd, &vm);
    let model = EventModel::new(Irqchip::Split);
    let mut c = Changes::new();
    c.attach(Device::new("vga").coalesced(Coalesced::at(Bus::Mmio, 0xd000_0000, 0x1000)));
    vm.apply(c).unwrap();
    let zone = Zone { bus: Bus::Mmio, addr: 0xd000_0000, len: 0x1000 };
    model.change(&EventOp::Assign(zone.into())).unwrap();
    // Twice, so that it wraps around.
    for _ in 0..2 {
        let writes: Vec<_> = (0..200).map(|n| write(0xd000_0000 + n * 4)).collect();
        for write in &writes {
            let eventfd = model.guest_writes(write.bus, write.addr, write.len, write.value);
            assert_eq!(eventfd, None);
        }
        let exits = guest.write(&writes).unwrap();
        let kept = drain(&mut ring);
        assert_eq!(kept, model.take_ring());
        assert_eq!(kept.len() + exits.len(), writes.len());
        let all = kept.iter().map(|write| write.addr).chain(exits.iter().map(|write| write.addr));
        assert!(all.eq(writes.iter().map(|write| write.addr)));
    }
}

#[test]
fn a_bus_is_full_where_the_models_is() {
    let test = "devices::a_bus_is_full_where_the_models_is";
    let Some(fd) = split_vm(test) else { return };
    let kvm = Kvm::open(vm_fd(&fd), KvmOptions::default()).unwrap();
    let model = EventModel::new(Irqchip::Split);
    let zone = |n: u64| Zone { bus: Bus::Pio, addr: 0x1000 + n * 8, len: 8 };
    let fits = |calls: &dyn EventCalls| {
        (0..2000).find_map(|n| {
            calls.change(&EventOp::Assign(zone(n).into())).err().map(|errno| (n, errno))
        })
    };
    let full = fits(&kvm);
    assert_eq!(full, fits(&model));
    assert_eq!(full.map(|(_, errno)| errno), Some(Errno::ENOSPC));
}
