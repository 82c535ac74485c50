//! The executor against the model: what it leaves behind when a call fails or
//! panics, and that it never loses a dirty page.
#![allow(clippy::unwrap_used, missing_docs)]

mod batch;
mod dirty;
mod errors;
mod faults;
mod panics;
mod script;
mod worlds;
