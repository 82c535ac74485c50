//! The registers of a function that are about memory.

use super::spec::{self, BarSpec, FunctionSpec, Kind};
use crate::event::Event;

// Offsets in the config space (`linux/pci_regs.h`).
const COMMAND: usize = 0x04;
const BAR_0: usize = 0x10;
const ROM: usize = 0x30;
const BRIDGE_ROM: usize = 0x38;

/// `PCI_COMMAND_MEMORY`.
const DECODES: u8 = 1 << 1;
/// `PCI_ROM_ADDRESS_ENABLE`.
const ROM_ENABLED: u32 = 1;

/// A BAR's register holds this while its size is asked for.
const ALL_ONES: u32 = u32::MAX;

/// A BAR and its one or two registers.
#[derive(Debug)]
struct Bar {
    index: usize,
    spec: BarSpec,
    /// Offset of the first register.
    offset: usize,
    /// What was written, lowest half first.
    written: [u32; 2],
    /// Where the BAR decodes.
    base: Option<u64>,
}

impl Bar {
    fn new(index: usize, spec: BarSpec, offset: usize) -> Self {
        Self { index, spec, offset, written: [0; 2], base: None }
    }

    const fn bytes(&self) -> usize {
        if matches!(self.spec.kind, Kind::Memory64) { 8 } else { 4 }
    }

    /// Bits of the registers that can be written.
    fn writable(&self) -> u64 {
        let address = !(self.spec.size - 1);
        match self.spec.kind {
            Kind::Rom => address | u64::from(ROM_ENABLED),
            _ => address,
        }
    }

    /// Bits that say what kind of BAR it is (`PCI_BASE_ADDRESS_*`).
    const fn kind_bits(&self) -> u64 {
        let prefetchable = if self.spec.prefetchable { 1 << 3 } else { 0 };
        match self.spec.kind {
            Kind::Memory32 => prefetchable,
            Kind::Memory64 => 1 << 2 | prefetchable,
            Kind::Io => 1,
            Kind::Rom => 0,
        }
    }

    fn all_written(&self) -> u64 {
        u64::from(self.written[1]) << 32 | u64::from(self.written[0])
    }

    fn value(&self) -> u64 {
        self.all_written() & self.writable() | self.kind_bits()
    }

    fn is_being_sized(&self) -> bool {
        self.written[..self.bytes() / 4].contains(&ALL_ONES)
    }

    /// Where the registers say that the BAR is, if that is somewhere.
    fn address(&self, end: u64) -> Option<u64> {
        let base = self.all_written() & !(self.spec.size - 1);
        let last = base.checked_add(self.spec.size - 1)?;
        let on = match self.spec.kind {
            Kind::Io => false,
            Kind::Rom => self.written[0] & ROM_ENABLED != 0 && last < u64::from(u32::MAX),
            Kind::Memory32 => last < u64::from(u32::MAX),
            Kind::Memory64 => true,
        };
        (on && base != 0 && last < end).then_some(base)
    }

    fn settle(&mut self, decodes: bool, end: u64) {
        self.base = match (decodes, self.is_being_sized()) {
            (false, _) => None,
            (true, true) => self.base,
            (true, false) => self.address(end),
        };
    }
}

/// The registers of a function.
#[derive(Debug)]
pub(super) struct Registers {
    decodes: bool,
    /// By index, the expansion ROM last.
    bars: Vec<Bar>,
}

impl Registers {
    /// As after a reset.
    pub(super) fn new(spec: FunctionSpec) -> Self {
        let rom = if spec.is_bridge { BRIDGE_ROM } else { ROM };
        let mut bars: Vec<Bar> = spec
            .bars
            .into_iter()
            .map(|(index, bar)| Bar::new(index, bar, BAR_0 + 4 * index))
            .collect();
        bars.sort_unstable_by_key(|bar| bar.offset);
        bars.extend(spec.rom.map(|bar| Bar::new(spec::ROM, bar, rom)));
        Self { decodes: false, bars }
    }

    /// A config write of any length at any offset. Whether a BAR is somewhere
    /// else now; guest addresses end at `end`.
    pub(super) fn write(&mut self, offset: usize, data: &[u8], end: u64) -> bool {
        let mut touched = false;
        for (at, byte) in (offset..).zip(data) {
            touched |= self.write_byte(at, *byte);
        }
        touched && self.settle(end)
    }

    /// Forgets all addresses, and stops decoding.
    pub(super) fn reset(&mut self) -> bool {
        self.decodes = false;
        self.bars.iter_mut().for_each(|bar| bar.written = [0; 2]);
        self.settle(0)
    }

    fn write_byte(&mut self, at: usize, byte: u8) -> bool {
        if at == COMMAND {
            self.decodes = byte & DECODES != 0;
            return true;
        }
        let Some((bar, at)) = self.find(at) else { return false };
        let written = &mut self.bars[bar].written[at / 4];
        let mut bytes = written.to_le_bytes();
        bytes[at % 4] = byte;
        *written = u32::from_le_bytes(bytes);
        true
    }

    fn settle(&mut self, end: u64) -> bool {
        let decodes = self.decodes;
        self.bars.iter_mut().fold(false, |moved, bar| {
            let before = bar.base;
            bar.settle(decodes, end);
            moved || bar.base != before
        })
    }

    /// Fills in what the registers of BARs hold; other bytes stay.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            if let Some((bar, at)) = self.find(at) {
                *byte = self.bars[bar].value().to_le_bytes()[at];
            }
        }
    }

    /// The BAR that has a byte of the config space, and which byte it is.
    fn find(&self, at: usize) -> Option<(usize, usize)> {
        let has = |bar: &Bar| (bar.offset..bar.offset + bar.bytes()).contains(&at);
        let bar = self.bars.iter().position(has)?;
        Some((bar, at - self.bars[bar].offset))
    }

    /// The indices of the BARs, the expansion ROM's being the highest.
    pub(super) fn indices(&self) -> impl Iterator<Item = usize> {
        self.bars.iter().map(|bar| bar.index)
    }

    /// A BAR that is somewhere, and where.
    pub(super) fn placed(&self, index: usize) -> Option<(u64, &BarSpec)> {
        let bar = self.bars.iter().find(|bar| bar.index == index)?;
        Some((bar.base?, &bar.spec))
    }

    /// The eventfds of a BAR that is somewhere.
    pub(super) fn bells(&self, bar: usize) -> impl Iterator<Item = (usize, &Event)> {
        let bells = self.placed(bar).into_iter().flat_map(|(_, spec)| &spec.bells);
        bells.map(|bell| &bell.event).enumerate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u64 = 1 << 40;

    fn function() -> Registers {
        let spec = FunctionSpec::new()
            .bar(0, BarSpec::memory32(0x4000))
            .bar(1, BarSpec::io(32))
            .bar(2, BarSpec::memory64(8 << 30).prefetchable())
            .rom(BarSpec::rom(0x1_0000));
        spec.check().expect("a function");
        Registers::new(spec)
    }

    fn read(registers: &Registers, offset: usize) -> u32 {
        let mut data = [0xaa; 4];
        registers.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn base(registers: &Registers, bar: usize) -> Option<u64> {
        Some(registers.placed(bar)?.0)
    }

    fn write(registers: &mut Registers, offset: usize, value: u32) -> bool {
        registers.write(offset, &value.to_le_bytes(), END)
    }

    #[test]
    fn a_guest_finds_the_sizes() {
        let mut registers = function();
        for offset in (BAR_0..ROM + 4).step_by(4) {
            assert!(!write(&mut registers, offset, ALL_ONES));
        }
        let sizes = [0xffff_c000, 0xffff_ffe1, 0xc, 0xffff_fffe];
        for (offset, value) in (BAR_0..).step_by(4).zip(sizes) {
            assert_eq!(read(&registers, offset), value, "{offset:#x}");
        }
        assert_eq!(read(&registers, ROM), 0xffff_0001);
        // What is no BAR's is not touched.
        assert_eq!(read(&registers, 0x20), 0xaaaa_aaaa);
        assert_eq!(read(&registers, COMMAND), 0xaaaa_aaaa);
    }

    #[test]
    fn bytes_and_words_make_an_address() {
        let mut registers = function();
        assert!(!registers.write(0x12, &[0x00, 0xe0], END));
        // Across two registers: the address's second byte, and ports.
        assert!(!registers.write(0x0f, &[0, 0xff, 0x40, 0, 0xe0, 0x80], END));
        assert_eq!(read(&registers, 0x10), 0xe000_4000);
        assert_eq!(read(&registers, 0x14), 0x81);
        assert!(registers.write(0x03, &[0, 2], END));
        assert_eq!(base(&registers, 0), Some(0xe000_4000));
    }

    #[test]
    fn impossible_addresses_are_nowhere() {
        let mut registers = function();
        write(&mut registers, COMMAND, 2);
        for (low, expected) in [
            (0, None),
            (0x4000, Some(0x4000)),
            (0xffff_8000, Some(0xffff_8000)),
            // Ends at 4 GiB.
            (0xffff_c000, None),
        ] {
            write(&mut registers, 0x10, low);
            assert_eq!(base(&registers, 0), expected, "{low:#x}");
        }
        for (high, expected) in [(0, None), (2, Some(8 << 30)), (254, Some(254 << 32)), (256, None)]
        {
            write(&mut registers, 0x1c, high);
            assert_eq!(base(&registers, 2), expected, "{high:#x}");
        }
        write(&mut registers, ROM, 0xf000_0000);
        assert_eq!(base(&registers, usize::MAX), None);
        write(&mut registers, ROM, 0xf000_0001);
        assert_eq!(base(&registers, usize::MAX), Some(0xf000_0000));
    }

    #[test]
    fn a_question_about_the_size_moves_nothing() {
        let mut registers = function();
        write(&mut registers, 0x10, 0xe000_0000);
        assert!(write(&mut registers, COMMAND, 2));
        assert!(!write(&mut registers, 0x10, ALL_ONES));
        assert_eq!(read(&registers, 0x10), 0xffff_c000);
        assert!(!write(&mut registers, 0x10, 0xe000_0000));
        // Still there when decoding goes on: no address.
        write(&mut registers, 0x10, ALL_ONES);
        assert!(write(&mut registers, COMMAND, 0));
        assert!(!write(&mut registers, COMMAND, 2));
        assert_eq!(base(&registers, 0), None);
        assert!(write(&mut registers, 0x10, 0xd000_0000));
        assert!(registers.reset());
        assert_eq!((base(&registers, 0), read(&registers, 0x10)), (None, 0));
    }

    #[test]
    fn a_bridge_has_its_rom_elsewhere() {
        let spec = FunctionSpec::new().bar(1, BarSpec::memory32(16)).rom(BarSpec::rom(2048));
        let mut bridge = Registers::new(spec.clone().bridge());
        assert!(!bridge.write(0x38, &[0xff; 4], END));
        assert_eq!((read(&bridge, 0x38), read(&bridge, 0x30)), (0xffff_f801, 0xaaaa_aaaa));
        let wrong = spec.clone().bridge().bar(2, BarSpec::memory32(16));
        assert!(wrong.check().is_err() && spec.bar(1, BarSpec::io(4)).check().is_err());
    }
}
