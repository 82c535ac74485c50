//! The C interface of `kvm-memslots`, as `include/kvm_memslots_client.h` has
//! it. Rust uses `kvm-memslots` itself.
//!
//! `struct kvm_memslots_vm` is a [`Handle`] of a [`Vm`], `struct
//! kvm_memslots_changes` one of a [`CChanges`]. No panic leaves the library; a
//! [`Vm`] is whole after one.
//!
//! # Safety
//! What the header asks of the caller: a pointer is null, or points to what its
//! type says for as long as the call takes, a structure to as many bytes as its
//! `size` says; handles are what this library gave and nobody has freed; one
//! thread uses a set of changes or a device at a time; `vm_fd` is open; the
//! functions of a gate, an observer or a harvest may be called on any thread,
//! with their `opaque`, until the VM is gone, and `release` once; nothing
//! unwinds out of them; and a backing keeps what it promises.

mod calls;
mod changes;
mod committer;
mod constants;
mod device;
mod failure;
mod handles;
mod last;
mod names;
mod record;
mod trigger;
mod types;

pub use calls::*;
pub use changes::CChanges;
pub use constants::*;
pub use device::CDevice;
pub use handles::{Handle, Held, give};
#[doc(no_inline)]
pub use kvm_memslots::{
    CoalescedRing, RomDevice, Vm, deferred::Deferred, pci::PciBars, window::Window,
};
pub use last::{CError, kvm_memslots_last_error, kvm_memslots_last_error_info};
pub use record::Structure;
pub use trigger::CTrigger;
pub use types::*;
