//! The functions of the header, which documents them.

mod changes;
mod devices;
mod dirty;
mod lookups;
mod vm;

pub use changes::*;
pub use devices::*;
pub use dirty::*;
pub use lookups::*;
pub use vm::*;

use std::ffi::c_int;

use kvm_memslots::Vm;

use crate::failure::{Failure, report};
use crate::record::get;

/// Runs `f` on a VM.
///
/// # Safety
/// As [the crate](crate#safety).
unsafe fn on(vm: *const Vm, f: impl FnOnce(&Vm) -> Result<(), Failure>) -> c_int {
    // SAFETY: null, or a VM that nobody frees meanwhile; it can be shared.
    report(|| f(unsafe { get(vm, "vm") }?))
}
