//! Opening, closing, applying.

use std::ffi::c_int;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvm_memslots::backend::model::memory::{DirtyTracking, ModelConfig};
use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::{Builder, Error, Limits, Vm};

use super::{Wanted, on, with_vm};
use crate::changes::CChanges;
use crate::constants::KVM_MEMSLOTS_VERSION;
use crate::failure::Failure;
use crate::handles::{Handle, exclusive, free, give_to, own, take};
use crate::last::report;
use crate::record::{Out, get, read, read_any};
use crate::types::{
    CGate, CLimits, COptions, CPreview, CReport, CSlotRange, Opened, descriptor, hole_policy,
    in_order, limits,
};

/// The version of the library.
#[unsafe(no_mangle)]
pub extern "C" fn kvm_memslots_version() -> u32 {
    KVM_MEMSLOTS_VERSION
}

/// `open` is told whether the dirty log is manual.
unsafe fn open(
    options: *const COptions,
    vm: *mut *mut Handle<Vm>,
    open: impl FnOnce(Builder, bool) -> Result<Vm, Error>,
) -> Result<(), Failure> {
    let opened = Opened::default();
    let make = || {
        let (builder, manual) = if options.is_null() {
            (Vm::builder(), false)
        } else {
            // SAFETY: as the caller says.
            let options = unsafe { read(options) }?;
            // SAFETY: as the caller says.
            (unsafe { options.builder(&opened) }?, options.is_manual())
        };
        Ok(open(builder, manual)?)
    };
    // SAFETY: as the caller says.
    opened.set(unsafe { give_to(vm, make) }?);
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_open(
    vm_fd: c_int,
    options: *const COptions,
    vm: *mut *mut Handle<Vm>,
) -> c_int {
    report(|| {
        let fd = descriptor(vm_fd, "vm_fd")?;
        let on_kvm = |builder: Builder, _| {
            // SAFETY: open, as the caller says, and borrowed for this call only.
            builder.open(unsafe { BorrowedFd::borrow_raw(fd) })
        };
        // SAFETY: as the caller says.
        unsafe { open(options, vm, on_kvm) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_open_model(
    options: *const COptions,
    asked: *const CLimits,
    vm: *mut *mut Handle<Vm>,
) -> c_int {
    report(|| {
        let limits = if asked.is_null() {
            Limits::x86()
        } else {
            // SAFETY: as the caller says.
            limits(&unsafe { read(asked) }?)?
        };
        let on_model = |builder: Builder, manual| {
            let mut config = ModelConfig::new(limits);
            if manual {
                let dirty = DirtyTracking::ManualProtect { initially_set: false };
                config = config.dirty_tracking(dirty);
            }
            let memory = MemoryModel::with_config(config);
            builder.open_on(Arc::new(memory), Arc::new(EventModel::new(Irqchip::Split)))
        };
        // SAFETY: as the caller says.
        unsafe { open(options, vm, on_model) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_close(vm: *mut Handle<Vm>, cost: *mut CReport) -> c_int {
    let close = |open: &Vm| {
        // SAFETY: as the caller says.
        let wanted = unsafe { Wanted::new(cost) }?;
        wanted.done(&open.close()?);
        Ok(())
    };
    // SAFETY: as the caller says.
    match unsafe { on(vm, close) } {
        // SAFETY: as the caller says, and not used after this.
        0 => unsafe { free(vm) },
        errno => errno,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_set_holes(
    vm: *mut Handle<Vm>,
    holes: u32,
    gate: *const CGate,
) -> c_int {
    // SAFETY: as the caller says.
    let set = |vm: &Vm| Ok(vm.set_hole_policy(unsafe { hole_policy(holes, gate) }?)?);
    // SAFETY: as the caller says.
    unsafe { on(vm, set) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_reserve_slots(
    vm: *mut Handle<Vm>,
    ids: *const CSlotRange,
) -> c_int {
    let reserve = |vm: &Vm| {
        // SAFETY: as the caller says.
        let ids = unsafe { get(ids, "ids") }?;
        in_order(ids.first.into(), ids.last.into(), "ids")?;
        Ok(vm.reserve_slots(ids.as_id, ids.first..=ids.last)?)
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, reserve) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_apply(
    vm: *mut Handle<Vm>,
    changes: *mut Handle<CChanges>,
    cost: *mut CReport,
) -> c_int {
    report(|| {
        // Whatever comes of it, the set is gone.
        // SAFETY: null, or a set that the caller does not use any more.
        let changes = unsafe { take(changes) };
        let apply = |vm: &Vm| {
            // SAFETY: as the caller says.
            let wanted = unsafe { Wanted::new(cost) }?;
            wanted.done(&vm.apply(changes?.into_whole()?)?);
            Ok(())
        };
        // SAFETY: as the caller says.
        unsafe { with_vm(vm, apply) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_begin(changes: *mut Handle<CChanges>) -> c_int {
    let begin = |changes: &mut CChanges| {
        changes.begin();
        Ok(())
    };
    // SAFETY: as the caller says.
    report(|| unsafe { exclusive(changes, begin) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_commit(
    vm: *mut Handle<Vm>,
    changes: *mut Handle<CChanges>,
    cost: *mut CReport,
) -> c_int {
    let commit = |vm: &Vm| {
        // SAFETY: as the caller says.
        let wanted = unsafe { Wanted::new(cost) }?;
        // Not for as long as they are applied: callbacks may begin the next set.
        // SAFETY: as the caller says.
        let changes = unsafe { exclusive(changes, CChanges::commit) }?;
        let report = changes.map(|changes| vm.apply(changes)).transpose()?;
        wanted.done_if_any(report.as_ref());
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, commit) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_preview(
    vm: *mut Handle<Vm>,
    changes: *mut Handle<CChanges>,
    cost: *mut CPreview,
) -> c_int {
    let preview = |vm: &Vm| {
        // SAFETY: as the caller says.
        let given = unsafe { read_any(cost) }?;
        // SAFETY: as the caller says.
        let out = unsafe { Out::new(cost) }?;
        let preview = |changes: &CChanges| Ok(vm.preview(changes.whole()?)?);
        // SAFETY: as the caller says.
        let preview = unsafe { own(changes, preview) }?;
        let cost = CPreview::new(&preview, given.as_ref());
        out.put(cost);
        cost.hand_out(&preview);
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, preview) }
}
