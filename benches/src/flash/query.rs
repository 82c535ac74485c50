//! What the chip says of itself.

/// Bytes of a block, in the bank.
pub const BLOCK: u64 = 64 << 10;
/// Chips side by side.
pub(super) const CHIPS: u64 = 4;
/// Words of a chip that are programmed at once at most.
pub(super) const BUFFER_WORDS: u64 = 16;
/// The manufacturer's code: Intel.
pub(super) const MANUFACTURER: u16 = 0x89;
/// The device code: a 28F128J3.
pub(super) const DEVICE: u16 = 0x18;

/// Where the table of the command set is: right behind the common one.
const PRIMARY: u16 = 0x31;

/// The byte of the CFI table at word `address` of a chip, in a bank of `blocks`
/// blocks (JESD68.01, tables 1 to 4; Intel's for the one at [`PRIMARY`]).
pub(super) fn query(address: u64, blocks: u64) -> u16 {
    let log2 = |bytes: u64| bytes.max(1).ilog2() as u16;
    let chip_block = BLOCK / CHIPS;
    let low = |value: u64| (value & 0xff) as u16;
    let high = |value: u64| (value >> 8 & 0xff) as u16;
    match address {
        0x10..=0x12 => u16::from(b"QRY"[(address - 0x10) as usize]),
        // Intel's extended command set, and where its table is. Also: the chip
        // has a 16-bit interface, and one kind of blocks.
        0x13 | 0x28 | 0x2c => 1,
        0x15 => PRIMARY,
        // 2.7 to 3.6 V.
        0x1b => 0x27,
        0x1c => 0x36,
        // A word within 2^7, a buffer within 2^7 microseconds, a block within
        // 2^10 milliseconds.
        0x1f | 0x20 => 7,
        0x21 => 10,
        0x27 => log2(blocks * chip_block),
        0x2a => log2(BUFFER_WORDS * 2),
        0x2d => low(blocks - 1),
        0x2e => high(blocks - 1),
        0x2f => low(chip_block / 256),
        0x30 => high(chip_block / 256),
        // Version 1.0 of that table.
        0x31..=0x35 => u16::from(b"PRI10"[(address - 0x31) as usize]),
        _ => 0,
    }
}
