//! Devices whose memory is in a window, attached, moved and detached in sets of
//! changes while a guest looks, on real KVM.
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::windowed::{self, PAGES, Rig, gpa};
use common::{Random, Stops};
use kvm_ioctls::{IoEventAddress, NoDatamatch};
use kvm_memslots::backend::{EventCalls, EventModel, EventOp, Irqchip, MemoryModel};
use kvm_memslots::device::{Bus, Device, DeviceId, Doorbell, Ioeventfd};
use kvm_memslots::window::{CheckedFile, Gap, Window, WindowPart};
use kvm_memslots::{Changes, Error, ErrorKind, Limits, RegionId, Vm};
use kvm_memslots_kit::guest::{Access, Outcome};
use kvm_memslots_kit::host::SMALL_PAGE;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const DOORBELL: u64 = 0xd000_0000;

impl Rig {
    fn checked(&self) -> CheckedFile {
        CheckedFile::new(self.file.try_clone().unwrap()).unwrap()
    }

    /// Device `n`: page `n` of the file, at a page of the window.
    fn device(&self, n: u64, page: u64) -> (Device, RegionId) {
        let (id, offset) = (RegionId::new(), page * SMALL_PAGE);
        let file = self.checked();
        let part = WindowPart::new(&self.window, offset, SMALL_PAGE, &file, n * SMALL_PAGE);
        (Device::new(format!("dev{n}")).in_window(id, part), id)
    }

    fn attach(&self, n: u64, page: u64) -> (DeviceId, RegionId) {
        let (device, region) = self.device(n, page);
        let mut c = Changes::new();
        let id = c.attach(device);
        let report = self.vm.apply(c).unwrap();
        assert_eq!(report.calls(), 0, "no call of KVM's");
        (id, region)
    }

    fn read(&mut self) -> [u64; PAGES as usize] {
        let reads: Vec<_> = (0..PAGES).map(|page| Access::Read(gpa(page))).collect();
        let found = self.prober.probe(&reads).unwrap();
        std::array::from_fn(|page| match found[page] {
            Outcome::Value(value) => value,
            other => panic!("page {page}: {other:?}"),
        })
    }
}

/// Zeroes, but for these pages.
fn only(pages: &[(usize, u64)]) -> [u64; PAGES as usize] {
    let mut all = [0; PAGES as usize];
    for (page, value) in pages {
        all[*page] = *value;
    }
    all
}

#[test]
fn it_is_there_while_the_device_is_attached() {
    let test = "it_is_there_while_the_device_is_attached";
    let Some(mut rig) = Rig::new(test, Gap::Zeroes) else { return };
    let [(one, _), (two, moving)] = [(2, 3), (4, 5)].map(|(n, page)| rig.attach(n, page));
    assert_eq!(rig.read(), only(&[(3, 3), (5, 5)]));
    for page in [9, 0, 15] {
        let mut c = Changes::new();
        c.move_in_window(moving, page * SMALL_PAGE);
        rig.vm.apply(c).unwrap();
        assert_eq!(rig.read(), only(&[(3, 3), (page as usize, 5)]));
    }
    // Its place is another's in the same set.
    let mut c = Changes::new();
    c.detach(one);
    let (three, _) = rig.device(7, 3);
    c.attach(three);
    rig.vm.apply(c).unwrap();
    assert_eq!(rig.read(), only(&[(3, 8), (15, 5)]));
    let mut c = Changes::new();
    c.detach(two);
    rig.vm.apply(c).unwrap();
    assert_eq!(rig.read(), only(&[(3, 8)]));
    rig.vm.close().unwrap();
    assert!(rig.window.placed().is_empty());
}

/// KVM refuses the doorbell of a device, which comes behind all memory: there is
/// one that the library knows nothing of.
#[test]
fn what_kvm_refuses_is_not_there_for_the_guest_either() {
    let test = "what_kvm_refuses_is_not_there_for_the_guest_either";
    let Some(mut rig) = Rig::new(test, Gap::Zeroes) else { return };
    let bell = || EventFd::new(EFD_NONBLOCK).unwrap();
    let (hidden, own) = (bell(), IoEventAddress::Mmio(DOORBELL));
    rig.fd.register_ioevent(&hidden, &own, NoDatamatch).unwrap();
    let [(one, first), (_, second)] = [(2, 3), (4, 5)].map(|(n, page)| rig.attach(n, page));
    let before = (rig.read(), rig.window.placed());
    assert_eq!(before.0, only(&[(3, 3), (5, 5)]));
    let sets: [&dyn Fn(&mut Changes); 4] = [
        &|_| {},
        &|c| {
            c.move_in_window(first, 5 * SMALL_PAGE);
            c.move_in_window(second, 3 * SMALL_PAGE);
        },
        &|c| c.move_in_window(second, 11 * SMALL_PAGE),
        &|c| c.detach(one),
    ];
    for (number, changes) in sets.into_iter().enumerate() {
        let set = |addr| {
            let mut c = Changes::new();
            changes(&mut c);
            let (device, _) = rig.device(7, 8);
            c.attach(device.ioeventfd(Doorbell::at(Bus::Mmio, addr), bell()));
            c
        };
        let error: Error = rig.vm.apply(set(DOORBELL)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::EventRefused { .. }), "{error}");
        assert_eq!(error.device(), Some("dev7"), "{error}");
        assert_eq!((rig.read(), rig.window.placed()), before, "set {number}");
    }
    rig.fd.unregister_ioevent(&hidden, &own, NoDatamatch).unwrap();
    let mut c = Changes::new();
    let (device, _) = rig.device(7, 8);
    c.attach(device.ioeventfd(Doorbell::at(Bus::Mmio, DOORBELL), bell()));
    c.detach(one);
    rig.vm.apply(c).unwrap();
    assert_eq!(rig.read(), only(&[(5, 5), (8, 8)]));
    assert!(hidden.as_raw_fd() >= 0);
}

/// The vCPU finds either device's memory in either place at any time, never
/// nothing, and never the old one once a swap is over.
#[test]
fn two_swap_their_places_under_a_guest_that_looks() {
    let test = "two_swap_their_places_under_a_guest_that_looks";
    let Some(rig) = Rig::new(test, Gap::Fault) else { return };
    let [(_, one), (_, two)] = [(0, 2), (1, 9)].map(|(n, page)| rig.attach(n, page));
    let Rig { mut prober, vm, window, fd, .. } = rig;
    let (begun, done, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let mut judged = 0_u64;
    std::thread::scope(|scope| {
        let swaps = scope.spawn(|| {
            let _stops = Stops(&stop);
            for round in 1..=1_000_u64 {
                let places = if round % 2 == 0 { [2, 9] } else { [9, 2] };
                begun.store(round, Ordering::SeqCst);
                let mut c = Changes::new();
                c.move_in_window(one, places[0] * SMALL_PAGE);
                c.move_in_window(two, places[1] * SMALL_PAGE);
                vm.apply(c).unwrap();
                done.store(round, Ordering::SeqCst);
                if round % 8 == 0 {
                    std::thread::sleep(std::time::Duration::from_micros(500));
                }
            }
        });
        // Once more behind the last swap: a busy machine may leave no other calm look.
        let mut is_last = false;
        while !std::mem::replace(&mut is_last, stop.load(Ordering::Relaxed)) {
            let before = done.load(Ordering::SeqCst);
            let found = prober.probe(&[Access::Read(gpa(2)), Access::Read(gpa(9))]).unwrap();
            let calm = begun.load(Ordering::SeqCst) == before;
            for (place, found) in found.into_iter().enumerate() {
                let Outcome::Value(value @ 1..=2) = found else { panic!("{found:?}") };
                if calm {
                    let expected = (before + place as u64) % 2 + 1;
                    assert_eq!(value, expected, "round {before}, place {place}");
                    judged += 1;
                }
            }
        }
        swaps.join().unwrap();
    });
    assert!(judged > 0, "no look between two swaps");
    assert_eq!(window.placed().len(), 2);
    drop(fd);
}

/// What is done to devices, by their number.
#[derive(Debug)]
enum Op {
    /// Parts of these pages of the window, so many, from these of the file on; and a
    /// doorbell.
    Attach(usize, Vec<(RegionId, u64, u64, u64)>, u64),
    Detach(usize),
    Move(RegionId, u64),
}

/// Doorbells that devices ask for; KVM has the last one, unknown to the library.
const BELLS: u64 = 6;

fn ops(random: &mut Random, devices: &mut usize, parts: &mut Vec<RegionId>) -> Vec<Op> {
    let mut one = |random: &mut Random| match random.below(4) {
        0 | 1 => {
            let mut part = |random: &mut Random| {
                parts.push(RegionId::new());
                let pages = 1 + random.below(3);
                let from = random.below(PAGES + 1 - pages);
                (parts[parts.len() - 1], random.below(PAGES), pages, from)
            };
            let count = 1 + random.below(2);
            let parts = (0..count).map(|_| part(random)).collect();
            *devices += 1;
            Op::Attach(*devices - 1, parts, random.below(BELLS))
        }
        2 if *devices > 0 => Op::Detach(random.below(*devices as u64) as usize),
        _ if !parts.is_empty() => {
            // Mostly one that there may be still.
            let last = random.below((parts.len() as u64).min(12)) as usize;
            Op::Move(parts[parts.len() - 1 - last], random.below(PAGES) * SMALL_PAGE)
        }
        _ => Op::Move(RegionId::new(), 0),
    };
    (0..=random.below(4)).map(|_| one(random)).collect()
}

/// A VM, and the names that it has for devices.
struct Side<'v> {
    vm: &'v Vm,
    window: &'v Window,
    ids: BTreeMap<usize, DeviceId>,
}

impl Side<'_> {
    fn apply(&mut self, ops: &[Op], file: &CheckedFile, event: &Arc<EventFd>) -> Result<(), Error> {
        let mut c = Changes::new();
        for op in ops {
            match op {
                Op::Attach(n, parts, bell) => {
                    let bell = Doorbell::at(Bus::Mmio, DOORBELL + bell * 8).len(4);
                    let device = Device::new(format!("dev{n}")).ioeventfd(bell, Arc::clone(event));
                    let device = parts.iter().fold(device, |device, (id, page, pages, from)| {
                        let [at, len, from] = [page, pages, from].map(|pages| pages * SMALL_PAGE);
                        device.in_window(*id, WindowPart::new(self.window, at, len, file, from))
                    });
                    self.ids.insert(*n, c.attach(device));
                }
                Op::Detach(n) => c.detach(self.ids[n]),
                Op::Move(part, offset) => c.move_in_window(*part, *offset),
            }
        }
        self.vm.apply(c).map(drop)
    }
}

/// Any sets of changes, of which some are refused by the library, by KVM or by the
/// host, come to the same on KVM and on its model; and what the guest reads is what
/// the model's window has.
#[test]
fn random_sets_come_to_what_they_come_to_on_the_model() {
    let test = "random_sets_come_to_what_they_come_to_on_the_model";
    let (mut done, mut refused) = (0, BTreeMap::new());
    for seed in 1..=8_u64 {
        let Some(mut rig) = Rig::new(test, Gap::Zeroes) else { return };
        let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let hidden = EventFd::new(EFD_NONBLOCK).unwrap();
        let addr = DOORBELL + (BELLS - 1) * 8;
        rig.fd.register_ioevent(&hidden, &IoEventAddress::Mmio(addr), NoDatamatch).unwrap();
        let events = EventModel::new(Irqchip::Split);
        let (bus, fd) = (Bus::Mmio, hidden.as_raw_fd());
        let by_hand = Ioeventfd { bus, addr, len: 0, datamatch: None, fd };
        events.change(&EventOp::Assign(by_hand.into())).unwrap();
        let memory = Arc::new(MemoryModel::new(Limits::x86()));
        let model = Vm::builder().open_on(memory, Arc::new(events)).unwrap();
        let (_, window) = windowed::window(&model, Gap::Zeroes);
        let file = rig.checked();
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed << 20));
        let (mut devices, mut parts) = (0, Vec::new());
        let mut real = Side { vm: &rig.vm, window: &rig.window, ids: BTreeMap::new() };
        let mut modelled = Side { vm: &model, window: &window, ids: BTreeMap::new() };
        for round in 0..60 {
            let ops = ops(&mut random, &mut devices, &mut parts);
            let outcomes = [&mut real, &mut modelled].map(|side| {
                side.apply(&ops, &file, &event).map_err(|error| {
                    let kind = std::mem::discriminant(error.kind());
                    (kind, error.errno(), error.change(), error.part())
                })
            });
            let what = format_args!("seed {seed}, round {round}: {ops:?}");
            assert_eq!(outcomes[0], outcomes[1], "{what}");
            match &outcomes[0] {
                Ok(()) => done += 1,
                Err((_, errno, ..)) => *refused.entry(errno.raw()).or_insert(0) += 1,
            }
            assert_eq!(rig.window.placed(), window.placed(), "{what}");
            let reads: Vec<_> = (0..PAGES).map(|page| Access::Read(gpa(page))).collect();
            let found = rig.prober.probe(&reads).unwrap();
            for (page, found) in (0..PAGES).zip(found) {
                let hva = window.backing().hva() + page * SMALL_PAGE;
                let word = std::ptr::with_exposed_provenance::<u64>(hva as usize);
                // SAFETY: gaps are zeroes, and nothing writes to the file.
                let word = unsafe { word.read_volatile() };
                assert_eq!(found, Outcome::Value(word), "page {page}, {what}");
            }
        }
    }
    // Some are done; the library refuses what has no room (EEXIST) or is not there
    // (ENOENT) or no page of the window (EINVAL).
    assert!(done > 20, "{done}");
    assert!(refused.len() >= 3 && refused.values().all(|count| *count > 2), "{refused:?}");
}
