//! Functions, the guest's writes to their registers, and what these say.

use std::sync::Arc;

use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::deferred::{Deferral, Policy};
use kvm_memslots::pci::{BarSpec, FunctionId, FunctionSpec, PciBars, PciError};
use kvm_memslots::{
    Access, Backing, Changes, ErrorKind, Executor, HolePolicy, Limits, RegionId, RegionSpec,
    Report, Vm, at,
};
use proptest::prelude::*;

pub(crate) const HVA: u64 = 0x7000_0000_0000;
pub(crate) const COMMAND: usize = 4;
pub(crate) const RAM: u64 = 0x10_0000;
pub(crate) const ADDRESS_BITS: u32 = 40;

/// A BAR of the functions under test.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) register: usize,
    pub(crate) is_64: bool,
    pub(crate) is_rom: bool,
    pub(crate) size: u64,
    /// Offset and length of its windows.
    pub(crate) windows: &'static [(u64, u64)],
}

pub(crate) const fn bar(
    register: usize,
    is_64: bool,
    size: u64,
    windows: &'static [(u64, u64)],
) -> Shape {
    Shape { register, is_64, is_rom: false, size, windows }
}

pub(crate) const fn rom(register: usize, size: u64, windows: &'static [(u64, u64)]) -> Shape {
    Shape { register, is_64: false, is_rom: true, size, windows }
}

/// Two functions and a bridge.
pub(crate) const SHAPES: [&[Shape]; 3] = [
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
pub(crate) fn hva(function: usize, bar: usize, window: usize) -> u64 {
    HVA + ((function * 16 + bar * 4 + window) as u64) * 0x10_0000
}

pub(crate) fn ram(gpa: u64, size: u64, hva: u64) -> RegionSpec {
    // SAFETY: the model touches no memory.
    RegionSpec::ram(at(gpa, size), unsafe { Backing::borrowed(hva, size, Access::ReadWrite) })
}

pub(crate) fn spec(function: usize, deferrable: bool) -> FunctionSpec {
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
pub(crate) enum Op {
    Write {
        function: usize,
        offset: usize,
        data: Vec<u8>,
    },
    Reset(usize),
    /// Maps or unmaps what is no BAR's, and looks again.
    Other,
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
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
pub(crate) struct Naive {
    pub(crate) config: [u8; 64],
    pub(crate) bases: Vec<Option<u64>>,
}

impl Naive {
    pub(crate) fn new(shapes: &[Shape]) -> Self {
        Self { config: [0; 64], bases: vec![None; shapes.len()] }
    }

    fn dword(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.config[at..at + 4].try_into().unwrap())
    }

    pub(crate) fn write(&mut self, shapes: &[Shape], offset: usize, data: &[u8]) {
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

pub(crate) type Mapped = Vec<(u64, u64, u64)>;

/// All windows that are somewhere, first come first served.
pub(crate) fn wanted(functions: &[Naive], others: &[(u64, u64)]) -> Mapped {
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
pub(crate) fn mapped(vm: &Vm) -> Mapped {
    let all = vm.regions().into_iter();
    let bars = all.filter(|region| region.hva >= HVA);
    bars.map(|region| (region.range.gpa(), region.range.size(), region.hva)).collect()
}

pub(crate) struct World {
    pub(crate) vm: Vm,
    pub(crate) model: MemoryModel,
    pub(crate) bars: PciBars,
    pub(crate) ids: Vec<FunctionId>,
    pub(crate) naive: Vec<Naive>,
    pub(crate) other: Option<RegionId>,
}

/// Where something else comes and goes.
pub(crate) const OTHER: (u64, u64) = (0x20_2000, 0x1000);

impl World {
    pub(crate) fn new(executor: Executor, deferrable: bool) -> Self {
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

    pub(crate) fn apply(&mut self, op: &Op) -> Result<Option<Report>, PciError> {
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

    pub(crate) fn wanted(&self) -> Mapped {
        let mut others = vec![(0, RAM)];
        others.extend(self.other.map(|_| OTHER));
        wanted(&self.naive, &others)
    }
}
