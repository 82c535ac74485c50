//! Opening, closing, applying.

use std::ffi::c_int;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvm_memslots::backend::model::memory::{DirtyTracking, ModelConfig};
use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::{Builder, Error, Limits, Vm};

use super::on;
use crate::failure::{Failure, report};
use crate::handles::{CChanges, give, take};
use crate::record::{Out, get, null, read};
use crate::types::{
    CGate, CLimits, COptions, CPreview, CReport, CSlotRange, descriptor, hole_policy, limits,
};

/// `open` is told whether the dirty log is manual.
///
/// # Safety
/// As [the crate](crate#safety).
unsafe fn open(
    options: *const COptions,
    vm: *mut *mut Vm,
    open: impl FnOnce(Builder, bool) -> Result<Vm, Error>,
) -> Result<(), Failure> {
    if vm.is_null() {
        return Err(null("vm"));
    }
    let (builder, manual) = if options.is_null() {
        (Vm::builder(), false)
    } else {
        // SAFETY: as the caller says.
        let options = unsafe { read(options) }?;
        // SAFETY: as the caller says.
        (unsafe { options.builder() }?, options.is_manual())
    };
    let opened = give(open(builder, manual)?);
    // SAFETY: not null, so there is room for a pointer.
    unsafe { vm.write(opened) };
    Ok(())
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_open(
    vm_fd: c_int,
    options: *const COptions,
    vm: *mut *mut Vm,
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

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_open_model(
    options: *const COptions,
    asked: *const CLimits,
    vm: *mut *mut Vm,
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

/// Where a report goes, and the callback in it.
///
/// # Safety
/// As [the crate](crate#safety).
unsafe fn wanted(cost: *mut CReport) -> Result<(Option<CReport>, Out<CReport>), Failure> {
    // SAFETY: as the caller says.
    let given = (!cost.is_null()).then(|| unsafe { read(cost) }).transpose()?;
    // SAFETY: as the caller says.
    Ok((given, unsafe { Out::new(cost) }?))
}

fn done(report: &kvm_memslots::Report, (given, out): (Option<CReport>, Out<CReport>)) {
    let cost = CReport::new(report, given.as_ref());
    out.put(cost);
    cost.hand_out(report);
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_close(vm: *mut Vm, cost: *mut CReport) -> c_int {
    let close = |open: &Vm| {
        // SAFETY: as the caller says.
        let wanted = unsafe { wanted(cost) }?;
        done(&open.close()?, wanted);
        Ok(())
    };
    // SAFETY: as the caller says.
    let ret = unsafe { on(vm, close) };
    if ret == 0 {
        // SAFETY: as the caller says, and not used after this.
        unsafe { kvm_memslots_free(vm) };
    }
    ret
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_free(vm: *mut Vm) {
    report(|| {
        // SAFETY: null, or from `open` and not freed before, as the caller says.
        drop(unsafe { take(vm) });
        Ok(())
    });
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_set_holes(
    vm: *mut Vm,
    holes: u32,
    gate: *const CGate,
) -> c_int {
    // SAFETY: as the caller says.
    let set = |vm: &Vm| Ok(vm.set_hole_policy(unsafe { hole_policy(holes, gate) }?)?);
    // SAFETY: as the caller says.
    unsafe { on(vm, set) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_reserve_slots(vm: *mut Vm, ids: *const CSlotRange) -> c_int {
    let reserve = |vm: &Vm| {
        // SAFETY: as the caller says.
        let ids = unsafe { get(ids, "ids") }?;
        Ok(vm.reserve_slots(ids.as_id, ids.first..=ids.last)?)
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, reserve) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_apply(
    vm: *mut Vm,
    changes: *mut CChanges,
    cost: *mut CReport,
) -> c_int {
    let apply = |vm: &Vm, changes: Option<CChanges>| {
        let changes = changes.ok_or_else(|| null("changes"))?;
        // SAFETY: as the caller says.
        let wanted = unsafe { wanted(cost) }?;
        done(&vm.apply(changes.into_whole()?)?, wanted);
        Ok(())
    };
    report(|| {
        // Whatever comes of it, the set is gone.
        // SAFETY: null, or a set that the caller does not use any more.
        let changes = unsafe { take(changes) };
        // SAFETY: null, or a VM that nobody frees meanwhile.
        apply(unsafe { get(vm, "vm") }?, changes)
    })
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_preview(
    vm: *mut Vm,
    changes: *const CChanges,
    cost: *mut CPreview,
) -> c_int {
    let preview = |vm: &Vm| {
        // SAFETY: null, or a set that this thread uses alone.
        let changes = unsafe { get(changes, "changes") }?;
        // SAFETY: as the caller says.
        let given = (!cost.is_null()).then(|| unsafe { read(cost) }).transpose()?;
        // SAFETY: as the caller says.
        let out = unsafe { Out::new(cost) }?;
        let preview = vm.preview(changes.whole()?)?;
        let cost = CPreview::new(&preview, given.as_ref());
        out.put(cost);
        cost.hand_out(&preview);
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, preview) }
}
