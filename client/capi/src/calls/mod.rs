//! The functions of the header, which documents them.

mod changes;
mod deferred;
mod devices;
mod dirty;
mod lookups;
mod pci;
mod rings;
mod roms;
mod triggers;
mod vm;
mod windows;

pub use changes::*;
pub use deferred::*;
pub use devices::*;
pub use dirty::*;
pub use lookups::*;
pub use pci::*;
pub use rings::*;
pub use roms::*;
pub use triggers::*;
pub use vm::*;
pub use windows::*;

use std::ffi::c_int;

use kvm_memslots::{Errno, Report, Vm};

use crate::committer::Committing;
use crate::failure::Failure;
use crate::handles::{Handle, shared};
use crate::last::report;
use crate::record::{Out, read};
use crate::types::CReport;

/// Runs `f` on a VM of this process.
///
/// # Safety
/// As [the crate](crate#safety).
pub(crate) unsafe fn with_vm<R>(
    vm: *const Handle<Vm>,
    f: impl FnOnce(&Vm) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let here = |vm: &Vm| {
        // Locks of it may be held by threads that a fork does not have.
        if vm.is_forked() {
            let message = "this process is a fork of the one that opened the VM";
            return Err(Failure::new(Errno::EIO, message));
        }
        f(vm)
    };
    // SAFETY: as the caller says; a VM can be shared.
    unsafe { shared(vm, here) }
}

/// The same, for C.
///
/// # Safety
/// As [the crate](crate#safety).
unsafe fn on(vm: *const Handle<Vm>, f: impl FnOnce(&Vm) -> Result<(), Failure>) -> c_int {
    // SAFETY: as the caller says.
    report(|| unsafe { with_vm(vm, f) })
}

/// Where a report goes, and what the caller gave in it.
struct Wanted {
    given: Option<CReport>,
    out: Out<CReport>,
    _committer: Committing,
}

impl Wanted {
    /// # Safety
    /// As [the crate](crate#safety).
    unsafe fn new(cost: *mut CReport) -> Result<Self, Failure> {
        // SAFETY: as the caller says.
        let given = (!cost.is_null()).then(|| unsafe { read(cost) }).transpose()?;
        // SAFETY: as the caller says.
        let out = unsafe { Out::new(cost) }?;
        let committer = given.as_ref().map_or(std::ptr::null_mut(), |given| given.committer);
        Ok(Self { given, out, _committer: Committing::by(committer) })
    }

    fn done(self, report: &Report) {
        let cost = CReport::new(report, self.given.as_ref());
        self.out.put(cost);
        cost.hand_out(report);
    }

    fn done_if_any(self, report: Option<&Report>) {
        match report {
            Some(report) => self.done(report),
            None => self.out.put(CReport::nothing(self.given.as_ref())),
        }
    }
}
