//! The guest code does what it says, on real KVM.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{guest_or_skip, set_slot, vm_or_skip};
use kvm_bindings::KVM_MEM_READONLY;
use kvm_memslots::VcpuGate;
use kvm_memslots_kit::guest::{
    Access, BusyVcpus, GuestError, Mmio, OWN_GPA, Outcome, Prober, Work,
};
use kvm_memslots_kit::host::{HostMemory, LARGE_PAGE, Pages, SMALL_PAGE};

const OWN_SLOT: u16 = 7;
const PATIENCE: Duration = Duration::from_mins(2);

#[test]
fn probe_tells_memory_from_mmio() {
    let test = "probe_tells_memory_from_mmio";
    let Some(vm) = vm_or_skip(test) else { return };
    let Some(mut prober) = guest_or_skip(test, Prober::new(&vm, OWN_SLOT)) else { return };
    let memory = HostMemory::reserve(4 * SMALL_PAGE, Pages::Small).unwrap();
    memory.write(0, 0x1111_2222_3333_4444);
    memory.write(SMALL_PAGE + 8, 0x5555);

    let (gpa, page) = (0x10_0000, SMALL_PAGE);
    set_slot(&vm, 0, gpa, 2 * page, &memory, 0);
    let accesses = [
        Access::Read(gpa - 8),
        Access::Read(gpa),
        Access::Write(gpa + 16, 99),
        Access::Read(gpa + 16),
        Access::Read(gpa + page + 8),
        Access::Write(gpa + 2 * page, 1),
        Access::Read(gpa + 2 * page),
    ];
    let mapped = [
        Outcome::Mmio,
        Outcome::Value(0x1111_2222_3333_4444),
        Outcome::Written,
        Outcome::Value(99),
        Outcome::Value(0x5555),
        Outcome::Mmio,
        Outcome::Mmio,
    ];
    assert_eq!(prober.probe(&accesses).unwrap(), mapped);
    assert_eq!(memory.read(16), 99);

    set_slot(&vm, 0, gpa, 0, &memory, 0);
    assert_eq!(prober.probe(&accesses).unwrap(), [Outcome::Mmio; 7]);

    set_slot(&vm, 0, gpa, 2 * page, &memory, 0);
    assert_eq!(prober.probe(&accesses).unwrap(), mapped);
}

#[test]
fn writes_to_read_only_slots_come_out_as_mmio() {
    let test = "writes_to_read_only_slots_come_out_as_mmio";
    let Some(vm) = vm_or_skip(test) else { return };
    let Some(mut prober) = guest_or_skip(test, Prober::new(&vm, OWN_SLOT)) else { return };
    let memory = HostMemory::reserve(SMALL_PAGE, Pages::Small).unwrap();
    memory.write(0, 5);
    set_slot(&vm, 0, 0x2000, SMALL_PAGE, &memory, KVM_MEM_READONLY);
    let outcomes = prober.probe(&[Access::Write(0x2000, 6), Access::Read(0x2000)]).unwrap();
    assert_eq!(outcomes, [Outcome::Mmio, Outcome::Value(5)]);
    assert_eq!(memory.read(0), 5);
}

/// More accesses than one mailbox holds, every other one an MMIO exit.
#[test]
fn long_lists_are_done_in_rounds() {
    let test = "long_lists_are_done_in_rounds";
    let Some(vm) = vm_or_skip(test) else { return };
    let Some(mut prober) = guest_or_skip(test, Prober::new(&vm, OWN_SLOT)) else { return };
    let pages = 5000;
    let memory = HostMemory::reserve(pages * SMALL_PAGE, Pages::Small).unwrap();
    let (half, gpa) = (pages / 2 * SMALL_PAGE, LARGE_PAGE);
    set_slot(&vm, 0, gpa, half, &memory, 0);
    let mut accesses = Vec::new();
    for page in 0..pages / 2 {
        memory.write(page * SMALL_PAGE, page + 1);
        accesses.push(Access::Read(gpa + page * SMALL_PAGE));
        accesses.push(Access::Read(gpa + half + page * SMALL_PAGE));
    }
    let outcomes = prober.probe(&accesses).unwrap();
    assert_eq!(outcomes.len(), accesses.len());
    for (page, pair) in outcomes.chunks(2).enumerate() {
        assert_eq!(pair, [Outcome::Value(page as u64 + 1), Outcome::Mmio], "page {page}");
    }
}

#[test]
fn every_width_reaches_memory_and_devices() {
    let test = "every_width_reaches_memory_and_devices";
    let Some(vm) = vm_or_skip(test) else { return };
    let Some(mut prober) = guest_or_skip(test, Prober::new(&vm, OWN_SLOT)) else { return };
    let memory = HostMemory::reserve(SMALL_PAGE, Pages::Small).unwrap();
    set_slot(&vm, 0, 0, SMALL_PAGE, &memory, 0);
    let pattern = 0x8877_6655_4433_2211;
    for (base, outside) in [(0, false), (SMALL_PAGE, true)] {
        for width in [1_u8, 2, 4, 8] {
            memory.write(0, 0);
            let at = base + u64::from(width % 8);
            let accesses = [Access::Store(at, width, pattern), Access::Load(at, width)];
            let mut device = [0; 8];
            let mut exits = 0;
            let values = prober.drive(&accesses, |exit| {
                exits += 1;
                let place = usize::from(width % 8);
                match exit {
                    Mmio::Write(gpa, data) => {
                        assert_eq!((gpa, data.len()), (at, width.into()));
                        device[place..place + data.len()].copy_from_slice(data);
                    }
                    Mmio::Read(_, data) => {
                        data.copy_from_slice(&device[place..place + data.len()]);
                    }
                    Mmio::Undecoded(_) => panic!("every access can be decoded"),
                }
            });
            let mask = u64::MAX >> (64 - 8 * u32::from(width));
            assert_eq!(values.unwrap(), [pattern, pattern & mask], "{width} bytes at {at:#x}");
            assert_eq!(exits, if outside { 2 } else { 0 });
            let written = if outside { u64::from_le_bytes(device) } else { memory.read(0) };
            assert_eq!(written, (pattern & mask) << (8 * u32::from(width % 8)));
        }
    }
}

#[test]
fn accesses_the_guest_cannot_do_are_refused() {
    let test = "accesses_the_guest_cannot_do_are_refused";
    let Some(vm) = vm_or_skip(test) else { return };
    let Some(mut prober) = guest_or_skip(test, Prober::new(&vm, OWN_SLOT)) else { return };
    for access in [Access::Read(4), Access::Write(1 << 39, 0)] {
        let refused = prober.probe(&[access]);
        assert!(matches!(refused, Err(GuestError::BadAccess { access: a }) if a == access));
    }
    assert_eq!(prober.probe(&[Access::Read(0)]).unwrap(), [Outcome::Mmio]);
}

#[test]
fn taken_slot_ids_are_reported() {
    let test = "taken_slot_ids_are_reported";
    let Some(vm) = vm_or_skip(test) else { return };
    let Some(_prober) = guest_or_skip(test, Prober::new(&vm, OWN_SLOT)) else { return };
    let second = BusyVcpus::start(&vm, OWN_SLOT + 1, 1, Work::Spin);
    assert!(
        matches!(second, Err(GuestError::Kvm { errno: nix::errno::Errno::EEXIST, .. })),
        "{second:?}: two slots at {OWN_GPA:#x}"
    );
}

fn kinds_of_work() -> [Work; 3] {
    let bytes = 2 * LARGE_PAGE;
    [
        Work::Spin,
        Work::FaultIn { bytes, pages: Pages::Small },
        Work::FaultIn { bytes, pages: Pages::Huge },
    ]
}

#[test]
fn busy_vcpus_work_until_stopped() {
    let test = "busy_vcpus_work_until_stopped";
    for work in kinds_of_work() {
        let Some(vm) = vm_or_skip(test) else { return };
        let busy = BusyVcpus::start(&vm, OWN_SLOT, 2, work);
        let Some(busy) = guest_or_skip(test, busy) else { return };
        // More than a pass over the range, so that memory is lost and comes
        // back.
        let enough = 3 * (2 * LARGE_PAGE / SMALL_PAGE);
        while busy.progress().iter().any(|progress| *progress < enough) {
            busy.wait_for_progress(PATIENCE).unwrap();
        }
        busy.stop().unwrap();
        let stopped = busy.progress();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(busy.progress(), stopped, "{work:?}");
    }
}

#[test]
fn a_paused_vcpu_is_outside_until_the_last_resume() {
    let test = "a_paused_vcpu_is_outside_until_the_last_resume";
    for work in kinds_of_work() {
        let Some(vm) = vm_or_skip(test) else { return };
        let busy = BusyVcpus::start(&vm, OWN_SLOT, 2, work);
        let Some(busy) = guest_or_skip(test, busy) else { return };
        for _ in 0..50 {
            busy.wait_for_progress(PATIENCE).unwrap();
            busy.pause().unwrap();
            let paused = busy.progress();
            busy.pause().unwrap();
            busy.resume();
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(busy.progress(), paused, "{work:?}");
            busy.resume();
        }
        busy.wait_for_progress(PATIENCE).unwrap();
        busy.stop().unwrap();
    }
}

/// Two threads pause and resume at their own pace: the vCPU is out while
/// either wants it out.
#[test]
fn pauses_from_two_threads_add_up() {
    let test = "pauses_from_two_threads_add_up";
    let Some(vm) = vm_or_skip(test) else { return };
    let Some(busy) = guest_or_skip(test, BusyVcpus::start(&vm, OWN_SLOT, 1, Work::Spin)) else {
        return;
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pauses = || {
            while !stop.load(Ordering::Relaxed) {
                busy.pause().unwrap();
                busy.resume();
            }
        };
        scope.spawn(pauses);
        for _ in 0..500 {
            busy.pause().unwrap();
            let paused = busy.progress();
            std::thread::yield_now();
            assert_eq!(busy.progress(), paused);
            busy.resume();
        }
        stop.store(true, Ordering::Relaxed);
    });
    busy.stop().unwrap();
}

/// A guest that can't go on is reported, and does not block the gate.
#[test]
fn a_dead_guest_is_reported() {
    let test = "a_dead_guest_is_reported";
    let Some(vm) = vm_or_skip(test) else { return };
    // Memory of its own goes, not its code: what becomes of a guest that has
    // nothing to run is not the same on all KVMs.
    let memory = HostMemory::reserve(SMALL_PAGE, Pages::Small).unwrap();
    set_slot(&vm, 0, 0, SMALL_PAGE, &memory, 0);
    let work = Work::Touch { gpa: 0, bytes: SMALL_PAGE };
    let Some(busy) = guest_or_skip(test, BusyVcpus::start(&vm, OWN_SLOT, 1, work)) else {
        return;
    };
    busy.wait_for_progress(PATIENCE).unwrap();
    set_slot(&vm, 0, 0, 0, &memory, 0);
    let died = busy.wait_for_progress(PATIENCE).unwrap_err();
    assert!(!matches!(died, GuestError::Late { .. }), "{died}");
    busy.pause().unwrap();
    busy.resume();
    assert!(busy.stop().is_err());
}
