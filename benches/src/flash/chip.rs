//! The state machine.

use std::sync::Arc;

use nix::errno::Errno;

use super::query::{BLOCK, BUFFER_WORDS, CHIPS, DEVICE, MANUFACTURER, query};
use kvm_memslots_kit::host::{HostMemory, Pages};

/// Bytes of the bus: a word of each chip.
const BUS: u64 = CHIPS * 2;

// Status register.
const READY: u16 = 0x80;
const ERASE_FAILED: u16 = 0x20;
const PROGRAM_FAILED: u16 = 0x10;
const LOCKED: u16 = 0x02;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Mode {
    Array,
    Status,
    Identifier,
    Query,
    /// The next write is the word.
    Program,
    /// The next write says how many words there are.
    BufferCount,
    Buffer {
        left: u64,
        words: Vec<(u64, u64)>,
    },
    /// The next write confirms.
    Erase,
    LockSetup,
}

/// The bank: memory, and what its chips are doing.
#[derive(Debug)]
pub struct Flash {
    memory: Arc<HostMemory>,
    locked: Vec<bool>,
    mode: Mode,
    status: u16,
}

impl Flash {
    /// An erased bank of `blocks` blocks, at least one, in array mode.
    ///
    /// # Errors
    /// That of `mmap`.
    pub fn new(blocks: u64) -> Result<Self, Errno> {
        let blocks = blocks.max(1);
        let memory = Arc::new(HostMemory::reserve(blocks * BLOCK, Pages::Small)?);
        let locked = vec![false; blocks as usize];
        let mut flash = Self { memory, locked, mode: Mode::Array, status: READY };
        (0..blocks).for_each(|block| flash.fill(block));
        Ok(flash)
    }

    /// The memory that reads in array mode reach.
    #[must_use]
    pub const fn memory(&self) -> &Arc<HostMemory> {
        &self.memory
    }

    /// Whether reads reach the memory.
    #[must_use]
    pub fn in_array_mode(&self) -> bool {
        self.mode == Mode::Array
    }

    fn blocks(&self) -> u64 {
        self.locked.len() as u64
    }

    fn block_of(&self, offset: u64) -> u64 {
        (offset / BLOCK).min(self.blocks() - 1)
    }

    /// A read of any width, at an offset in the bank.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = match &self.mode {
                Mode::Array => self.memory.read(at / 8 * 8).to_le_bytes()[(at % 8) as usize],
                _ => self.register(at / BUS).to_le_bytes()[(at % 2) as usize],
            };
        }
    }

    /// What each chip says at a word address, out of array mode.
    fn register(&self, word: u64) -> u16 {
        let in_block = word % (BLOCK / BUS);
        match self.mode {
            Mode::Identifier => match in_block {
                0 => MANUFACTURER,
                1 => DEVICE,
                2 => u16::from(self.locked[self.block_of(word * BUS) as usize]),
                _ => 0,
            },
            Mode::Query => query(word, self.blocks()),
            _ => self.status,
        }
    }

    /// A write, at an offset in the bank. Commands are taken from its first
    /// byte, and go to all chips; data is the whole bus.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let mut bus = [0xff; 8];
        let len = data.len().min(8);
        bus[..len].copy_from_slice(&data[..len]);
        let (word, command) = (u64::from_le_bytes(bus), bus[0]);
        let offset = offset / BUS * BUS;
        self.mode = match std::mem::replace(&mut self.mode, Mode::Status) {
            Mode::Program => {
                self.program(&[(offset, word)]);
                Mode::Status
            }
            Mode::BufferCount => {
                let left = u64::from(command) + 1;
                if left > BUFFER_WORDS {
                    self.status |= PROGRAM_FAILED | ERASE_FAILED;
                    Mode::Status
                } else {
                    Mode::Buffer { left, words: Vec::new() }
                }
            }
            Mode::Buffer { left: 0, words } => {
                if command == 0xd0 {
                    self.program(&words);
                } else {
                    self.status |= PROGRAM_FAILED | ERASE_FAILED;
                }
                Mode::Status
            }
            Mode::Buffer { left, mut words } => {
                words.push((offset, word));
                Mode::Buffer { left: left - 1, words }
            }
            Mode::Erase => {
                self.erase(offset, command);
                Mode::Status
            }
            Mode::LockSetup => {
                self.set_lock(offset, command);
                Mode::Status
            }
            _ => self.command(command),
        };
    }

    fn command(&mut self, command: u8) -> Mode {
        match command {
            0x10 | 0x40 => Mode::Program,
            0x20 => Mode::Erase,
            0x50 => {
                self.status = READY;
                Mode::Status
            }
            0x60 => Mode::LockSetup,
            0x70 => Mode::Status,
            0x90 => Mode::Identifier,
            0x98 => Mode::Query,
            0xe8 => Mode::BufferCount,
            // Read array; and so do chips with what they don't know.
            _ => Mode::Array,
        }
    }

    /// Programming clears bits.
    fn program(&mut self, words: &[(u64, u64)]) {
        for &(offset, value) in words {
            if self.locked[self.block_of(offset) as usize] {
                self.status |= LOCKED | PROGRAM_FAILED;
                return;
            }
            self.memory.write(offset, self.memory.read(offset) & value);
        }
    }

    fn erase(&mut self, offset: u64, confirm: u8) {
        let block = self.block_of(offset);
        if confirm != 0xd0 {
            self.status |= ERASE_FAILED | PROGRAM_FAILED;
        } else if self.locked[block as usize] {
            self.status |= LOCKED | ERASE_FAILED;
        } else {
            self.fill(block);
        }
    }

    fn fill(&mut self, block: u64) {
        for offset in (block * BLOCK..(block + 1) * BLOCK).step_by(8) {
            self.memory.write(offset, u64::MAX);
        }
    }

    fn set_lock(&mut self, offset: u64, command: u8) {
        let block = self.block_of(offset) as usize;
        match command {
            0x01 => self.locked[block] = true,
            0xd0 => self.locked[block] = false,
            _ => self.status |= ERASE_FAILED | PROGRAM_FAILED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flash() -> Flash {
        Flash::new(4).expect("memory")
    }

    fn read(flash: &Flash, offset: u64) -> u64 {
        let mut data = [0; 8];
        flash.read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    fn write(flash: &mut Flash, writes: &[(u64, u64)]) {
        for (offset, value) in writes {
            flash.write(*offset, &value.to_le_bytes());
        }
    }

    fn status(flash: &mut Flash) -> u16 {
        write(flash, &[(0, 0x70)]);
        read(flash, 8) as u16
    }

    #[test]
    fn starts_erased_in_array_mode() {
        let flash = flash();
        assert!(flash.in_array_mode());
        assert_eq!(read(&flash, 3 * BLOCK), u64::MAX);
    }

    #[test]
    fn the_query_finds_the_geometry() {
        let mut flash = flash();
        write(&mut flash, &[(0x55 * BUS, 0x98)]);
        let at = |word: u64| read(&flash, word * BUS) as u16;
        assert_eq!([at(0x10), at(0x11), at(0x12)], [b'Q', b'R', b'Y'].map(u16::from));
        // In each chip's lanes.
        assert_eq!(read(&flash, 0x10 * BUS), 0x0051_0051_0051_0051);
        let blocks = u64::from(at(0x2d)) + (u64::from(at(0x2e)) << 8) + 1;
        let block = (u64::from(at(0x2f)) + (u64::from(at(0x30)) << 8)) * 256;
        assert_eq!((blocks, block * CHIPS), (4, BLOCK));
        assert_eq!((1 << at(0x27)) * CHIPS, 4 * BLOCK);
        assert_eq!(1 << at(0x2a), BUFFER_WORDS * 2);
        assert_eq!([at(0x31), at(0x32), at(0x33)], [b'P', b'R', b'I'].map(u16::from));
        write(&mut flash, &[(0, 0xff)]);
        assert!(flash.in_array_mode());
    }

    #[test]
    fn programming_clears_bits_and_erasing_sets_them() {
        let mut flash = flash();
        write(&mut flash, &[(16, 0x40), (16, 0x1234), (24, 0x10), (24, 0xff00)]);
        assert_eq!(status(&mut flash), READY);
        write(&mut flash, &[(16, 0x40), (16, 0x0ff0), (0, 0xff)]);
        assert_eq!((read(&flash, 16), read(&flash, 24)), (0x0230, 0xff00));
        assert_eq!(read(&flash, 32), u64::MAX);
        write(&mut flash, &[(BLOCK - 8, 0x20), (BLOCK - 8, 0xd0), (0, 0xff)]);
        assert_eq!(read(&flash, 16), u64::MAX);
    }

    #[test]
    fn a_buffer_is_programmed_when_it_is_confirmed() {
        let mut flash = flash();
        write(&mut flash, &[(BLOCK, 0xe8), (BLOCK, 1), (BLOCK, 7), (BLOCK + 8, 8)]);
        assert_eq!(flash.memory.read(BLOCK), u64::MAX, "not yet");
        write(&mut flash, &[(BLOCK, 0xd0), (0, 0xff)]);
        assert_eq!((read(&flash, BLOCK), read(&flash, BLOCK + 8)), (7, 8));
        write(&mut flash, &[(BLOCK, 0xe8), (BLOCK, 16)]);
        assert_eq!(status(&mut flash), READY | PROGRAM_FAILED | ERASE_FAILED, "too many");
        write(&mut flash, &[(0, 0x50), (0, 0xe8), (0, 0), (0, 1), (0, 0xff)]);
        assert_eq!(status(&mut flash), READY | PROGRAM_FAILED | ERASE_FAILED, "not confirmed");
        assert_eq!(flash.memory.read(0), u64::MAX);
    }

    #[test]
    fn locked_blocks_stay_as_they_are() {
        let mut flash = flash();
        write(&mut flash, &[(BLOCK, 0x60), (BLOCK, 0x01)]);
        write(&mut flash, &[(BLOCK, 0x40), (BLOCK, 5)]);
        assert_eq!(status(&mut flash), READY | LOCKED | PROGRAM_FAILED);
        write(&mut flash, &[(0, 0x50), (BLOCK, 0x20), (BLOCK, 0xd0)]);
        assert_eq!(status(&mut flash), READY | LOCKED | ERASE_FAILED);
        write(&mut flash, &[(0, 0x90)]);
        let locks = [0, 1].map(|block| read(&flash, block * BLOCK + 2 * BUS) as u16);
        assert_eq!((read(&flash, 0) as u16, read(&flash, BUS) as u16), (MANUFACTURER, DEVICE));
        assert_eq!(locks, [0, 1]);
        write(&mut flash, &[(0, 0x50), (BLOCK, 0x60), (BLOCK, 0xd0)]);
        write(&mut flash, &[(BLOCK, 0x40), (BLOCK, 5)]);
        assert_eq!((status(&mut flash), flash.memory.read(BLOCK)), (READY, 5));
    }

    #[test]
    fn an_erase_that_is_not_confirmed_is_none() {
        let mut flash = flash();
        write(&mut flash, &[(0, 0x40), (0, 5), (0, 0x20), (0, 0xff)]);
        assert_eq!(status(&mut flash), READY | ERASE_FAILED | PROGRAM_FAILED);
        assert_eq!(flash.memory.read(0), 5);
    }

    #[test]
    fn any_width() {
        let mut flash = flash();
        write(&mut flash, &[(8, 0x40), (8, 0x1122_3344_5566_7788), (0, 0xff)]);
        let mut data = [0; 3];
        flash.read(9, &mut data);
        assert_eq!(data, [0x77, 0x66, 0x55]);
        flash.write(0, &[0x90]);
        flash.read(BUS + 4, &mut data);
        assert_eq!(data, [0x18, 0, 0x18]);
    }
}
