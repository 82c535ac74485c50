//! What can be wrong with a function, or with a config write.

use kvm_memslots_shim::Errno;
use thiserror::Error;

use super::id::FunctionId;
use crate::window::{WindowError, WindowErrorKind};

/// What can be wrong with a function, or with a config write.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PciError {
    /// The function was removed, or is of another [`PciBars`](super::PciBars).
    #[error("{0} is not here: it was removed, or is another PciBars'")]
    UnknownFunction(FunctionId),
    /// There are 6 BARs, of a bridge 2; one of 64 bits takes two.
    #[error("there is no room for BAR {index}: a function has {registers} of 32 bits")]
    NoSuchBar {
        /// The BAR.
        index: usize,
        /// How many registers there are.
        registers: usize,
    },
    /// The register belongs to another BAR.
    #[error("BAR {index} is described twice, or is the upper half of a 64-bit one")]
    TakenBar {
        /// The BAR.
        index: usize,
    },
    /// Sizes are powers of two: of memory from 16 bytes on, of I/O from 4, of a
    /// ROM from 2 KiB to 16 MiB; with 32 bits up to 2 GiB.
    #[error("a BAR of this kind can't be {size:#x} bytes large")]
    BadSize {
        /// The size.
        size: u64,
    },
    /// A window lies in its BAR.
    #[error("the window of {size:#x} bytes at {offset:#x} is not in the BAR of {bar:#x} bytes")]
    Outside {
        /// Where in the BAR it starts.
        offset: u64,
        /// Its length.
        size: u64,
        /// The BAR's.
        bar: u64,
    },
    /// Two windows of a BAR overlap.
    #[error("two windows of a BAR overlap at {offset:#x}")]
    WindowsOverlap {
        /// Where the second one starts.
        offset: u64,
    },
    /// Two doorbells of a BAR overlap, or there is a write that both are for
    /// (`ioeventfd_check_collision()` in `virt/kvm/eventfd.c`).
    #[error(
        "two doorbells of a BAR overlap, the second one is at {offset:#x}: several are at one \
         offset only if each has a value or a length of its own, and none of any length"
    )]
    DoorbellsOverlap {
        /// Where the second one starts.
        offset: u64,
    },
    /// I/O ports are no memory.
    #[error("an I/O BAR has no memory")]
    WindowInPorts,
    /// Memory of a BAR that the guest has put in a
    /// [window](super::PciBars::in_window), and that is in no file, traps or is
    /// private.
    #[error(
        "the memory can't be placed in the window that the guest has put it in: say where in a \
         file it is (Backing::with_file) before the function is added"
    )]
    NoFile,
    /// The same, of which the file can't be placed.
    #[error("the memory can't be placed in the window that the guest has put it in: {0}")]
    File(WindowErrorKind),
    /// A doorbell that the guest has put where a window is memory.
    #[error("KVM signals no doorbell where a window is memory; move the BAR out of the window")]
    InMemory,
    /// The guest has put a window or a doorbell on top of something that comes first.
    #[error("a region that is no BAR is there, or a part of a BAR that comes first; move the BAR")]
    Taken,
    /// Memory of a BAR that the guest has put outside of all windows.
    #[error("outside of the windows, and PciBars::without_slots allows no slot")]
    NoSlot,
    /// A window was not changed. The registers have the new values all the same;
    /// [`PciBars::sync`](super::PciBars::sync) tries again.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// The changes were not applied. The registers have the new values all the
    /// same; [`PciBars::sync`](super::PciBars::sync) tries again.
    #[error(transparent)]
    Vm(#[from] crate::Error),
}

impl PciError {
    /// KVM's errno where KVM refused something; else what says best what was
    /// wrong.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Vm(error) => error.errno(),
            Self::Window(error) => error.errno(),
            Self::File(kind) => kind.errno(),
            Self::NoFile => Errno::ENODEV,
            Self::NoSlot => Errno::ENOSPC,
            Self::InMemory | Self::Taken => Errno::EEXIST,
            Self::UnknownFunction(_) => Errno::ENOENT,
            _ => Errno::EINVAL,
        }
    }
}
