//! Whole devices on the models of KVM.
#![allow(clippy::unwrap_used, clippy::needless_for_each, clippy::ignored_unit_patterns)]

mod bad_input;
mod doorbells;
mod faults;
#[path = "../common/host.rs"]
mod host;
mod in_window;
mod lifecycle;
#[path = "../common/numbers.rs"]
mod numbers;
mod programs;
mod random;
mod rig;
mod twins;
mod vectors;
mod zones;
