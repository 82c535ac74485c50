//! What callbacks may do, and what becomes of the VM when they panic.
#![allow(clippy::unwrap_used, clippy::needless_for_each, clippy::ignored_unit_patterns)]

mod fork;
#[path = "../common/host.rs"]
mod host;
mod observers;
mod panics;
mod reentrancy;
mod rig;
mod threads;
#[path = "../common/told.rs"]
mod told;
