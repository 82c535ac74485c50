//! Ioeventfds, coalesced zones, irqfds and interrupt routes: how a VM's devices and its guest
//! signal each other without an exit to the VMM.
//!
//! As for memory: [`plan`] is pure, and says which [`Op`]s lead from one
//! [`State`] to another; [`execute`] makes the calls and undoes them if one
//! fails: [`Done`], or [`Failed`] with what is live then. [`EventCalls`] is who
//! answers: [`Kvm`](crate::Kvm), or the `Model` of it (feature `model`).
//!
//! # Words
//! A *GSI* is the number by which KVM knows an interrupt; a *route* says what
//! raising it does: a message to a local APIC or ITS (MSI), or a pin of an
//! interrupt controller in the kernel. An *irqfd* raises a GSI when an eventfd
//! is signalled; an *ioeventfd* signals an eventfd when the guest writes to an
//! address.

#[cfg(feature = "model")]
mod bus;
mod calls;
mod delta;
mod error;
mod exec;
mod gsis;
mod kvm;
#[cfg(feature = "model")]
pub mod model;
mod op;
mod part;
mod plan;
mod routes;
mod state;
mod types;
mod zone;

pub use crate::limits::{EventLimits, ZoneLimits};
pub use calls::EventCalls;
pub use delta::{Delta, Parts};
pub use error::{Failed, Why};
pub use exec::{Done, execute};
pub use gsis::Gsis;
#[cfg(feature = "model")]
pub use model::Model;
pub use op::{Cost, Op, Waits};
pub use part::Part;
pub use plan::{Plan, plan, plan_delta};
pub use routes::Routes;
pub use state::State;
pub use types::{Bus, Ioeventfd, Irqfd, Msi, Route, RouteTarget};
pub use zone::{Zone, ZoneWrite};
