//! Deferred maps: on the model, with real memory behind the regions.
#![allow(clippy::unwrap_used)]

mod faults;
mod layouts;
mod memory;
mod promotion;
mod serving;
mod short;
mod sizes;
mod threads;
