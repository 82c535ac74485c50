//! Preloaded into a VMM that knows nothing of it (`LD_PRELOAD`), this library
//! stands in front of `ioctl`. A memslot that keeps being removed and added
//! again, unchanged, is then flipped by its trap bit, where the kernel has
//! `KVM_MEM_TRAP`; elsewhere it is added only once that is worth it, and guest
//! reads are served from host memory until then.
//!
//! What it does, when it switches itself off, and the variables that it reads:
//! the README beside it.
//!
//! - `decide` knows what to do, and makes no system call.
//! - `vm`, `vcpu` do it, with one lock a VM; `calls` finds out which call is
//!   whose, by the table of file descriptors.
//! - [`exports`] is what the dynamic linker finds; under other names in this
//!   crate's own tests, which would else run through it.

mod abi;
mod calls;
mod copy;
mod decide;
pub mod exports;
mod kvm;
mod next;
mod process;
mod settings;
mod stats;
mod table;
mod vcpu;
mod vm;
