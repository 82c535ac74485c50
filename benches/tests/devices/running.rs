//! What a running guest has its devices do: vectors that are masked under load,
//! BARs that swap places with their doorbells.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_ioctls::VmFd;
use kvm_memslots::device::{Bus, Device, DeviceId, Trigger};
use kvm_memslots::pci::{BarSpec, FunctionId, FunctionSpec, PciBars};
use kvm_memslots::{Access, Backing, Changes, HolePolicy, RegionSpec, Report, Vm, at, vm_fd};
use kvm_memslots_kit::guest::interrupted::{GuestWrite, Interrupted};
use kvm_memslots_kit::host::{HostMemory, Pages};
use vmm_sys_util::eventfd::EventFd;

use crate::common::Stops;
use crate::rig::{OWN_SLOT, PATIENCE, eventfd, msi, signalled, split_vm};

/// Raised through an irqfd that comes and goes, and through a trigger.
const VECTORS: [u8; 2] = [0x30, 0x31];
/// A write that exits: what is pending has arrived before.
const BARRIER: GuestWrite = GuestWrite { bus: Bus::Pio, addr: 0x99, len: 1, value: 0 };

/// A guest that counts what arrives at the vectors of a device.
struct Masked {
    fd: VmFd,
    guest: Interrupted,
    vectors: Vectors,
}

/// The device, with a vector of each kind.
struct Vectors {
    vm: Vm,
    id: DeviceId,
    plain: EventFd,
    trigger: Arc<Trigger>,
}

impl Masked {
    fn new(test: &str) -> Option<Self> {
        let fd = split_vm(test)?;
        let guest = Interrupted::start(&fd, OWN_SLOT).unwrap();
        let vm = Vm::builder().reserve_slots(0, OWN_SLOT..=OWN_SLOT).open(vm_fd(&fd)).unwrap();
        let plain = eventfd();
        let trigger = Arc::new(Trigger::new(eventfd()));
        let mut c = Changes::new();
        let nic = Device::new("nic")
            .vector(plain.as_raw_fd(), Some(msi(VECTORS[0])))
            .triggered_vector(Arc::clone(&trigger), Some(msi(VECTORS[1])));
        let id = c.attach(nic);
        vm.apply(c).unwrap();
        Some(Self { fd, guest, vectors: Vectors { vm, id, plain, trigger } })
    }
}

impl Vectors {
    fn set(&self, masked: bool) -> Report {
        let mut c = Changes::new();
        for (n, vector) in VECTORS.into_iter().enumerate() {
            c.set_vector(self.id, n, (!masked).then_some(msi(vector)));
        }
        self.vm.apply(c).unwrap()
    }

    fn signal(&self) {
        self.plain.write(1).unwrap();
        self.trigger.signal().unwrap();
    }
}

#[test]
fn nothing_arrives_masked_and_nothing_is_lost_under_load() {
    let test = "nothing_arrives_masked_and_nothing_is_lost_under_load";
    let Some(Masked { fd: _fd, mut guest, vectors }) = Masked::new(test) else { return };
    let set = |masked: bool| {
        let report = vectors.set(masked);
        assert_eq!((report.calls(), report.waits()), (1, 0), "the irqfd of the plain one");
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stops = Stops(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                vectors.signal();
                std::thread::yield_now();
            }
        });
        for round in 0..100 {
            set(true);
            guest.write(&[BARRIER]).unwrap();
            let before = VECTORS.map(|vector| guest.count(vector));
            vectors.signal();
            guest.write(&[BARRIER]).unwrap();
            assert_eq!(VECTORS.map(|vector| guest.count(vector)), before, "round {round}");
            set(false);
            // What came meanwhile has been kept.
            for (vector, before) in VECTORS.into_iter().zip(before) {
                assert!(guest.wait_for(vector, before + 1, PATIENCE), "{vector:#x}, {round}");
            }
        }
    });
    set(true);
    guest.write(&[BARRIER]).unwrap();
    let before = VECTORS.map(|vector| guest.count(vector));
    vectors.signal();
    assert!(vectors.trigger.is_pending());
    set(false);
    for (vector, before) in VECTORS.into_iter().zip(before) {
        assert!(guest.wait_for(vector, before + 1, PATIENCE), "{vector:#x}");
    }
}

/// Each event is waited for before the next one is signalled: one that a mask or an
/// unmask loses is missed.
#[test]
fn each_event_arrives_however_often_its_vector_is_masked() {
    let test = "each_event_arrives_however_often_its_vector_is_masked";
    let Some(Masked { fd: _fd, guest, vectors }) = Masked::new(test) else { return };
    let stop = AtomicBool::new(false);
    let masks = std::thread::scope(|scope| {
        let stops = Stops(&stop);
        let masks = scope.spawn(|| {
            let mut masks = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                for masked in [true, false] {
                    vectors.set(masked);
                }
                masks += 1;
            }
            masks
        });
        let arrives = |round: u32| {
            let before = VECTORS.map(|vector| guest.count(vector));
            vectors.signal();
            let missing = VECTORS.into_iter().zip(before);
            let mut missing =
                missing.filter(|(vector, before)| !guest.wait_for(*vector, before + 1, PATIENCE));
            missing.next().map(|(vector, _)| (vector, round))
        };
        let lost = (0..1_000).find_map(arrives);
        drop(stops);
        let masks = masks.join().unwrap();
        assert_eq!(lost, None, "vector and round of {masks} masks");
        masks
    });
    assert!(masks > 10, "{masks}");
}

const X: u64 = 0xe000_0000;
const Y: u64 = 0xe010_0000;
/// Where doorbells are in a BAR of twice the size.
const BELLS: u64 = 0x4000;

/// A function with memory, and two doorbells behind it.
struct Nic {
    id: FunctionId,
    bells: [EventFd; 2],
}

fn nic(bars: &mut PciBars, vm: &Vm, hva: u64) -> Nic {
    let bells = [eventfd(), eventfd()];
    // SAFETY: the memory is only accessed atomically, and outlives the VM's vCPU.
    let memory = unsafe { Backing::borrowed(hva, BELLS, Access::ReadWrite) };
    let bar = BarSpec::memory32(2 * BELLS).window(RegionSpec::device(at(0, BELLS), memory));
    let bar = bar.ioeventfd(BELLS, 4, None, bells[0].as_raw_fd()).ioeventfd(
        BELLS + 4,
        2,
        Some(7),
        bells[1].as_raw_fd(),
    );
    Nic { id: bars.add(vm, FunctionSpec::new().bar(0, bar)).unwrap(), bells }
}

#[test]
fn bars_swap_places_with_their_doorbells() {
    let test = "bars_swap_places_with_their_doorbells";
    let Some(vm) = split_vm(test) else { return };
    let memory = HostMemory::reserve(2 * BELLS, Pages::Small).unwrap();
    let mut guest = Interrupted::start(&vm, OWN_SLOT).unwrap();
    let builder = Vm::builder().reserve_slots(0, OWN_SLOT..=OWN_SLOT);
    let vm = builder.holes(HolePolicy::Named).open(vm_fd(&vm)).unwrap();
    let mut bars = PciBars::new(36);
    let nics = [0, 1].map(|n| nic(&mut bars, &vm, memory.hva() + n * BELLS));
    let write = |addr, len, value| GuestWrite { bus: Bus::Mmio, addr, len, value };
    for (nic, base) in nics.iter().zip([X, Y]) {
        bars.note_write(nic.id, 0x10, &(base as u32).to_le_bytes()).unwrap();
        bars.config_write(&vm, nic.id, 4, &[2]).unwrap();
    }
    let mut at = [X, Y];
    for round in 1..=20_u64 {
        for (n, (nic, base)) in nics.iter().zip(at).enumerate() {
            let fires = [write(base + BELLS, 4, round), write(base + BELLS + 4, 2, 7)];
            assert_eq!(guest.write(&fires).unwrap(), [], "round {round}");
            // Memory and doorbells are the same function's.
            assert_eq!(guest.write(&[write(base + 0x10, 4, round)]).unwrap(), []);
            assert_eq!(memory.read(n as u64 * BELLS + 0x10), round, "round {round}");
            let exits = [write(base + BELLS + 4, 2, 8), write(base + BELLS + 8, 4, 7)];
            assert_eq!(guest.write(&exits).unwrap(), exits, "round {round}");
            assert!(nic.bells.iter().all(|bell| signalled(bell) == 1), "round {round}");
            let others = nics.iter().filter(|other| other.id != nic.id);
            assert!(others.flat_map(|other| &other.bells).all(|bell| signalled(bell) == 0));
        }
        at.reverse();
        for (nic, base) in nics.iter().zip(at) {
            bars.note_write(nic.id, 0x10, &(base as u32).to_le_bytes()).unwrap();
        }
        let report = bars.sync(&vm).unwrap().unwrap();
        assert_eq!(report.events.ioeventfd_calls, 8);
    }
    for nic in &nics {
        bars.config_write(&vm, nic.id, 4, &[0]).unwrap();
    }
    let silent = [write(X + BELLS, 4, 1), write(Y + BELLS + 4, 2, 7), write(X + 0x10, 4, 1)];
    assert_eq!(guest.write(&silent).unwrap(), silent);
}
