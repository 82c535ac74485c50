//! Plans KVM memslot changes with the fewest ioctls and grace periods, and
//! carries the plan out.
//!
//! Three rooms, which meet only in the types of [`layout`]:
//!
//! - [`planner`]: pure. Live slots and wanted memory in, an ordered [`Plan`]
//!   with its cost out. No I/O, no KVM.
//! - [`exec`]: carries a plan out, in one batch ioctl or call by call, and
//!   undoes it if a call fails. No decisions.
//! - [`backend`]: who answers the calls: KVM behind a VM fd, or the in-memory
//!   [`Model`](backend::Model) of it.
//!
//! Beside them [`eventing`]: ioeventfds, irqfds and interrupt routes, with a
//! planner, an executor, KVM and a model of their own.
//!
//! A VMM uses the `kvm-memslots` crate, which keeps regions, transactions and
//! dirty logs on top of this one.
//!
//! # Words
//! A *mapping* says which host memory stands behind which guest addresses. A
//! *slot* is a mapping that KVM has, under an id. An *extent* is a mapping
//! that is wanted. GPA, HVA and sizes are in bytes; a *hole* is a time in
//! which guest pages that are mapped before and after a plan are not mapped.

pub mod backend;
pub mod eventing;
pub mod exec;
pub mod layout;
pub mod planner;

pub use kvm_memslots_uapi as uapi;
pub use kvm_memslots_uapi::MemFlags;
pub use layout::{Extent, GuestMemfd, Kind, Limits, Mapping, Range, Slot, SlotIds};
pub use planner::{Carry, Cost, Op, Plan, PlanError, Request, plan};
