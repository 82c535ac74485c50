//! Benchmarks of memslot changes: real guest code, grace periods counted by
//! the kernel, and the scenarios that the `memslots` command line tool runs.

#![warn(clippy::print_stderr, clippy::print_stdout)]

pub mod bench;
pub mod cli;
pub mod compare;
pub mod density;
pub mod devices;
pub mod doctor;
pub mod flash;
pub mod fleet;
pub mod limit;
mod note;
pub mod replay;
pub mod report;
pub mod rig;
pub mod scenario;
pub mod spent;
pub mod start;
pub mod strategy;
mod timed;
pub mod trace;
pub mod way;
pub mod window;

/// The example in the repository's README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// So do those of the guide.
#[cfg(doctest)]
mod guide {
    #[doc = include_str!("../../docs/guide/memory.md")]
    struct Memory;

    #[doc = include_str!("../../docs/guide/deferral.md")]
    struct Deferral;
}
