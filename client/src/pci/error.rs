//! What can be wrong with a function, or with a config write.

use kvm_memslots_shim::Errno;
use thiserror::Error;

use super::id::FunctionId;

/// What can be wrong with a function, or with a config write.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PciError {
    /// The function was removed, or is of another [`PciBars`](super::PciBars).
    #[error("{0:?} is not here: it was removed, or is another PciBars'")]
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
    /// I/O ports are no memory.
    #[error("an I/O BAR has no memory")]
    WindowInPorts,
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
            Self::UnknownFunction(_) => Errno::ENOENT,
            _ => Errno::EINVAL,
        }
    }
}
