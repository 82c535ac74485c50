//! Serving the exits of memory that waits for a slot.

use std::ffi::{c_int, c_void};

use kvm_memslots::deferred::{Deferred, Retry};
use kvm_memslots::{RegionId, Report, Vm};

use super::{Wanted, on, told, with_vm};
use crate::failure::Failure;
use crate::handles::{Handle, give_to, own};
use crate::last::report;
use crate::record::{Out, null, put};
use crate::types::{CDeferralUsage, CReport, CServed};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_exits_new(
    vm: *mut Handle<Vm>,
    as_id: u16,
    exits: *mut *mut Handle<Deferred>,
) -> c_int {
    let new = |vm: &Vm| {
        // SAFETY: as the caller says.
        unsafe { give_to(exits, || Ok(vm.deferred(as_id)?)) }?;
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, new) }
}

/// `kvm_memslots_device_read`
type DeviceRead = unsafe extern "C" fn(*mut c_void, u64, *mut c_void, usize);
/// `kvm_memslots_device_write`
type DeviceWrite = unsafe extern "C" fn(*mut c_void, u64, *const c_void, usize);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_exits_read(
    exits: *mut Handle<Deferred>,
    gpa: u64,
    data: *mut c_void,
    len: usize,
    device: Option<DeviceRead>,
    opaque: *mut c_void,
    served: *mut CServed,
) -> c_int {
    let read = |exits: &Deferred| {
        // SAFETY: as the caller says.
        let out = unsafe { Out::new(served) }?;
        let device = device.ok_or_else(|| null("device"))?;
        if data.is_null() {
            return Err(null("data"));
        }
        // C need not have written what is to be read.
        // SAFETY: not null, and so many bytes, as the caller says.
        unsafe { data.write_bytes(0, len) };
        // SAFETY: as above, and written now.
        let data = unsafe { std::slice::from_raw_parts_mut(data.cast::<u8>(), len) };
        // SAFETY: C gave the function to be called with these.
        let device = |gpa, data: &mut [u8]| unsafe {
            device(opaque, gpa, data.as_mut_ptr().cast(), data.len());
        };
        out.put(exits.read(gpa, data, device));
        Ok(())
    };
    // SAFETY: as the caller says.
    report(|| unsafe { own(exits, read) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_exits_write(
    exits: *mut Handle<Deferred>,
    gpa: u64,
    data: *const c_void,
    len: usize,
    device: Option<DeviceWrite>,
    opaque: *mut c_void,
    served: *mut CServed,
) -> c_int {
    let write = |exits: &Deferred| {
        // SAFETY: as the caller says.
        let out = unsafe { Out::new(served) }?;
        let device = device.ok_or_else(|| null("device"))?;
        if data.is_null() {
            return Err(null("data"));
        }
        // SAFETY: not null, and so many bytes, as the caller says.
        let data = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) };
        // SAFETY: C gave the function to be called with these.
        let device = |gpa, data: &[u8]| unsafe {
            device(opaque, gpa, data.as_ptr().cast(), data.len());
        };
        out.put(exits.write(gpa, data, device));
        Ok(())
    };
    // SAFETY: as the caller says.
    report(|| unsafe { own(exits, write) })
}

unsafe fn promoted(
    vm: *mut Handle<Vm>,
    cost: *mut CReport,
    promote: impl FnOnce(&Vm) -> Result<Option<Report>, kvm_memslots::Error>,
) -> c_int {
    let promote = |vm: &Vm| {
        // SAFETY: as the caller says.
        let wanted = unsafe { Wanted::new(cost) }?;
        wanted.done_if_any(promote(vm)?.as_ref());
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, promote) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_promote(vm: *mut Handle<Vm>, cost: *mut CReport) -> c_int {
    // SAFETY: as the caller says.
    unsafe { promoted(vm, cost, Vm::promote) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_promote_due(
    vm: *mut Handle<Vm>,
    cost: *mut CReport,
) -> c_int {
    // SAFETY: as the caller says.
    unsafe { promoted(vm, cost, Vm::promote_due) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_undecoded(
    vm: *mut Handle<Vm>,
    exits: *mut Handle<Deferred>,
    reenter: *mut c_int,
) -> c_int {
    let undecoded = |exits: &Deferred| {
        // SAFETY: as the caller says.
        let retry = unsafe { with_vm(vm, |vm| Ok(vm.undecoded(exits)?)) }?;
        // SAFETY: null or room for a number, as the caller says.
        unsafe { put(reenter, c_int::from(retry == Retry::Reenter)) };
        Ok::<(), Failure>(())
    };
    // SAFETY: as the caller says.
    report(|| unsafe { own(exits, undecoded) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_deferral_usage(
    vm: *mut Handle<Vm>,
    usage: *mut CDeferralUsage,
) -> c_int {
    let lookup = |vm: &Vm| {
        let (slot_ns, exit_ns) = vm.deferral_costs();
        let (size, waiting) = (size_of::<CDeferralUsage>(), vm.deferred_count() as u64);
        Ok(CDeferralUsage { size, waiting, slot_ns, exit_ns })
    };
    // SAFETY: as the caller says.
    unsafe { told(vm, usage, lookup) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_exits_served(
    vm: *mut Handle<Vm>,
    id: u64,
    served: *mut u64,
) -> c_int {
    let lookup = |vm: &Vm| {
        let count = vm.exits_served(RegionId::from_raw(id))?;
        // SAFETY: null or room for a number, as the caller says.
        unsafe { put(served, count) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, lookup) }
}
