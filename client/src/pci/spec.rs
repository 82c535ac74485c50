//! What a function's BARs are.

use std::os::fd::AsRawFd;

use kvm_memslots_shim::Range;

use super::claims::{Claims, bell_range};
use super::error::PciError;
use crate::device::{Bus, Event, Ioeventfd};
use crate::region::{RegionSpec, Span};

/// BARs of an ordinary function, and of a bridge.
const BARS: usize = 6;
const BRIDGE_BARS: usize = 2;
/// The index of the expansion ROM, behind those of all BARs.
pub(super) const ROM: usize = usize::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Memory32,
    Memory64,
    Io,
    Rom,
}

/// A part of a BAR that is host memory: its guest address is the offset in the
/// BAR.
pub(super) type Window = RegionSpec;

/// An eventfd that writes to a BAR signal.
#[derive(Debug, Clone)]
pub(super) struct Bell {
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) value: Option<u64>,
    pub(super) event: Event,
}

impl Bell {
    /// Of a BAR at `base`; `None` if it would wrap.
    pub(super) fn at(&self, base: u64) -> Option<Ioeventfd> {
        Some(Ioeventfd {
            bus: Bus::Mmio,
            addr: base.checked_add(self.offset)?,
            len: self.len,
            datamatch: self.value,
            fd: self.event.as_raw_fd(),
        })
    }
}

/// A BAR.
#[derive(Debug, Clone)]
pub struct BarSpec {
    pub(super) kind: Kind,
    pub(super) prefetchable: bool,
    pub(super) size: u64,
    pub(super) windows: Vec<Window>,
    pub(super) bells: Vec<Bell>,
    /// What is to exit, whatever is memory.
    exits: Vec<Span>,
}

impl BarSpec {
    const fn new(kind: Kind, size: u64) -> Self {
        Self {
            kind,
            prefetchable: false,
            size,
            windows: Vec::new(),
            bells: Vec::new(),
            exits: Vec::new(),
        }
    }

    /// Memory below 4 GiB, `size` bytes of it.
    #[must_use]
    pub const fn memory32(size: u64) -> Self {
        Self::new(Kind::Memory32, size)
    }

    /// Memory anywhere; takes the next BAR's register, too.
    #[must_use]
    pub const fn memory64(size: u64) -> Self {
        Self::new(Kind::Memory64, size)
    }

    /// I/O ports: a register that can be sized and written.
    #[must_use]
    pub const fn io(size: u64) -> Self {
        Self::new(Kind::Io, size)
    }

    /// The expansion ROM, for [`FunctionSpec::rom`].
    #[must_use]
    pub const fn rom(size: u64) -> Self {
        Self::new(Kind::Rom, size)
    }

    /// With the bit that says so; what reads the BAR may merge and prefetch.
    #[must_use]
    pub const fn prefetchable(mut self) -> Self {
        self.prefetchable = true;
        self
    }

    /// A part of the BAR is the host memory that `region` says: its guest address
    /// is the offset in the BAR. Everything else is the region's. What
    /// [`Backing`](crate::Backing) asks for holds for as long as the function is
    /// in a [`PciBars`](super::PciBars), and until the window has been unmapped
    /// then.
    #[must_use]
    pub fn window(mut self, region: RegionSpec) -> Self {
        self.windows.push(region);
        self
    }

    /// Writes of `len` bytes (0: of any length), and of `value` if there is one,
    /// to this offset signal an eventfd and don't exit, for as long as the BAR
    /// decodes and wherever it is: a doorbell. It moves with the BAR in the same
    /// set of changes as its windows. Doorbells of a BAR don't overlap, but for
    /// those at one offset that differ in length or value
    /// ([`PciError::DoorbellsOverlap`]).
    #[must_use]
    pub fn ioeventfd(
        mut self,
        offset: u64,
        len: u32,
        value: Option<u64>,
        event: impl AsRawFd + Send + Sync + 'static,
    ) -> Self {
        self.bells.push(Bell { offset, len, value, event: Event::new(event) });
        self
    }

    /// This part of the BAR is to exit, though windows may cover it: an MSI-X
    /// table, an array of pending bits. Windows are cut around the host pages that
    /// it is in, of 4, 16 or 64 KiB, when the function is
    /// [added](super::PciBars::add); in what is cut off with it the VMM serves
    /// the accesses from the memory itself.
    #[must_use]
    pub fn exits(mut self, offset: u64, size: u64) -> Self {
        self.exits.push(Span { gpa: offset, size });
        self
    }

    /// Cuts the windows to pages, around what is to exit. They lie in the BAR.
    fn cut(&mut self, page_size: u64) {
        let up = |at: u64| at.checked_next_multiple_of(page_size);
        let mut holes: Vec<(u64, u64)> = self
            .exits
            .iter()
            .filter(|span| span.size > 0)
            .filter_map(|Span { gpa, size }| {
                Some((gpa - gpa % page_size, up(gpa.checked_add(*size)?)?))
            })
            .collect();
        if holes.is_empty() {
            return;
        }
        holes.sort_unstable();
        let mut windows = Vec::new();
        for window in std::mem::take(&mut self.windows) {
            let Span { gpa, size } = window.span;
            let (mut at, end) = (up(gpa).unwrap_or(gpa + size), gpa + size);
            for (from, to) in holes.iter().copied().chain([(end - end % page_size, end)]) {
                if let Some(len) = from.min(end).checked_sub(at).filter(|len| *len > 0) {
                    windows.push(window.part(at - gpa, len));
                }
                at = at.max(to);
            }
        }
        self.windows = windows;
    }

    pub(super) fn check(&self) -> Result<(), PciError> {
        let sizes = match self.kind {
            Kind::Memory32 => 16..=1 << 31,
            Kind::Memory64 => 16..=1 << 62,
            Kind::Io => 4..=256,
            Kind::Rom => 2 << 10..=16 << 20,
        };
        if !self.size.is_power_of_two() || !sizes.contains(&self.size) {
            return Err(PciError::BadSize { size: self.size });
        }
        if self.kind == Kind::Io && !(self.windows.is_empty() && self.bells.is_empty()) {
            return Err(PciError::WindowInPorts);
        }
        let bells = self.bells.iter().map(|bell| (bell.offset, u64::from(bell.len.max(1))));
        let exits = self.exits.iter().map(|span| (span.gpa, span.size));
        for (offset, size) in bells.chain(exits) {
            if offset.checked_add(size).is_none_or(|end| end > self.size) {
                return Err(PciError::Outside { offset, size, bar: self.size });
            }
        }
        self.check_bells()?;
        let mut ranges: Vec<Span> = self.windows.iter().map(RegionSpec::span).collect();
        for Span { gpa, size } in &ranges {
            let inside = gpa.checked_add(*size).is_some_and(|end| end <= self.size);
            if *size == 0 || !inside {
                return Err(PciError::Outside { offset: *gpa, size: *size, bar: self.size });
            }
        }
        ranges.sort_unstable_by_key(|span| span.gpa);
        let mut claims = Claims::<()>::default();
        let mut claim =
            |span: &Span| Range::new(span.gpa, span.size).is_some_and(|at| claims.claim(at, None));
        match ranges.iter().find(|span| !claim(span)) {
            Some(second) => Err(PciError::WindowsOverlap { offset: second.gpa }),
            None => Ok(()),
        }
    }

    /// Whether each doorbell, which lies in the BAR, is for writes of its own.
    fn check_bells(&self) -> Result<(), PciError> {
        let mut bells: Vec<Ioeventfd> = self.bells.iter().filter_map(|bell| bell.at(0)).collect();
        // Of those at one offset those of any length, then those of any value, come
        // first: neighbours tell.
        bells.sort_unstable();
        let mut claims = Claims::default();
        let mut last: Option<Ioeventfd> = None;
        for bell in bells {
            let both = last.replace(bell).is_some_and(|last| last.collides_with(&bell));
            let range = bell_range(bell.addr, bell.len);
            if both || !range.is_some_and(|range| claims.claim(range, Some(()))) {
                return Err(PciError::DoorbellsOverlap { offset: bell.addr });
            }
        }
        Ok(())
    }
}

/// A function: its BARs and its expansion ROM.
#[derive(Debug, Clone, Default)]
pub struct FunctionSpec {
    pub(super) bars: Vec<(usize, BarSpec)>,
    pub(super) rom: Option<BarSpec>,
    pub(super) is_bridge: bool,
}

impl FunctionSpec {
    /// Without BARs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With a BAR.
    #[must_use]
    pub fn bar(mut self, index: usize, bar: BarSpec) -> Self {
        self.bars.push((index, bar));
        self
    }

    /// With an expansion ROM, made with [`BarSpec::rom`].
    #[must_use]
    pub fn rom(mut self, rom: BarSpec) -> Self {
        self.rom = Some(BarSpec { kind: Kind::Rom, ..rom });
        self
    }

    /// With the header of a bridge: two BARs, and the ROM in another place.
    #[must_use]
    pub const fn bridge(mut self) -> Self {
        self.is_bridge = true;
        self
    }

    /// Cuts windows around what is to exit.
    pub(super) fn cut(&mut self, page_size: u64) {
        let bars = self.bars.iter_mut().map(|(_, bar)| bar).chain(&mut self.rom);
        bars.for_each(|bar| bar.cut(page_size));
    }

    pub(super) const fn registers(&self) -> usize {
        if self.is_bridge { BRIDGE_BARS } else { BARS }
    }

    /// The BARs by their index, the expansion ROM's being the highest.
    pub(super) fn by_index(&self) -> impl Iterator<Item = (usize, &BarSpec)> {
        let bars = self.bars.iter().map(|(index, bar)| (*index, bar));
        bars.chain(self.rom.iter().map(|rom| (ROM, rom)))
    }

    pub(super) fn windows(&self) -> impl Iterator<Item = &Window> {
        let bars = self.bars.iter().map(|(_, bar)| bar).chain(&self.rom);
        bars.flat_map(|bar| &bar.windows)
    }

    pub(super) fn check(&self) -> Result<(), PciError> {
        let registers = self.registers();
        let mut taken = [false; BARS];
        for (index, bar) in &self.bars {
            let (index, halves) = (*index, if bar.kind == Kind::Memory64 { 2 } else { 1 });
            if bar.kind == Kind::Rom || index.checked_add(halves).is_none_or(|end| end > registers)
            {
                return Err(PciError::NoSuchBar { index, registers });
            }
            for taken in &mut taken[index..index + halves] {
                if std::mem::replace(taken, true) {
                    return Err(PciError::TakenBar { index });
                }
            }
        }
        self.bars.iter().map(|(_, bar)| bar).chain(&self.rom).try_for_each(BarSpec::check)
    }
}
