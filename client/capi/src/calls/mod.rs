//! The functions of the header, which documents them.
//!
//! # Safety
//! Of each function here: as [the crate](crate#safety) says.
#![allow(missing_docs, clippy::missing_safety_doc)]

mod changes;
mod deferred;
mod devices;
mod dirty;
mod lookups;
mod pci;
mod rings;
mod roms;
mod syscalls;
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
pub use syscalls::*;
pub use triggers::*;
pub use vm::*;
pub use windows::*;

use std::ffi::c_int;

use kvm_memslots::deferred::Deferred;
use kvm_memslots::pci::PciBars;
use kvm_memslots::window::Window;
use kvm_memslots::{CoalescedRing, Errno, Report, RomDevice, Vm};

use crate::changes::CChanges;
use crate::committer::Committing;
use crate::device::CDevice;
use crate::failure::Failure;
use crate::handles::{Handle, frees, shared};
use crate::last::report;
use crate::record::{Out, Record, read_any};
use crate::trigger::CTrigger;
use crate::types::CReport;

frees! {
    extern "C" fn kvm_memslots_free(vm: *mut Handle<Vm>) {}
    extern "C" fn kvm_memslots_changes_free(changes: *mut Handle<CChanges>) {}
    extern "C" fn kvm_memslots_device_free(device: *mut Handle<CDevice>) {}
    extern "C" fn kvm_memslots_exits_free(exits: *mut Handle<Deferred>) {}
    extern "C" fn kvm_memslots_pci_free(pci: *mut Handle<PciBars>) {}
    extern "C" fn kvm_memslots_ring_free(ring: *mut Handle<CoalescedRing>) {}
    extern "C" fn kvm_memslots_rom_free(rom: *mut Handle<RomDevice>) {}
    extern "C" fn kvm_memslots_trigger_free(trigger: *mut Handle<CTrigger>) {}
    extern "C" fn kvm_memslots_window_free(window: *mut Handle<Window>) {}
}

/// Runs `f` on a VM of this process.
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
unsafe fn on(vm: *const Handle<Vm>, f: impl FnOnce(&Vm) -> Result<(), Failure>) -> c_int {
    // SAFETY: as the caller says.
    report(|| unsafe { with_vm(vm, f) })
}

/// Writes what `find` finds out about a VM.
unsafe fn told<T: Record>(
    vm: *const Handle<Vm>,
    to: *mut T,
    find: impl FnOnce(&Vm) -> Result<T, Failure>,
) -> c_int {
    let lookup = |vm: &Vm| {
        // SAFETY: as the caller says.
        let out = unsafe { Out::new(to) }?;
        out.put(find(vm)?);
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, lookup) }
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
        let given = unsafe { read_any(cost) }?;
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
