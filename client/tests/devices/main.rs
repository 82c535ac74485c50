//! Whole devices on the models of KVM.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod faults;
mod lifecycle;
mod random;
mod rig;
