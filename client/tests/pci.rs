//! After any config writes exactly the windows are mapped that the registers
//! say, and changes are only made where that changes something.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use kvm_memslots::backend::model::memory::Fault;
use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::deferred::{Deferral, Policy};
use kvm_memslots::pci::{BarSpec, Decoded, FunctionId, FunctionSpec, PciBars, PciError};
use kvm_memslots::{
    Access, Backing, Changes, Errno, ErrorKind, Executor, HolePolicy, HostMemory, Limits, MemFlags,
    RegionId, RegionSpec, Report, Vm, at,
};
use proptest::prelude::*;

const HVA: u64 = 0x7000_0000_0000;
const COMMAND: usize = 4;
const RAM: u64 = 0x10_0000;
const ADDRESS_BITS: u32 = 40;

/// A BAR of the functions under test.
#[derive(Debug, Clone, Copy)]
struct Shape {
    register: usize,
    is_64: bool,
    is_rom: bool,
    size: u64,
    /// Offset and length of its windows.
    windows: &'static [(u64, u64)],
}

const fn bar(register: usize, is_64: bool, size: u64, windows: &'static [(u64, u64)]) -> Shape {
    Shape { register, is_64, is_rom: false, size, windows }
}

const fn rom(register: usize, size: u64, windows: &'static [(u64, u64)]) -> Shape {
    Shape { register, is_64: false, is_rom: true, size, windows }
}

/// Two functions and a bridge.
const SHAPES: [&[Shape]; 3] = [
    &[
        bar(0x10, false, 0x4000, &[(0, 0x1000), (0x2000, 0x2000)]),
        bar(0x18, true, 0x1_0000, &[(0, 0x1_0000)]),
        rom(0x30, 0x1000, &[(0, 0x1000)]),
    ],
    &[
        bar(0x10, true, 0x4000, &[(0, 0x4000)]),
        bar(0x1c, false, 16, &[]),
        bar(0x20, false, 0x1000, &[(0, 0x1000)]),
    ],
    &[bar(0x10, false, 0x2000, &[(0x1000, 0x1000)]), rom(0x38, 0x2000, &[(0, 0x2000)])],
];

/// Host memory of a window: none follows another.
fn hva(function: usize, bar: usize, window: usize) -> u64 {
    HVA + ((function * 16 + bar * 4 + window) as u64) * 0x10_0000
}

fn ram(gpa: u64, size: u64, hva: u64) -> RegionSpec {
    // SAFETY: the model touches no memory.
    RegionSpec::ram(at(gpa, size), unsafe { Backing::borrowed(hva, size, Access::ReadWrite) })
}

fn spec(function: usize, deferrable: bool) -> FunctionSpec {
    let start = FunctionSpec::new();
    let start = if function == 2 { start.bridge() } else { start.bar(1, BarSpec::io(32)) };
    let add = |spec: FunctionSpec, (index, shape): (usize, &Shape)| {
        let new = match (shape.is_rom, shape.is_64) {
            (true, _) => BarSpec::rom(shape.size),
            (_, true) => BarSpec::memory64(shape.size),
            (_, false) => BarSpec::memory32(shape.size),
        };
        let windows = shape.windows.iter().enumerate();
        let new = windows.fold(new, |bar, (window, (offset, size))| {
            let host = hva(function, index, window);
            // KVM knows no kinds, and its model neither.
            let region = ram(*offset, *size, host);
            let region = if shape.is_rom { region.read_only() } else { region };
            let region = if deferrable { region.deferrable() } else { region };
            bar.window(region)
        });
        if shape.is_rom { spec.rom(new) } else { spec.bar((shape.register - 0x10) / 4, new) }
    };
    let shapes = SHAPES[function].iter().enumerate();
    // BAR 1 of the second function is the upper half of its first.
    let start = if function == 1 { FunctionSpec::new() } else { start };
    shapes.fold(start, add)
}

#[derive(Debug, Clone)]
enum Op {
    Write {
        function: usize,
        offset: usize,
        data: Vec<u8>,
    },
    Reset(usize),
    /// Maps or unmaps what is no BAR's, and looks again.
    Other,
}

fn op() -> impl Strategy<Value = Op> {
    let value = prop_oneof![
        3 => Just(u32::MAX),
        2 => Just(0),
        2 => Just(1),
        // In the way of each other, of RAM, of the other region, of 4 GiB.
        9 => prop::sample::select(vec![
            0x10_0000, 0x10_4000, 0x11_0001, 0x20_0000, 0x20_1001, 0x20_2000, 0xf_f000, 0x8001,
            0xffff_0000, 0xffff_8000, 0xffff_e001, 0xe000_0000,
        ]),
        1 => any::<u32>(),
    ];
    let bar =
        (0x10..0x40_usize, prop::sample::select(vec![1_usize, 2, 4]), prop::bool::weighted(0.8));
    let bar = (0..3_usize, bar, value).prop_map(|(function, (offset, length, whole), value)| {
        let (offset, length) = if whole { (offset / 4 * 4, 4) } else { (offset, length) };
        Op::Write { function, offset, data: value.to_le_bytes()[..length].to_vec() }
    });
    let command = (0..3_usize, any::<bool>(), 1..4_usize).prop_map(|(function, on, length)| {
        let data = [if on { 7 } else { 5 }, 0, 0, 0][..length].to_vec();
        Op::Write { function, offset: COMMAND, data }
    });
    prop_oneof![
        10 => bar,
        5 => command,
        1 => (0..3_usize).prop_map(Op::Reset),
        1 => Just(Op::Other),
    ]
}

/// A function as bytes, and where each BAR was before the last write.
#[derive(Debug, Clone)]
struct Naive {
    config: [u8; 64],
    bases: Vec<Option<u64>>,
}

impl Naive {
    fn new(shapes: &[Shape]) -> Self {
        Self { config: [0; 64], bases: vec![None; shapes.len()] }
    }

    fn dword(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.config[at..at + 4].try_into().unwrap())
    }

    fn write(&mut self, shapes: &[Shape], offset: usize, data: &[u8]) {
        for (at, byte) in data.iter().enumerate() {
            if let Some(there) = self.config.get_mut(offset + at) {
                *there = *byte;
            }
        }
        let bases = shapes.iter().zip(&self.bases).map(|(shape, before)| {
            let low = self.dword(shape.register);
            let high = if shape.is_64 { self.dword(shape.register + 4) } else { 0 };
            if self.config[COMMAND] & 2 == 0 {
                return None;
            }
            if low == u32::MAX || high == u32::MAX {
                return *before;
            }
            let address = (u64::from(high) << 32 | u64::from(low)) / shape.size * shape.size;
            let end = if shape.is_64 { 1 << ADDRESS_BITS } else { (1 << 32) - 1 };
            let fits =
                address != 0 && address.checked_add(shape.size).is_some_and(|last| last <= end);
            let enabled = !shape.is_rom || low & 1 != 0;
            (fits && enabled).then_some(address)
        });
        self.bases = bases.collect();
    }
}

type Mapped = Vec<(u64, u64, u64)>;

/// All windows that are somewhere, first come first served.
fn wanted(functions: &[Naive], others: &[(u64, u64)]) -> Mapped {
    let mut mapped = Mapped::new();
    for (function, (naive, shapes)) in functions.iter().zip(SHAPES).enumerate() {
        for (bar, (base, shape)) in naive.bases.iter().zip(shapes).enumerate() {
            for (window, (offset, size)) in shape.windows.iter().enumerate() {
                let Some(base) = base else { continue };
                let (from, to) = (base + offset, base + offset + size);
                let ours = mapped.iter().map(|(gpa, size, _)| (*gpa, *size));
                let mut all = ours.chain(others.iter().copied());
                if all.all(|(gpa, size)| to <= gpa || from >= gpa + size) {
                    mapped.push((from, *size, hva(function, bar, window)));
                }
            }
        }
    }
    mapped.sort_unstable();
    mapped
}

/// The windows that the VM has.
fn mapped(vm: &Vm) -> Mapped {
    let all = vm.regions().into_iter();
    let bars = all.filter(|region| region.hva >= HVA);
    bars.map(|region| (region.range.gpa(), region.range.size(), region.hva)).collect()
}

struct World {
    vm: Vm,
    model: MemoryModel,
    bars: PciBars,
    ids: Vec<FunctionId>,
    naive: Vec<Naive>,
    other: Option<RegionId>,
}

/// Where something else comes and goes.
const OTHER: (u64, u64) = (0x20_2000, 0x1000);

impl World {
    fn new(executor: Executor, deferrable: bool) -> Self {
        let builder = Vm::builder()
            .executor(executor)
            .deferral(Deferral::default().policy(Policy::Fixed { exits: 1 }))
            .holes(HolePolicy::NoVcpuRuns);
        let model = MemoryModel::new(Limits::x86().with_batch(64));
        let events = Arc::new(EventModel::new(Irqchip::Split));
        let vm = builder.open_on(Arc::new(model.clone()), events).unwrap();
        let mut c = Changes::new();
        c.map(ram(0, RAM, 0x1000_0000));
        vm.apply(c).unwrap();
        let mut bars = PciBars::new(ADDRESS_BITS);
        let add = |function| bars.add(&vm, spec(function, deferrable)).unwrap();
        let ids = (0..3).map(add).collect();
        let naive = SHAPES.map(Naive::new).to_vec();
        Self { vm, model, bars, ids, naive, other: None }
    }

    fn apply(&mut self, op: &Op) -> Result<Option<Report>, PciError> {
        match op {
            Op::Write { function, offset, data } => {
                self.naive[*function].write(SHAPES[*function], *offset, data);
                let id = self.ids[*function];
                self.bars.config_write(&self.vm, id, *offset as u16, data)
            }
            Op::Reset(function) => {
                self.naive[*function] = Naive::new(SHAPES[*function]);
                self.bars.reset(&self.vm, self.ids[*function])
            }
            Op::Other => {
                let mut c = Changes::new();
                if let Some(id) = self.other.take() {
                    c.unmap(id);
                    self.vm.apply(c).unwrap();
                } else {
                    let id = c.map(ram(OTHER.0, OTHER.1, 0x2000_0000));
                    match self.vm.apply(c) {
                        Ok(_) => self.other = Some(id),
                        Err(error) => {
                            assert!(matches!(error.kind(), ErrorKind::Overlap { .. }), "{error}");
                        }
                    }
                }
                self.bars.sync(&self.vm)
            }
        }
    }

    fn wanted(&self) -> Mapped {
        let mut others = vec![(0, RAM)];
        others.extend(self.other.map(|_| OTHER));
        wanted(&self.naive, &others)
    }
}

fn difference(from: &Mapped, of: &Mapped) -> usize {
    from.iter().filter(|window| !of.contains(window)).count()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn the_registers_say_what_is_mapped(ops in prop::collection::vec(op(), 1..60)) {
        for executor in [Executor::PerRegion, Executor::Batch] {
            let mut world = World::new(executor, false);
            for op in &ops {
                let (before, calls) = (mapped(&world.vm), world.model.counts().ioctls);
                let other = world.other;
                let report = world.apply(op).unwrap();
                let after = mapped(&world.vm);
                prop_assert_eq!(&after, &world.wanted(), "{:?}", op);
                // Changes exactly where something changed, and one call at most
                // for each window that went or came.
                prop_assert_eq!(report.is_some(), before != after, "{:?}", op);
                let calls = world.model.counts().ioctls - calls;
                let changes = difference(&before, &after) + difference(&after, &before);
                let most = if executor == Executor::Batch { usize::from(changes > 0) } else { changes };
                let allowed = most as u64 + u64::from(other != world.other);
                prop_assert!(calls <= allowed, "{:?}: {} calls for {} changes", op, calls, changes);
                let mut by_bar = 0;
                for (function, naive) in world.naive.iter().enumerate() {
                    for (bar, base) in naive.bases.iter().enumerate() {
                        let shape = SHAPES[function][bar];
                        let index = (!shape.is_rom).then_some((shape.register - 0x10) / 4);
                        prop_assert_eq!(world.bars.base(world.ids[function], index), *base);
                        for (window, id) in world.bars.regions(world.ids[function], index) {
                            let region = world.vm.region(id).unwrap();
                            prop_assert_eq!(region.hva, hva(function, bar, window));
                            by_bar += 1;
                        }
                    }
                }
                prop_assert_eq!(by_bar, after.len());
                prop_assert_eq!(world.vm.slots(0), world.model.slots(0));
            }
        }
    }

    /// No config write makes a call for windows that wait; one set makes them
    /// all.
    #[test]
    fn deferrable_bars_wait(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new(Executor::Batch, true);
        for op in ops.iter().filter(|op| !matches!(op, Op::Other)) {
            let calls = world.model.counts().ioctls;
            world.apply(op).unwrap();
            prop_assert_eq!(world.model.counts().ioctls, calls);
            prop_assert_eq!(mapped(&world.vm), world.wanted());
        }
        let waiting = mapped(&world.vm).len();
        let report = world.vm.promote().unwrap();
        prop_assert_eq!(report.map(|report| report.ioctls), (waiting > 0).then_some(1));
        prop_assert_eq!(world.model.slots(0).len(), 1 + waiting);
    }
}

/// Sizes and places the BARs as Linux does: decoding off meanwhile.
fn write(world: &mut World, function: usize, offset: usize, value: u32) -> Option<Report> {
    let data = value.to_le_bytes().to_vec();
    world.apply(&Op::Write { function, offset, data }).unwrap()
}

#[test]
fn a_boot_costs_a_set_for_each_function() {
    let mut world = World::new(Executor::PerRegion, false);
    for (function, register, address) in
        [(0, 0x10, 0xe000_0000), (0, 0x18, 0xe001_0000), (1, 0x10, 0xe002_0000)]
    {
        assert!(write(&mut world, function, register, u32::MAX).is_none());
        assert!(write(&mut world, function, register, address).is_none());
    }
    assert_eq!(write(&mut world, 0, COMMAND, 2).map(|report| report.ioctls), Some(3));
    assert_eq!(write(&mut world, 1, COMMAND, 2).map(|report| report.ioctls), Some(1));
    // Bus mastering, interrupts: no memory.
    assert!(write(&mut world, 1, COMMAND, 0x406).is_none());
    // Asked once more, with decoding on.
    assert!(write(&mut world, 0, 0x10, u32::MAX).is_none());
    assert!(write(&mut world, 0, 0x10, 0xe000_0000).is_none());
    // One BAR moves.
    let moved = write(&mut world, 0, 0x18, 0xe003_0000).unwrap();
    assert_eq!((moved.ioctls, moved.grace_periods), (1, 2));
    let hit = world.bars.decode(0xe003_1234).unwrap();
    assert_eq!(hit, (world.ids[0], Decoded { bar: Some(2), offset: 0x1234 }));
    assert_eq!(write(&mut world, 0, COMMAND, 0).map(|report| report.ioctls), Some(3));
}

#[test]
fn what_the_vmm_restores_is_one_set() {
    let mut world = World::new(Executor::PerRegion, false);
    for function in 0..2 {
        let id = world.ids[function];
        let base = 0xe000_0000 + 0x10_0000 * function as u32;
        world.bars.note_write(id, 0x10, &base.to_le_bytes()).unwrap();
        world.bars.note_write(id, 4, &[2]).unwrap();
    }
    assert!(mapped(&world.vm).is_empty());
    assert!(world.bars.sync(&world.vm).unwrap().is_some());
    assert_eq!(mapped(&world.vm).len(), 3);
    assert!(world.bars.sync(&world.vm).unwrap().is_none());
    world.bars.remove(&world.vm, world.ids[0]).unwrap().unwrap();
    let gone = world.bars.config_write(&world.vm, world.ids[0], 4, &[2]);
    assert!(matches!(gone, Err(PciError::UnknownFunction(_))));
    assert_eq!(mapped(&world.vm).len(), 1);
}

/// That KVM is out of memory is no mistake of the guest's, and passes.
#[test]
fn changes_that_failed_are_made_up_for() {
    for executor in [Executor::PerRegion, Executor::Batch] {
        let mut world = World::new(executor, false);
        write(&mut world, 1, 0x10, 0xe000_0000);
        world.model.inject(Fault::nth(1, Errno::ENOMEM));
        let op = Op::Write { function: 1, offset: COMMAND, data: vec![2] };
        let Err(PciError::Vm(error)) = world.apply(&op) else { panic!("{executor:?}") };
        assert_eq!(error.errno(), Errno::ENOMEM, "{error}");
        assert!(mapped(&world.vm).is_empty());
        // Any write makes up for it.
        assert!(write(&mut world, 0, COMMAND, 0).is_some());
        assert_eq!(mapped(&world.vm), world.wanted());
    }
}

/// What an address is refused with is the guest's mistake: it goes on.
#[test]
fn an_address_that_kvm_refuses_is_the_guests_mistake() {
    for errno in [Errno::EINVAL, Errno::EEXIST, Errno::EFAULT] {
        let mut world = World::new(Executor::PerRegion, false);
        write(&mut world, 1, 0x10, 0xe000_0000);
        (1..=2).for_each(|nth| world.model.inject(Fault::nth(nth, errno)));
        let op = Op::Write { function: 1, offset: COMMAND, data: vec![2] };
        world.apply(&op).unwrap();
        let refusal = world.bars.refusal(world.ids[1], Some(0)).unwrap();
        assert_eq!(refusal.errno(), errno, "{refusal}");
        assert!(mapped(&world.vm).is_empty());
    }
}

/// A window that KVM refuses is that BAR's trouble: all others are followed.
#[test]
fn a_bar_that_kvm_refuses_stops_nobody_else() {
    for executor in [Executor::PerRegion, Executor::Batch] {
        let mut world = World::new(executor, false);
        let id = |world: &World, function: usize| world.ids[function];
        write(&mut world, 0, 0x10, 0xe000_0000);
        write(&mut world, 1, 0x10, 0xe002_0000);
        // KVM has no such addresses, and the VMM has not said so.
        let mut bars = std::mem::replace(&mut world.bars, PciBars::new(64));
        for function in 0..2 {
            bars.remove(&world.vm, id(&world, function)).unwrap();
            world.ids[function] = world.bars.add(&world.vm, spec(function, false)).unwrap();
        }
        let beyond: u64 = 1 << 60;
        let note = |world: &mut World, function: usize, offset, value: u32| {
            let id = world.ids[function];
            world.bars.note_write(id, offset, &value.to_le_bytes()).unwrap();
        };
        note(&mut world, 0, 0x10, 0xe000_0000);
        note(&mut world, 0, 0x18, 0);
        note(&mut world, 0, 0x1c, (beyond >> 32) as u32);
        note(&mut world, 0, 4, 2);
        note(&mut world, 1, 0x10, 0xe002_0000);
        note(&mut world, 1, 4, 2);
        world.bars.sync(&world.vm).unwrap().unwrap();
        let there: Vec<u64> = mapped(&world.vm).iter().map(|(gpa, ..)| *gpa).collect();
        assert_eq!(there, [0xe000_0000, 0xe000_2000, 0xe002_0000]);
        let refusal = world.bars.refusal(id(&world, 0), Some(2)).unwrap();
        let PciError::Vm(refusal) = refusal else { panic!("{refusal}") };
        assert!(matches!(refusal.kind(), ErrorKind::Refused { .. }), "{refusal}");
        assert_eq!(refusal.region().unwrap().gpa, beyond);
        assert_eq!(world.bars.base(id(&world, 0), Some(2)), Some(beyond), "it decodes there");
        for (function, bar) in [(0, 0), (1, 0)] {
            assert!(world.bars.refusal(id(&world, function), Some(bar)).is_none());
        }
        // Others move on as if it were not there.
        let moved = 0xe004_0000_u32.to_le_bytes();
        let other = id(&world, 1);
        assert!(world.bars.config_write(&world.vm, other, 0x10, &moved).unwrap().is_some());
        assert!(world.vm.region_at(0, 0xe004_0000).is_some());
        // And it comes right by itself when the guest moves it.
        let gpu = id(&world, 0);
        world.bars.note_write(gpu, 0x18, &0xe008_0000_u32.to_le_bytes()).unwrap();
        world.bars.config_write(&world.vm, gpu, 0x1c, &[0; 4]).unwrap().unwrap();
        assert!(world.bars.refusal(gpu, Some(2)).is_none());
        assert!(world.vm.region_at(0, 0xe008_0000).is_some());
        assert_eq!(world.vm.slots(0), world.model.slots(0));
    }
}

struct Memory;

// SAFETY: nothing is mapped for real.
unsafe impl HostMemory for Memory {
    fn range(&self) -> (u64, u64) {
        (HVA, 0x2000)
    }
}

#[test]
fn what_could_not_be_mapped_is_refused_when_it_is_added() {
    let world = World::new(Executor::PerRegion, false);
    let mut bars = PciBars::new(ADDRESS_BITS);
    let memory = |size| BarSpec::memory32(size);
    let owned = |offset, length| {
        RegionSpec::device(at(offset, length), Backing::owned(Arc::new(Memory), 0))
    };
    let window = |size, offset, length| memory(size).window(owned(offset, length));
    let add = |bars: &mut PciBars, spec| bars.add(&world.vm, spec).map(drop);
    let one = |bar| FunctionSpec::new().bar(0, bar);
    let refused = [
        one(memory(3000)),
        one(memory(8)),
        one(BarSpec::memory32(1 << 32)),
        FunctionSpec::new().rom(BarSpec::rom(1024)),
        FunctionSpec::new().bar(6, memory(16)),
        FunctionSpec::new().bar(5, BarSpec::memory64(16)),
        FunctionSpec::new().bar(2, memory(16)).bridge(),
        one(BarSpec::memory64(16)).bar(1, memory(16)),
        one(BarSpec::io(16).window(owned(0, 16))),
        one(window(0x2000, 0x1000, 0x2000)),
        one(window(0x2000, 0, 0)),
        // No slot is so small.
        one(window(0x2000, 0, 0x800)),
        one(window(0x2000, 0x800, 0x1000)),
        one(window(0x1_0000, 0, 0x2000).window(owned(0x1000, 0x1000))),
    ];
    for spec in refused {
        let named = format!("{spec:?}");
        assert!(add(&mut bars, spec).is_err(), "{named}");
    }
    add(&mut bars, one(window(0x2000, 0x1000, 0x1000))).unwrap();
}

#[test]
fn a_guest_reads_back_what_it_wrote() {
    let mut world = World::new(Executor::PerRegion, false);
    write(&mut world, 0, 0x18, 0x1234_5678);
    write(&mut world, 0, 0x1c, 0x12);
    let mut data = [0xaa; 12];
    world.bars.config_read(world.ids[0], 0x18, &mut data).unwrap();
    let expected = [&0x1234_0004_u32.to_le_bytes()[..], &0x12_u32.to_le_bytes(), &[0xaa; 4]];
    assert_eq!(data[..], expected.concat());
    assert_eq!(
        world.vm.regions().iter().filter(|region| region.flags == MemFlags::READONLY).count(),
        0
    );
}
