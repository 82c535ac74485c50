//! The functions that there are.

use std::fs::File;

use kvm_memslots::pci::{BarSpec, FunctionSpec};
use kvm_memslots::{Access, Backing, RegionSpec, at};

pub(super) const HVA: u64 = 0x7000_0000_0000;

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Low,
    High,
    Rom,
}

/// A BAR: its register; its memory, by offset, length and whether it is in a file; its
/// doorbells, by offset, length and value.
pub(super) struct Shape {
    pub(super) register: usize,
    pub(super) kind: Kind,
    pub(super) size: u64,
    pub(super) memory: &'static [(u64, u64, bool)],
    pub(super) bells: &'static [(u64, u32, Option<u64>)],
}

pub(super) const SHAPES: [&[Shape]; 3] = [
    &[
        Shape {
            register: 0x10,
            kind: Kind::Low,
            size: 0x4000,
            memory: &[(0, 0x1000, true), (0x2000, 0x2000, false)],
            bells: &[(0x1000, 2, Some(0)), (0x1000, 8, Some(1)), (0x1008, 0, None)],
        },
        Shape {
            register: 0x18,
            kind: Kind::High,
            size: 0x1_0000,
            memory: &[(0, 0x1_0000, true)],
            bells: &[],
        },
        Shape {
            register: 0x30,
            kind: Kind::Rom,
            size: 0x1000,
            memory: &[(0, 0x1000, true)],
            bells: &[],
        },
    ],
    &[
        Shape {
            register: 0x10,
            kind: Kind::High,
            size: 0x4000,
            memory: &[(0x1000, 0x3000, true)],
            // The last one is in the memory.
            bells: &[(0, 8, None), (0, 4, None), (8, 0, None), (0x2000, 4, None)],
        },
        Shape {
            register: 0x20,
            kind: Kind::Low,
            size: 16,
            memory: &[],
            bells: &[(0, 8, Some(7)), (8, 1, None)],
        },
    ],
    &[
        Shape {
            register: 0x10,
            kind: Kind::High,
            size: 0x2000,
            memory: &[(0x1000, 0x1000, false)],
            bells: &[(0x10, 8, None)],
        },
        Shape {
            register: 0x38,
            kind: Kind::Rom,
            size: 0x2000,
            memory: &[(0, 0x2000, true)],
            bells: &[],
        },
    ],
];

pub(super) fn hva(function: usize, bar: usize, window: usize) -> u64 {
    HVA + ((function * 16 + bar * 4 + window) as u64) * 0x10_0000
}

pub(super) fn fd(function: usize, bar: usize, bell: usize) -> i32 {
    i32::try_from(1000 + function * 16 + bar * 4 + bell).unwrap()
}

pub(super) fn memory(gpa: u64, size: u64, hva: u64) -> RegionSpec {
    // SAFETY: the model touches no memory.
    RegionSpec::device(at(gpa, size), unsafe { Backing::borrowed(hva, size, Access::ReadWrite) })
}

pub(super) fn spec(function: usize, file: &File, deferrable: bool) -> FunctionSpec {
    let mut spec = FunctionSpec::new();
    if function == 2 {
        spec = spec.bridge();
    }
    for (index, shape) in SHAPES[function].iter().enumerate() {
        let mut bar = match shape.kind {
            Kind::Low => BarSpec::memory32(shape.size),
            Kind::High => BarSpec::memory64(shape.size),
            Kind::Rom => BarSpec::rom(shape.size),
        };
        for (n, (offset, size, in_file)) in shape.memory.iter().enumerate() {
            let mut region = memory(*offset, *size, hva(function, index, n));
            if *in_file {
                let backing = region.backing().clone().with_file(file.try_clone().unwrap(), 0);
                region = RegionSpec::device(region.span(), backing);
            }
            bar = bar.window(if deferrable { region.deferrable() } else { region });
        }
        for (n, (offset, len, value)) in shape.bells.iter().enumerate() {
            bar = bar.ioeventfd(*offset, *len, *value, fd(function, index, n));
        }
        spec = match shape.kind {
            Kind::Rom => spec.rom(bar),
            _ => spec.bar((shape.register - 0x10) / 4, bar),
        };
    }
    spec
}
