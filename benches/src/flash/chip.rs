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
