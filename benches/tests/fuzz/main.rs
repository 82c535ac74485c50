//! Fuzzing on stable Rust: bytes that a mutator makes of a small corpus, the same
//! each time, go into what reads bytes from outside.
//!
//! `MEMSLOTS_FUZZ_SECONDS=3600 cargo test -p kvm-memslots-bench --test fuzz` goes
//! on for an hour each, with other bytes each time; `MEMSLOTS_FUZZ_SEED` makes it
//! those of a run before. The input that is running is in the folder for temporary
//! files, as `fuzz-*.input`. One that brings something down stays there, however the
//! process ends. It belongs into `tests/data/fuzz` then, from where each run starts.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)]

mod calls;
mod changes;
mod common;
mod engine;
mod pci;
// The random program of the library's own tests.
#[path = "../../../client/tests/model/pci_program/mod.rs"]
mod pci_program;
mod traces;
