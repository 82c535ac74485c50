//! Real guest code, beside whatever memory a test or benchmark gives the VM.
//!
//! Everything the guest code needs (page tables, code, mailboxes, memory to
//! fault in) lives in one slot at [`OWN_GPA`], out of the way of what is
//! tested. It stands for the slots that a VMM holds beside the ones that the
//! library manages: its id is the caller's choice, to be reserved there.
//!
//! - [`Prober`]: one vCPU that does the accesses it is given and says for each
//!   whether it reached memory or came out as an MMIO exit.
//! - [`BusyVcpus`]: vCPUs on threads of their own that spin, or fault memory in
//!   and lose it again; a [`VcpuGate`](kvm_memslots::VcpuGate)
//!   pauses them.
//! - `interrupted::Interrupted` (x86-64): a vCPU that counts interrupts by
//!   vector and writes where it is told to, ports included.
//!
//! The guest is entered where it is to run, with no firmware and no mode
//! switches: x86-64 in long mode, which is all that a pagetable-based KVM under
//! a hypervisor runs reliably, and any other KVM runs too; arm64 at EL1. On
//! other architectures the constructors return [`GuestError::Unsupported`].

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod live;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub use live::{BusyVcpus, Prober};

#[cfg(target_arch = "x86_64")]
pub use live::enter_long_mode;

#[cfg(target_arch = "x86_64")]
pub mod interrupted;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod unsupported;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub use unsupported::{BusyVcpus, Prober};

use std::time::Duration;

use nix::errno::Errno;
use thiserror::Error;

use crate::host::Pages;

/// Where the guest code's own slot starts: 448 GiB, which the 39 bits of the
/// narrowest x86-64 guest physical address, and KVM's default of 40 bits on
/// arm64, reach.
pub const OWN_GPA: u64 = 0x70_0000_0000;

/// The first address that the guest's identity map does not reach: 512 GiB.
pub const MAPPED_END: u64 = 1 << 39;

/// One access, of 8 bytes if nothing else is said, for a [`Prober`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read the word at this guest address, a multiple of 8.
    Read(u64),
    /// Write this value to this guest address, a multiple of 8.
    Write(u64, u64),
    /// Read 1, 2, 4 or 8 bytes at this guest address, a multiple of that.
    Load(u64, u8),
    /// Write so many of the value's lowest bytes to this guest address, a
    /// multiple of their number.
    Store(u64, u8, u64),
    /// Read the word at this guest address, a multiple of 8, with an
    /// instruction that KVM can't carry out itself. On x86-64 what is found is
    /// how many bits are set (`popcnt`), on arm64 the word (`ldp`).
    Undecodable(u64),
    /// Call the code at this guest address, a multiple of 8, as
    /// [`code_returning`] makes it; what it returns is found.
    Execute(u64),
}

/// Code for [`Access::Execute`] that returns `value`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[must_use]
pub fn code_returning(value: u64) -> Vec<u8> {
    live::returning(value)
}

impl Access {
    /// The guest address.
    #[must_use]
    pub const fn gpa(self) -> u64 {
        match self {
            Self::Read(gpa)
            | Self::Write(gpa, _)
            | Self::Load(gpa, _)
            | Self::Store(gpa, ..)
            | Self::Undecodable(gpa)
            | Self::Execute(gpa) => gpa,
        }
    }

    /// How many bytes.
    #[must_use]
    pub const fn width(self) -> u8 {
        match self {
            Self::Load(_, width) | Self::Store(_, width, _) => width,
            Self::Read(_) | Self::Write(..) | Self::Undecodable(_) | Self::Execute(_) => 8,
        }
    }
}

/// What became of an [`Access`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The read reached memory, which held this.
    Value(u64),
    /// The write reached memory.
    Written,
    /// It came out as an MMIO exit: no slot there, or a write to a read-only
    /// one.
    Mmio,
}

/// An access that came out as an MMIO exit, for whoever plays the device.
#[derive(Debug)]
pub enum Mmio<'a> {
    /// A read at this guest address: the answer goes here.
    Read(u64, &'a mut [u8]),
    /// A write at this guest address.
    Write(u64, &'a [u8]),
    /// No MMIO: KVM could not decode the access. Whether to run the vCPU again,
    /// which is not done unless this is set.
    Undecoded(&'a mut bool),
}

/// What a busy vCPU does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Spins, touching one page.
    Spin,
    /// Writes to each page of a range of `bytes`; then the host takes the
    /// pages away (`MADV_DONTNEED`), and it starts again.
    FaultIn {
        /// Length of the range, rounded up to 2 MiB.
        bytes: u64,
        /// Which pages back it, and how far apart the writes are.
        pages: Pages,
    },
    /// Writes to each small page of memory that somebody else maps, over and
    /// over. A page that is not there comes out as MMIO and ends the guest.
    Touch {
        /// Where the memory is mapped.
        gpa: u64,
        /// Its length.
        bytes: u64,
    },
}

/// Why guest code could not be run, or stopped running.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum GuestError {
    /// There is guest code for x86-64 and arm64 only.
    #[error("there is no guest code for {}, only for x86_64 and aarch64", std::env::consts::ARCH)]
    Unsupported,
    /// A call to KVM failed.
    #[error("{call}: {errno}")]
    Kvm {
        /// The ioctl.
        call: &'static str,
        /// Its errno.
        errno: Errno,
    },
    /// A call to the host failed.
    #[error("{call}: {errno}")]
    Host {
        /// The call.
        call: &'static str,
        /// Its errno.
        errno: Errno,
    },
    /// An access that the guest code does not do.
    #[error(
        "{access:?}: the address has to be a multiple of the width, 1, 2, 4 or 8, below {MAPPED_END:#x}"
    )]
    BadAccess {
        /// The access.
        access: Access,
    },
    /// More vCPUs, or more memory, than the slot at [`OWN_GPA`] has room for.
    #[error("{vcpus} vCPUs with {bytes} bytes each do not fit below GPA {MAPPED_END:#x}")]
    TooLarge {
        /// How many vCPUs were asked for.
        vcpus: usize,
        /// How much memory for each.
        bytes: u64,
    },
    /// The vCPU came out of `KVM_RUN` for a reason that ends the guest.
    #[error("the guest stopped at {pc:#x}: {exit}")]
    Died {
        /// The address of the instruction, as far as it is known.
        pc: u64,
        /// The exit.
        exit: String,
    },
    /// The thread of a vCPU panicked.
    #[error("the thread of vCPU {index} panicked")]
    Panicked {
        /// Which vCPU.
        index: usize,
    },
    /// A vCPU did not do in time what it was waited for.
    #[error("vCPU {index} {what} within {waited:?}")]
    Late {
        /// Which vCPU.
        index: usize,
        /// What it did not do.
        what: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
}

impl GuestError {
    /// For `map_err`: `call` was refused.
    pub fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm { call, errno: Errno::from_raw(error.errno()) }
    }

    #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), expect(dead_code))]
    fn host(call: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Host { call, errno }
    }
}
