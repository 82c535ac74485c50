//! Memslots: who answers for them, what leads from one layout to another, and
//! what carries it out.
//!
//! [`plan`] is pure: live slots and wanted memory in, a [`Plan`] of [`Op`]s with
//! its [`Cost`] out. [`execute`] makes the calls, and undoes them if one fails:
//! [`Done`], or [`Failed`] with what is live then. [`MemoryCalls`] is who
//! answers: [`Kvm`](crate::Kvm), or the `Model` of it (feature `model`).

pub mod advice;
mod batch;
mod calls;
mod exec;
mod kvm;
#[cfg(feature = "model")]
pub mod model;
mod op;
mod plan;

pub use calls::{BatchRefusal, MemoryCalls};
pub use exec::{Done, Failed, SavedDirty, Why, check, execute, execute_one};
#[cfg(feature = "model")]
pub use model::Model;
pub use op::{Cost, How, Op};
pub use plan::{Carry, Extent, Plan, PlanError, Request, plan};
