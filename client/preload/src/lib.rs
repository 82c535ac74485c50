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
//! - `vm`, `run` do it, with one lock a VM under which no signal handler runs.
//! - `calls` finds out which call is whose: `root` has a table by number, in memory
//!   that a child finds empty; `mark` asks the kernel whether it is still so.
//! - `memory` touches the VMM's memory, `sys` makes system calls, both without a
//!   signal or an `errno` that the VMM would see.
//! - `seccomp` is where all of it ends.
//! - [`exports`] is what the dynamic linker finds; under other names in this
//!   crate's own tests, which would else run through it.

// Registers hold any of the types that arguments of system calls have, and these
// arguments are numbered.
#![allow(clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::many_single_char_names)]

mod abi;
mod call;
mod calls;
mod counts;
mod decide;
mod end;
pub mod exports;
mod kvm;
mod lock;
mod mark;
mod memory;
mod next;
mod numbers;
mod process;
mod root;
mod run;
mod seccomp;
mod settings;
mod stats;
mod sys;
mod vcpu;
mod vm;
mod why;
