//! Benchmarks of memslot changes: real guest code, grace periods counted by
//! the kernel, and the scenarios that the `memslots` command line tool runs.

pub mod guest;
pub mod host;
