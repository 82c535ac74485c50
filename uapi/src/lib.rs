//! The ABI of `KVM_SET_USER_MEMORY_REGIONS`: many KVM memslot changes in one
//! ioctl, which waits for one SRCU grace period (two where anything is deleted
//! or moved) instead of one or two for each.
//!
//! This crate holds the structures, the numbers and the flags, to the byte as
//! `include/kvm_memslots.h` has them for C, and [`probe`](probe::probe), which
//! finds out whether a kernel has the ioctl. It makes no system call itself:
//! `kvm-memslots-shim` does, and `kvm-memslots` is what a VMM links.
//!
//! Beside it stands the slot flag `KVM_MEM_TRAP` ([`MemFlags::TRAP`]), which
//! turns a slot off and on again for vCPUs without a grace period, with a
//! probe of its own, [`probe_trap`](probe::probe_trap).
//!
//! The crate uses `core` and `alloc` only. (`kvm-bindings`, whose
//! `kvm_userspace_memory_region2` is the entry of the array, links `std`.)
//!
//! ```
//! use kvm_memslots_uapi::{MemoryRegions, MemoryRegionsFlags, kvm_userspace_memory_region2};
//!
//! let ram = kvm_userspace_memory_region2 {
//!     slot: 0,
//!     guest_phys_addr: 0,
//!     memory_size: 0x10_0000,
//!     userspace_addr: 0x7f00_0000_0000,
//!     ..Default::default()
//! };
//! let regions = MemoryRegions::from_entries(0, MemoryRegionsFlags::DRY_RUN, &[ram])?;
//! assert_eq!(regions.header().nr, 1);
//! # Ok::<(), kvm_memslots_uapi::EntryError>(())
//! ```
#![no_std]

extern crate alloc;

mod flags;
pub mod irqfd;
mod numbers;
pub mod probe;
mod regions;

pub use flags::{MemFlags, MemoryRegionsFlags};
pub use kvm_bindings::{kvm_userspace_memory_region, kvm_userspace_memory_region2};
pub use numbers::{
    KVM_CAP_MEM_READONLY_FLIP, KVM_CAP_MEM_TRAP, KVM_CAP_USER_MEMORY_REGIONS,
    KVM_SET_USER_MEMORY_REGIONS, KVM_SET_USER_MEMORY_REGIONS_NR, KVMIO,
};
pub use regions::{EntryError, MAX_ENTRIES, MemoryRegions, kvm_userspace_memory_regions};

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
