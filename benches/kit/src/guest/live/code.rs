//! The guest programs, and the mailbox through which host and guest talk.
//!
//! A program is entered with the guest addresses of its mailbox and of the
//! doorbell, [`DOORBELL_GPA`], in registers. It uses no stack, takes no
//! interrupts and never ends: where it wants the host, it rings the doorbell.

use crate::guest::MAPPED_END;
use crate::host::SMALL_PAGE;

/// What a program writes to at the end of a round: an address without a slot,
/// so that it comes out as an MMIO exit.
pub(super) const DOORBELL_GPA: u64 = MAPPED_END - SMALL_PAGE;

/// Offsets into the mailbox, in bytes.
pub(super) mod mailbox {
    /// Guest to host: grows while the program makes progress.
    pub(crate) const PROGRESS: u64 = 0;
    /// Host to guest, fault-in: the range and how far apart the writes are.
    pub(crate) const RANGE: u64 = 8;
    pub(crate) const END: u64 = 16;
    pub(crate) const STRIDE: u64 = 24;
    /// Host to guest, probe: how many accesses there are.
    pub(crate) const COUNT: u64 = 8;
    /// Guest to host, probe: the one that is being done.
    pub(crate) const CURRENT: u64 = 16;
    /// The accesses: address, value (in or out), 1 for a write, 2 for a read
    /// that KVM can't decode, 3 for a call; bytes.
    pub(crate) const ACCESSES: u64 = 64;
    pub(crate) const ACCESS_SIZE: u64 = 32;
    /// Bytes of a mailbox.
    pub(crate) const SIZE: u64 = 128 << 10;
    /// How many accesses fit.
    pub(crate) const CAPACITY: usize = ((SIZE - ACCESSES) / ACCESS_SIZE) as usize;
}

unsafe extern "C" {
    static kvm_memslots_guest_code: u8;
    static kvm_memslots_guest_spin: u8;
    static kvm_memslots_guest_fault_in: u8;
    static kvm_memslots_guest_probe: u8;
    static kvm_memslots_guest_end: u8;
}

/// Where a program starts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Program {
    Spin,
    FaultIn,
    Probe,
}

impl Program {
    /// Bytes from the start of [`code`] to the entry.
    pub(super) fn entry(self) -> u64 {
        let start = &raw const kvm_memslots_guest_code;
        let entry = match self {
            Self::Spin => &raw const kvm_memslots_guest_spin,
            Self::FaultIn => &raw const kvm_memslots_guest_fault_in,
            Self::Probe => &raw const kvm_memslots_guest_probe,
        };
        (entry.addr() - start.addr()) as u64
    }
}

/// All programs, position-independent.
pub(super) fn code() -> &'static [u8] {
    let start = &raw const kvm_memslots_guest_code;
    let end = &raw const kvm_memslots_guest_end;
    // SAFETY: both are labels of the architecture's block of code, `end` behind `start`, and
    // what lies between is initialised data that never changes.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}
