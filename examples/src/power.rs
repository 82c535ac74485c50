//! What a guest takes to switch its power off: tables of ACPI, and the registers
//! that they name.

use std::ops::RangeInclusive;

use vm_memory::{Bytes as _, GuestRegionMmap, MemoryRegionAddress};

use crate::Result;

/// Where the firmware of a PC is: guests look for the first table here.
const AT: u32 = 0xe_0000;
const FACS: u32 = AT + 0x40;
const RSDT: u32 = AT + 0x80;
const FADT: u32 = AT + 0x100;
const DSDT: u32 = AT + 0x180;

/// The first of the registers. Two bytes each: events that came, events that are
/// enabled, control.
const REGISTERS: u16 = 0x600;
const CONTROL: u16 = 4;
/// The interrupt of events, of which there are none.
const SCI: u8 = 9;
/// The sleep without power, as the control register has it.
const OFF: u8 = 5;

/// What makes the sum of all bytes 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_sub(*byte))
}

fn table(signature: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table = signature.to_vec();
    table.extend((36 + body.len() as u32).to_le_bytes());
    // The revision, a checksum, and who made it.
    table.extend(*b"\x01\0EXAMPLEXAMPLES\x01\0\0\0EXAM\x01\0\0\0");
    table.extend(body);
    table[9] = checksum(&table);
    table
}

/// The registers, and that nothing of a PC's old power management is there.
fn fadt() -> Vec<u8> {
    let mut body = [0; 80];
    let mut put = |offset: usize, bytes: &[u8]| {
        body[offset - 36..][..bytes.len()].copy_from_slice(bytes);
    };
    put(36, &FACS.to_le_bytes());
    put(40, &DSDT.to_le_bytes());
    put(46, &[SCI]);
    put(56, &u32::from(REGISTERS).to_le_bytes());
    put(64, &u32::from(REGISTERS + CONTROL).to_le_bytes());
    // The lengths of both blocks.
    put(88, &[CONTROL as u8, 2]);
    // WBINVD works, a processor may halt; no buttons are among the registers.
    put(112, &[1 | 1 << 2 | 1 << 4 | 1 << 5]);
    table(*b"FACP", &body)
}

/// Puts the tables into `ram`, which begins at guest physical address 0, below 1 MiB.
///
/// # Errors
/// That `ram` is too small.
pub fn describe(ram: &GuestRegionMmap) -> Result<()> {
    let mut rsdp = *b"RSD PTR \0EXAMPL\0\0\0\0\0";
    rsdp[16..].copy_from_slice(&RSDT.to_le_bytes());
    rsdp[8] = checksum(&rsdp);
    // `Name (_S5, Package {5, 5, 0, 0})`
    let off = [&b"\x08_S5_\x12\x08\x04"[..], &[0x0a, OFF, 0x0a, OFF, 0, 0]].concat();
    let mut facs = *b"FACS\x40\0\0\0";
    facs[4] = 64;
    for (at, bytes) in [
        (AT, &rsdp[..]),
        (FACS, &facs),
        (RSDT, &table(*b"RSDT", &FADT.to_le_bytes())),
        (FADT, &fadt()),
        (DSDT, &table(*b"DSDT", &off)),
    ] {
        ram.write_slice(bytes, MemoryRegionAddress(at.into()))?;
    }
    Ok(())
}

/// The registers that the tables name.
#[derive(Debug)]
pub struct Power([u8; 6]);

impl Default for Power {
    /// ACPI is what there is from the start.
    fn default() -> Self {
        Self([0, 0, 0, 0, 1, 0])
    }
}

impl Power {
    /// Where they are.
    pub const PORTS: RangeInclusive<u16> = REGISTERS..=REGISTERS + CONTROL + 1;

    /// The guest reads `data` from `port`, which is one of [`Self::PORTS`].
    pub fn read(&self, port: u16, data: &mut [u8]) {
        let registers = self.0.iter().skip((port - REGISTERS).into());
        data.iter_mut().zip(registers.chain([&0xff; 8])).for_each(|(to, from)| *to = *from);
    }

    /// The same of a write; whether it switches the power off.
    pub fn write(&mut self, port: u16, data: &[u8]) -> bool {
        let registers = self.0.iter_mut().skip((port - REGISTERS).into());
        registers.zip(data).for_each(|(to, from)| *to = *from);
        // What has come is cleared by a write, and nothing comes.
        self.0[..2].fill(0);
        let control = self.0[usize::from(CONTROL) + 1];
        control & 1 << 5 != 0 && control >> 2 & 7 == OFF
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn tables_lead_to_one_another_and_sum_to_0() {
        let ram = crate::memory(0, 1 << 20).unwrap();
        describe(&ram).unwrap();
        let read = |at: u32, length: usize| {
            let mut bytes = vec![0; length];
            ram.read_slice(&mut bytes, MemoryRegionAddress(at.into())).unwrap();
            bytes
        };
        let word = |at: u32| u32::from_le_bytes(read(at, 4).try_into().unwrap());
        let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((&read(AT, 8)[..], sum(&read(AT, 20))), (&b"RSD PTR "[..], 0));
        let rsdt = word(AT + 16);
        let fadt = word(rsdt + 36);
        let dsdt = word(fadt + 40);
        for (at, signature, end) in
            [(rsdt, b"RSDT", FADT), (fadt, b"FACP", DSDT), (dsdt, b"DSDT", AT + 0x1000)]
        {
            let length = word(at + 4);
            assert_eq!(read(at, 4), signature);
            assert_eq!((sum(&read(at, length as usize)), at + length <= end), (0, true));
        }
        assert_eq!((&read(word(fadt + 36), 4)[..], word(fadt + 36) % 64), (&b"FACS"[..], 0));
    }

    #[test]
    fn the_power_goes_off_by_the_sleep_without_power_only() {
        let mut power = Power::default();
        let mut read = [0; 2];
        for (port, data, off) in [
            (0x600, &[0xff, 0xff][..], false),
            (0x602, &[0x20, 0], false),
            (0x604, &[1, OFF << 2], false),
            (0x604, &[1, 4 << 2 | 1 << 5], false),
            (0x604, &[1, OFF << 2 | 1 << 5], true),
            (0x605, &[0, 1, 2], false),
            (0x605, &[OFF << 2 | 1 << 5], true),
        ] {
            assert_eq!(power.write(port, data), off, "{port:#x}");
        }
        for (port, value) in [(0x600, [0, 0]), (0x602, [0x20, 0]), (0x605, [0x34, 0xff])] {
            power.read(port, &mut read);
            assert_eq!(read, value, "{port:#x}");
        }
    }
}
