//! What is to be there, by somebody who knows the registers alone.

use std::collections::BTreeSet;

use kvm_memslots::device::{Bus, Ioeventfd};

use super::shapes::{Kind, SHAPES, fd, hva};
use super::{APIC, KVM_BITS, PCI_BITS, RAM, WINDOW};

/// A function as bytes, and where each BAR was before the last write.
pub(super) struct Naive {
    config: [u8; 64],
    pub(super) bases: Vec<Option<u64>>,
}

impl Naive {
    pub(super) fn new(function: usize) -> Self {
        Self { config: [0; 64], bases: vec![None; SHAPES[function].len()] }
    }

    pub(super) fn write(&mut self, function: usize, offset: usize, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            if let Some(there) = self.config.get_mut(at) {
                *there = *byte;
            }
        }
        let dword = |at: usize| u32::from_le_bytes(self.config[at..at + 4].try_into().unwrap());
        for (shape, base) in SHAPES[function].iter().zip(&mut self.bases) {
            let low = dword(shape.register);
            let high = if shape.kind == Kind::High { dword(shape.register + 4) } else { 0 };
            if self.config[4] & 2 == 0 {
                *base = None;
            } else if low != u32::MAX && high != u32::MAX {
                let address = u64::from(high) << 32 | u64::from(low & !(shape.size as u32 - 1));
                let end = if shape.kind == Kind::High { 1 << PCI_BITS } else { (1 << 32) - 1 };
                let on = shape.kind != Kind::Rom || low & 1 != 0;
                let fits = address.checked_add(shape.size).is_some_and(|last| last <= end);
                *base = (on && address != 0 && fits).then_some(address);
            }
        }
    }
}

fn meet(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1
}

/// What is to be there.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Wanted {
    pub(super) mapped: BTreeSet<(u64, u64, u64)>,
    pub(super) placed: BTreeSet<(u64, u64)>,
    pub(super) bells: BTreeSet<Ioeventfd>,
    pub(super) refused: BTreeSet<(usize, usize)>,
}

/// All functions, and what else there is.
pub(super) struct Setting<'a> {
    pub(super) functions: &'a [Naive],
    /// Where memory is that is no BAR, and a window.
    pub(super) other: Option<(u64, u64)>,
    pub(super) window: Option<(u64, u64)>,
    pub(super) without_slots: bool,
    pub(super) deferrable: bool,
    pub(super) foreign: Vec<Ioeventfd>,
}

impl Setting<'_> {
    pub(super) fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        let mut claims: Vec<(u64, u64)> = Vec::new();
        let mut others = vec![(0, RAM)];
        others.extend(self.other);
        others.extend(self.window);
        let in_window = |(from, len): (u64, u64)| {
            self.window.is_some_and(|window| from >= window.0 && from + len <= window.0 + window.1)
        };
        for (function, (naive, shapes)) in self.functions.iter().zip(SHAPES).enumerate() {
            for (bar, (base, shape)) in naive.bases.iter().zip(shapes).enumerate() {
                let Some(base) = base else { continue };
                for (n, (offset, size, in_file)) in shape.memory.iter().enumerate() {
                    let range = (base + offset, *size);
                    let free = !claims.iter().any(|claim| meet(*claim, range));
                    if in_window(range) {
                        if free && *in_file {
                            claims.push(range);
                            wanted.placed.insert((range.0 - WINDOW.0, *size));
                        } else {
                            wanted.refused.insert((function, bar));
                        }
                    } else if self.without_slots {
                        wanted.refused.insert((function, bar));
                    } else if free && !others.iter().any(|other| meet(*other, range)) {
                        let end = range.0 + size;
                        // What waits for its slot is refused when it gets it, and waits on.
                        let asks = !self.deferrable;
                        if asks && (end > 1 << KVM_BITS || meet(range, (APIC, 0x1000))) {
                            wanted.refused.insert((function, bar));
                        } else {
                            claims.push(range);
                            wanted.mapped.insert((range.0, *size, hva(function, bar, n)));
                        }
                    } else {
                        wanted.refused.insert((function, bar));
                    }
                }
                let mut mine: Vec<(u64, u64)> = Vec::new();
                for (n, (offset, len, datamatch)) in shape.bells.iter().enumerate() {
                    let range = (base + offset, u64::from(*len).max(1));
                    let bell = Ioeventfd {
                        bus: Bus::Mmio,
                        addr: range.0,
                        len: *len,
                        datamatch: *datamatch,
                        fd: fd(function, bar, n),
                    };
                    if in_window(range) {
                        wanted.refused.insert((function, bar));
                        continue;
                    }
                    let mut there = others.iter().chain(&claims).chain(&mine);
                    let beside = |there: &_| mine.contains(there) && there.0 == range.0;
                    if there.any(|there| meet(*there, range) && !beside(there)) {
                        wanted.refused.insert((function, bar));
                        continue;
                    }
                    if self.foreign.iter().any(|there| there.collides_with(&bell)) {
                        wanted.refused.insert((function, bar));
                        continue;
                    }
                    mine.push(range);
                    wanted.bells.insert(bell);
                }
                claims.append(&mut mine);
            }
        }
        wanted
    }
}
