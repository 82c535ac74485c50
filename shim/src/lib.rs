//! Plans KVM memslot changes with the fewest ioctls and grace periods, and
//! carries the plan out.
//!
//! - [`memory`]: memslots. A pure planner, an executor that gets back where it
//!   was if a call fails, and who answers the calls.
//! - [`events`]: ioeventfds, irqfds and interrupt routes, in the same words.
//! - [`kvm`]: KVM behind a VM fd, which answers for both. With the feature `model`
//!   there are in-memory models of it beside it, for tests.
//! - [`bits`]: runs of bits in dirty bitmaps; [`Pages`]: those of a guest's pages.
//!
//! A VMM uses the `kvm-memslots` crate, which keeps regions, transactions and
//! dirty logs on top of this one.
//!
//! # Words
//! A *mapping* says which host memory stands behind which guest addresses. A
//! *slot* is a mapping that KVM has, under an id. An *extent* is a mapping
//! that is wanted. GPA, HVA and sizes are in bytes; a *hole* is a time in
//! which guest pages that are mapped before and after a plan are not mapped.
//! An *op* is one change; a *plan* of them has a *cost*, and is *done*,
//! *refused* (all is as it was) or *stuck* (it is not, and the error says what
//! is).

pub mod bits;
mod errno;
pub mod events;
#[cfg(feature = "model")]
mod fault;
mod guard;
mod ids;
pub mod kvm;
mod limits;
mod mapping;
pub mod memory;
mod pages;
mod range;
#[cfg(feature = "model")]
mod yes;

pub use errno::Errno;
pub use guard::Failed;
pub use ids::SlotIds;
pub use kvm::{Kvm, KvmOptions, OpenError};
pub use kvm_memslots_uapi as uapi;
pub use kvm_memslots_uapi::MemFlags;
pub use limits::{EventLimits, Limits};
pub use mapping::{GuestMemfd, Kind, Mapping, Slot};
pub use pages::Pages;
pub use range::Range;
#[cfg(feature = "model")]
pub use yes::Yes;
