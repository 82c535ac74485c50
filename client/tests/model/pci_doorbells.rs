//! Doorbells of BARs move with them, and windows leave out what is to exit.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use crate::common::host::eventfd;
use kvm_memslots::backend::model::events::{Call, Fault};
use kvm_memslots::backend::model::memory;
use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::device::{Bus, Device, Doorbell};
use kvm_memslots::pci::{BarSpec, FunctionId, FunctionSpec, PciBars, PciError};
use kvm_memslots::{
    Access, Backing, Changes, Errno, HolePolicy, Limits, RegionSpec, Report, Vm, at,
};

const X: u64 = 0xe000_0000;
const Y: u64 = 0xe010_0000;
const BAR: u64 = 0x8000;
/// Where the doorbells of a BAR are, four of them.
const BELLS: u64 = 0x4000;

struct World {
    vm: Vm,
    memory: MemoryModel,
    events: EventModel,
    bars: PciBars,
}

/// A function with a window, and doorbells behind it.
struct Nic {
    id: FunctionId,
    hva: u64,
    fds: Vec<Arc<OwnedFd>>,
}

fn window(gpa: u64, size: u64, hva: u64) -> RegionSpec {
    // SAFETY: the model touches no memory.
    RegionSpec::ram(at(gpa, size), unsafe { Backing::borrowed(hva, size, Access::ReadWrite) })
}

impl World {
    fn new() -> Self {
        Self::with(Limits::x86())
    }

    fn with(limits: Limits) -> Self {
        let (memory, events) = (MemoryModel::new(limits), EventModel::new(Irqchip::Split));
        let builder = Vm::builder().holes(HolePolicy::NoVcpuRuns);
        let vm = builder.open_on(Arc::new(memory.clone()), Arc::new(events.clone())).unwrap();
        Self { vm, memory, events, bars: PciBars::new(40) }
    }

    fn nic(&mut self, n: u64) -> Nic {
        let hva = 0x7000_0000_0000 + n * 0x10_0000;
        let fds: Vec<_> = (0..4).map(|_| Arc::new(eventfd())).collect();
        let bar = BarSpec::memory32(BAR).window(window(0, 0x4000, hva));
        let bell = |bar: BarSpec, (n, fd): (u64, &Arc<OwnedFd>)| {
            bar.ioeventfd(BELLS + 4 * n, 4, None, Arc::clone(fd))
        };
        let bar = (0..).zip(&fds).fold(bar, bell);
        // Behind a 64-bit BAR, so that indices are no positions.
        let other = BarSpec::memory64(0x1000);
        let function = FunctionSpec::new().bar(0, other).bar(2, bar);
        Nic { id: self.bars.add(&self.vm, function).unwrap(), hva, fds }
    }

    fn note(&mut self, nic: &Nic, offset: u16, value: u64) {
        self.bars.note_write(nic.id, offset, &(value as u32).to_le_bytes()).unwrap();
    }

    fn write(&mut self, nic: &Nic, offset: u16, value: u64) -> Option<Report> {
        let data = (value as u32).to_le_bytes();
        self.bars.config_write(&self.vm, nic.id, offset, &data).unwrap()
    }

    /// Memory and doorbells are there, and the library knows.
    fn assert_at(&self, nic: &Nic, gpa: u64) {
        for (n, fd) in (0..).zip(&nic.fds) {
            let addr = gpa + BELLS + 4 * n;
            assert_eq!(self.events.guest_writes(Bus::Mmio, addr, 4, 9), Some(fd.as_raw_fd()));
        }
        assert_eq!(self.vm.region_at(0, gpa).unwrap().hva, nic.hva);
        let [(0, id)] = self.bars.regions(nic.id, Some(2))[..] else { panic!("one window") };
        assert_eq!(self.vm.region(id).unwrap().range.gpa(), gpa);
        assert!(self.bars.refusal(nic.id, Some(2)).is_none());
        self.assert_known();
    }

    fn assert_known(&self) {
        assert_eq!(self.vm.event_state().unwrap(), self.events.state());
        assert_eq!(self.vm.slots(0), self.memory.slots(0));
    }

    fn bells(&self) -> usize {
        self.events.state().ioeventfds().count()
    }
}

#[test]
fn a_bar_moves_with_its_doorbells() {
    let mut world = World::new();
    let nic = world.nic(0);
    world.write(&nic, 0x18, X);
    let on = world.write(&nic, 4, 2).unwrap();
    assert_eq!((on.ioctls, on.events.ioeventfd_calls), (1, 4));
    world.assert_at(&nic, X);
    let moved = world.write(&nic, 0x18, Y).unwrap();
    assert_eq!((moved.ioctls, moved.events.ioeventfd_calls, moved.waits()), (1, 8, 6));
    world.assert_at(&nic, Y);
    assert_eq!(world.bells(), 4);
    let off = world.write(&nic, 4, 0).unwrap();
    assert_eq!((off.calls(), world.bells()), (5, 0));
    world.write(&nic, 4, 2).unwrap();
    world.assert_at(&nic, Y);
    world.bars.remove(&world.vm, nic.id).unwrap().unwrap();
    assert_eq!((world.bells(), world.vm.devices().len()), (0, 0));
    assert!(nic.fds.iter().all(|fd| Arc::strong_count(fd) == 1));
}

/// The guest moves a BAR, which fails and can't be undone, and back: nothing is to
/// change, but for what is missing.
#[test]
fn what_could_not_be_undone_comes_right_where_nothing_is_to_change() {
    let mut world = World::new();
    let nic = world.nic(0);
    world.note(&nic, 0x18, X);
    world.write(&nic, 4, 2).unwrap();
    world.memory.inject(memory::Fault::nth(1, Errno::ENOMEM));
    world.events.inject(Fault::nth(1, Errno::ENOMEM).only(Call::AssignIoeventfd));
    let moved = world.bars.config_write(&world.vm, nic.id, 0x18, &(Y as u32).to_le_bytes());
    moved.unwrap_err();
    assert_eq!(world.bells(), 3, "what can be undone is");
    let back = world.write(&nic, 0x18, X).unwrap();
    assert_eq!((back.calls(), world.bells()), (1, 4));
    world.assert_at(&nic, X);
    assert!(world.bars.sync(&world.vm).unwrap().is_none());
}

#[test]
fn bars_with_doorbells_swap_places_in_one_set_and_one_by_one() {
    let mut world = World::new();
    let nics = [world.nic(0), world.nic(1)];
    for (nic, gpa) in nics.iter().zip([X, Y]) {
        world.write(nic, 0x18, gpa);
        world.write(nic, 4, 2);
    }
    world.note(&nics[0], 0x18, Y);
    world.note(&nics[1], 0x18, X);
    let swapped = world.bars.sync(&world.vm).unwrap().unwrap();
    assert_eq!(swapped.events.ioeventfd_calls, 16);
    world.assert_at(&nics[0], Y);
    world.assert_at(&nics[1], X);

    // The guest can write one register at a time: for a while both are in one
    // place, and the first function has it.
    world.write(&nics[0], 0x18, X);
    world.assert_at(&nics[0], X);
    assert_eq!((world.bells(), world.bars.regions(nics[1].id, Some(2)).len()), (4, 0));
    let refusal = world.bars.refusal(nics[1].id, Some(2));
    assert!(matches!(refusal, Some(PciError::Taken)), "{refusal:?}");
    world.write(&nics[1], 0x18, Y);
    world.assert_at(&nics[0], X);
    world.assert_at(&nics[1], Y);
}

#[test]
fn doorbells_are_kept_while_nobody_else_is_there() {
    let mut world = World::new();
    world.bars = PciBars::new(40).keep_ioeventfds();
    let nics = [world.nic(0), world.nic(1)];
    world.write(&nics[0], 0x18, X);
    world.write(&nics[0], 4, 2);
    for _ in 0..2 {
        let off = world.write(&nics[0], 4, 0).unwrap();
        let on = world.write(&nics[0], 4, 2).unwrap();
        assert_eq!((off.calls(), off.waits(), on.calls(), on.waits()), (1, 2, 1, 1));
        world.assert_at(&nics[0], X);
    }
    // Elsewhere is elsewhere.
    world.write(&nics[0], 4, 0).unwrap();
    world.write(&nics[0], 0x18, Y);
    world.write(&nics[0], 4, 2).unwrap();
    world.assert_at(&nics[0], Y);
    assert_eq!(world.bells(), 4);
    // Another one's doorbells are to be there; or its memory.
    for place in [Y, Y + BELLS] {
        world.write(&nics[0], 4, 0).unwrap();
        assert_eq!(world.bells(), 4);
        let other = world.nic(2);
        world.bars.note_write(other.id, 0x18, &(place as u32).to_le_bytes()).unwrap();
        world.bars.config_write(&world.vm, other.id, 4, &[2]).unwrap();
        if place % BAR == 0 {
            world.assert_at(&other, place);
        }
        let rings = world.events.guest_writes(Bus::Mmio, Y + BELLS, 4, 1);
        assert!(nics[0].fds.iter().all(|fd| rings != Some(fd.as_raw_fd())));
        world.bars.remove(&world.vm, other.id).unwrap();
        world.write(&nics[0], 4, 2).unwrap();
        world.assert_at(&nics[0], Y);
    }
    // And a reset, and whoever asks.
    world.write(&nics[0], 4, 0).unwrap();
    world.bars.reset(&world.vm, nics[0].id).unwrap().unwrap();
    assert_eq!(world.bells(), 0);
    world.write(&nics[0], 0x18, X);
    world.write(&nics[0], 4, 2);
    world.write(&nics[0], 4, 0);
    assert_eq!(world.bells(), 4);
    world.bars.sync(&world.vm).unwrap().unwrap();
    assert_eq!(world.bells(), 0);
    world.assert_known();
}

#[test]
fn doorbells_can_be_left_to_later() {
    let mut world = World::new();
    world.bars = PciBars::new(40).defer_ioeventfds();
    let nics = [world.nic(0), world.nic(1)];
    for (nic, gpa) in nics.iter().zip([X, Y]) {
        world.write(nic, 0x18, gpa);
        assert_eq!(world.write(nic, 4, 2).unwrap().calls(), 1);
    }
    let mut c = Changes::new();
    c.assign_deferred();
    assert_eq!(world.vm.apply(c).unwrap().events.ioeventfd_calls, 8);
    world.assert_at(&nics[0], X);
    world.assert_at(&nics[1], Y);
}

#[test]
fn a_doorbell_that_is_refused_is_that_bars_trouble() {
    let mut world = World::new();
    let nics = [world.nic(0), world.nic(1)];
    world.write(&nics[0], 0x18, X);
    // KVM's bus is full.
    world.events.inject(Fault::nth(2, Errno::ENOSPC).only(Call::AssignIoeventfd));
    world.write(&nics[0], 4, 2).unwrap();
    let refusal = world.bars.refusal(nics[0].id, Some(2)).unwrap();
    assert_eq!(refusal.errno(), Errno::ENOSPC, "{refusal}");
    assert_eq!((world.bells(), world.bars.regions(nics[0].id, Some(2)).len()), (3, 1));
    world.write(&nics[1], 0x18, Y);
    world.write(&nics[1], 4, 2).unwrap();
    world.assert_at(&nics[1], Y);
    world.bars.sync(&world.vm).unwrap().unwrap();
    world.assert_at(&nics[0], X);

    // On top of a doorbell of a device that is no function.
    let taken = Y + 0x10_0000;
    let mut c = Changes::new();
    let bell = Doorbell::at(Bus::Mmio, taken + BELLS + 8).len(4);
    let device = c.attach(Device::new("other").ioeventfd(bell, eventfd()));
    world.vm.apply(c).unwrap();
    world.write(&nics[1], 0x18, taken).unwrap();
    let refusal = world.bars.refusal(nics[1].id, Some(2)).unwrap();
    assert_eq!(refusal.errno(), Errno::EEXIST, "{refusal}");
    assert!(refusal.to_string().contains("other"), "{refusal}");
    world.assert_known();
    let mut c = Changes::new();
    c.detach(device);
    world.vm.apply(c).unwrap();
    world.bars.sync(&world.vm).unwrap().unwrap();
    world.assert_at(&nics[1], taken);

    // That there is no memory is nobody's mistake.
    world.events.inject(Fault::nth(1, Errno::ENOMEM).only(Call::AssignIoeventfd));
    let data = (X as u32 + 0x80_0000).to_le_bytes();
    let moved = world.bars.config_write(&world.vm, nics[0].id, 0x18, &data);
    let Err(PciError::Vm(error)) = moved else { panic!("{moved:?}") };
    assert_eq!(error.errno(), Errno::ENOMEM);
    world.assert_known();
    world.bars.sync(&world.vm).unwrap().unwrap();
    world.assert_at(&nics[0], X + 0x80_0000);
}

#[test]
fn windows_are_cut_around_what_is_to_exit() {
    // Page size, and what is left of a BAR of 128 KiB: an MSI-X table at 0x5000
    // and an array of pending bits at 0x1_1800.
    let cases: [(u64, &[(u64, u64)]); 3] = [
        (0x1000, &[(0, 0x5000), (0x6000, 0xb000), (0x1_2000, 0xe000)]),
        (0x4000, &[(0, 0x4000), (0x8000, 0x8000), (0x1_4000, 0xc000)]),
        (0x1_0000, &[]),
    ];
    for (page_size, expected) in cases {
        let mut limits = Limits::x86();
        limits.page_size = page_size;
        let mut world = World::with(limits);
        let hva = 0x7000_0000_0000;
        let bar = BarSpec::memory32(0x2_0000)
            .window(window(0, 0x2_0000, hva))
            .exits(0x5000, 0x800)
            .exits(0x1_1800, 8);
        let nic = world.bars.add(&world.vm, FunctionSpec::new().bar(3, bar)).unwrap();
        world.bars.note_write(nic, 0x1c, &(X as u32).to_le_bytes()).unwrap();
        world.bars.config_write(&world.vm, nic, 4, &[2]).unwrap();
        let mapped: Vec<_> = world
            .vm
            .regions()
            .iter()
            .map(|region| (region.range.gpa() - X, region.range.size(), region.hva - hva))
            .collect();
        let expected: Vec<_> = expected.iter().map(|(at, size)| (*at, *size, *at)).collect();
        assert_eq!(mapped, expected, "{page_size:#x}");
        assert_eq!(world.bars.regions(nic, Some(3)).len(), expected.len());
    }
    // Nothing is cut that nobody asked for, and what lies outside is refused.
    let mut world = World::new();
    let outside = BarSpec::memory32(0x1000).exits(0xfff, 2);
    assert!(world.bars.add(&world.vm, FunctionSpec::new().bar(0, outside)).is_err());
    let outside = BarSpec::memory32(0x1000).ioeventfd(0xffd, 4, None, eventfd());
    assert!(world.bars.add(&world.vm, FunctionSpec::new().bar(0, outside)).is_err());
}

/// Two doorbells for the same writes are the VMM's mistake, wherever the guest puts
/// them.
#[test]
fn doorbells_of_a_bar_that_overlap_are_refused_before_there_is_a_guest() {
    type Bell = (u64, u32, Option<u64>);
    let mut world = World::new();
    let mut add = |bells: &[Bell]| {
        let bell = |bar: BarSpec, (offset, len, value): &Bell| {
            bar.ioeventfd(*offset, *len, *value, eventfd())
        };
        let bar = bells.iter().fold(BarSpec::memory32(0x1000), bell);
        world.bars.add(&world.vm, FunctionSpec::new().bar(0, bar))
    };
    let overlap: [(&[Bell], u64); 8] = [
        (&[(0, 8, None), (4, 4, None)], 4),
        (&[(4, 4, None), (0, 8, Some(1))], 4),
        (&[(0, 1, None), (0, 4, None), (2, 0, None)], 2),
        (&[(0x20, 4, None), (8, 4, None), (10, 4, None)], 10),
        (&[(8, 4, None), (8, 4, None)], 8),
        (&[(8, 4, Some(1)), (8, 4, None), (8, 4, Some(2))], 8),
        (&[(8, 2, Some(1)), (8, 2, Some(2)), (8, 2, Some(1))], 8),
        (&[(8, 4, Some(1)), (8, 2, None), (8, 0, None)], 8),
    ];
    for (bells, at) in overlap {
        let error = add(bells).unwrap_err();
        let told = matches!(error, PciError::DoorbellsOverlap { offset } if offset == at);
        assert!(told, "{bells:?}: {error}");
        assert_eq!(error.errno(), Errno::EINVAL);
    }
    let apart: [&[Bell]; 4] = [
        &[(0, 4, None), (4, 4, None), (8, 0, None), (9, 1, None)],
        &[(8, 2, Some(1)), (8, 2, Some(2)), (8, 2, Some(0))],
        &[(8, 2, None), (8, 4, None), (8, 8, Some(3))],
        &[],
    ];
    for bells in apart {
        add(bells).unwrap();
    }
}

/// Of two BARs in one place the later one's doorbells are not there: it says so,
/// for as long as the other one is there.
#[test]
fn a_doorbell_on_top_of_another_bar_is_told() {
    let mut world = World::new();
    let mut add = |offset| {
        let bar = BarSpec::memory32(16).ioeventfd(offset, 8, None, eventfd());
        world.bars.add(&world.vm, FunctionSpec::new().bar(0, bar)).unwrap()
    };
    let ids = [add(0), add(4)];
    for id in ids {
        world.bars.note_write(id, 0x10, &(X as u32).to_le_bytes()).unwrap();
        world.bars.config_write(&world.vm, id, 4, &[2]).unwrap();
    }
    assert_eq!(world.bells(), 1);
    assert!(world.bars.refusal(ids[0], Some(0)).is_none());
    let refusal = world.bars.refusal(ids[1], Some(0)).unwrap();
    assert!(matches!(refusal, PciError::Taken), "{refusal}");
    assert_eq!(refusal.errno(), Errno::EEXIST);
    world.bars.config_write(&world.vm, ids[0], 0x10, &(Y as u32).to_le_bytes()).unwrap();
    assert_eq!(world.bells(), 2);
    assert!(ids.iter().all(|id| world.bars.refusal(*id, Some(0)).is_none()));
}

/// Doorbells at one address are as long as the longest of them; each is there that
/// has room.
#[test]
fn doorbells_at_one_address_take_the_room_of_the_longest() {
    for first in [0, 1] {
        let mut world = World::new();
        let pair = BarSpec::memory32(0x1000).ioeventfd(0, 2, None, eventfd());
        let pair = pair.ioeventfd(0, 8, Some(1), eventfd());
        let behind = BarSpec::memory32(16).ioeventfd(4, 4, None, eventfd());
        let mut bars = [pair, behind];
        bars.rotate_left(first);
        let ids = bars.map(|bar| {
            let id = world.bars.add(&world.vm, FunctionSpec::new().bar(0, bar)).unwrap();
            world.bars.note_write(id, 0x10, &(X as u32).to_le_bytes()).unwrap();
            world.bars.config_write(&world.vm, id, 4, &[2]).unwrap();
            id
        });
        assert_eq!(world.bells(), 2);
        assert!(world.bars.refusal(ids[0], Some(0)).is_none());
        let refusal = world.bars.refusal(ids[1], Some(0));
        assert!(matches!(refusal, Some(PciError::Taken)), "{refusal:?}");
        world.bars.config_write(&world.vm, ids[0], 0x10, &(Y as u32).to_le_bytes()).unwrap();
        assert_eq!(world.bells(), 3);
        assert!(world.bars.refusal(ids[1], Some(0)).is_none());
    }
}

/// Doorbells are kept for a BAR that is nowhere, not for one that is elsewhere and has
/// none there.
#[test]
fn doorbells_are_not_kept_where_their_bar_is_no_more() {
    let mut world = World::new();
    world.bars = PciBars::new(40).keep_ioeventfds();
    let nic = world.nic(0);
    world.write(&nic, 0x18, X);
    world.write(&nic, 4, 2);
    let mut c = Changes::new();
    c.map(window(Y + BELLS, 0x1000, 0x7100_0000_0000));
    world.vm.apply(c).unwrap();
    world.write(&nic, 0x18, Y).unwrap();
    assert_eq!(world.bells(), 0);
    assert!(matches!(world.bars.refusal(nic.id, Some(2)), Some(PciError::Taken)));
}
