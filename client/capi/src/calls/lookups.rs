//! Looking regions, slots and devices up.

use std::ffi::{c_int, c_void};

use kvm_memslots::device::DeviceId;
use kvm_memslots::{Errno, Region, RegionId, Vm};

use super::{on, told};
use crate::failure::{Failure, there};
use crate::handles::Handle;
use crate::record::{Out, null, put, read};
use crate::types::{CEventLimits, CEventState, CLimits, CRegion, CSlot, CSlotUsage};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_limits(vm: *mut Handle<Vm>, limits: *mut CLimits) -> c_int {
    // SAFETY: as the caller says.
    unsafe { told(vm, limits, |vm| Ok(vm.into())) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_event_limits(
    vm: *mut Handle<Vm>,
    limits: *mut CEventLimits,
) -> c_int {
    // SAFETY: as the caller says.
    unsafe { told(vm, limits, |vm| Ok(vm.into())) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_event_state(
    vm: *mut Handle<Vm>,
    each: *const CEventState,
) -> c_int {
    let lookup = |vm: &Vm| {
        // SAFETY: as the caller says.
        unsafe { read(each) }?.hand_out(&vm.event_state()?);
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, lookup) }
}

/// A region, and a number that comes with it, for C.
unsafe fn found(
    vm: *mut Handle<Vm>,
    find: impl FnOnce(&Vm) -> Result<(Region, u64), Failure>,
    region: *mut CRegion,
    number: *mut u64,
) -> c_int {
    let lookup = |vm: &Vm| {
        // SAFETY: as the caller says.
        let out = unsafe { Out::new(region) }?;
        let (region, with) = find(vm)?;
        out.put(&region);
        // SAFETY: null or room for a number, as the caller says.
        unsafe { put(number, with) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, lookup) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_region(
    vm: *mut Handle<Vm>,
    id: u64,
    region: *mut CRegion,
) -> c_int {
    let find = |vm: &Vm| Ok((vm.region(RegionId::from_raw(id))?, 0));
    // SAFETY: as the caller says.
    unsafe { found(vm, find, region, std::ptr::null_mut()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_region_at(
    vm: *mut Handle<Vm>,
    as_id: u16,
    gpa: u64,
    region: *mut CRegion,
) -> c_int {
    let find = |vm: &Vm| {
        let what = || format!("no region at GPA {gpa:#x} of address space {as_id}");
        Ok((there(vm.region_at(as_id, gpa), what)?, 0))
    };
    // SAFETY: as the caller says.
    unsafe { found(vm, find, region, std::ptr::null_mut()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_region_at_hva(
    vm: *mut Handle<Vm>,
    as_id: u16,
    hva: u64,
    region: *mut CRegion,
    offset: *mut u64,
) -> c_int {
    let find = |vm: &Vm| {
        let what = || format!("no region at HVA {hva:#x} in address space {as_id}");
        there(vm.region_at_hva(as_id, hva), what)
    };
    // SAFETY: as the caller says.
    unsafe { found(vm, find, region, offset) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_region_at_slot(
    vm: *mut Handle<Vm>,
    as_id: u16,
    slot: u16,
    slot_page: u64,
    region: *mut CRegion,
    region_page: *mut u64,
) -> c_int {
    let find = |vm: &Vm| {
        let what = || format!("no region at page {slot_page:#x} of slot {slot}");
        there(vm.region_at_slot(as_id, slot, slot_page), what)
    };
    // SAFETY: as the caller says.
    unsafe { found(vm, find, region, region_page) }
}

/// A function that is called with each of something, which has been collected
/// before: it may call the library.
type Each<T> = unsafe extern "C" fn(*mut c_void, T);

unsafe fn each<T>(
    vm: *mut Handle<Vm>,
    find: impl FnOnce(&Vm) -> Result<Vec<T>, Failure>,
    callback: Option<impl Fn(&T)>,
) -> c_int {
    let lookup = |vm: &Vm| {
        let callback = callback.ok_or_else(|| null("each"))?;
        find(vm)?.iter().for_each(callback);
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, lookup) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_regions(
    vm: *mut Handle<Vm>,
    callback: Option<Each<*const CRegion>>,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: C gave the function to be called with these.
    let callback = callback.map(|f| move |region: &Region| unsafe { f(opaque, &region.into()) });
    // SAFETY: as the caller says.
    unsafe { each(vm, |vm| Ok(vm.regions()), callback) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_tagged(
    vm: *mut Handle<Vm>,
    tag: u64,
    callback: Option<Each<*const CRegion>>,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: C gave the function to be called with these.
    let callback = callback.map(|f| move |region: &Region| unsafe { f(opaque, &region.into()) });
    // SAFETY: as the caller says.
    unsafe { each(vm, |vm| Ok(vm.tagged(tag)), callback) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_slots(
    vm: *mut Handle<Vm>,
    as_id: u16,
    callback: Option<Each<*const CSlot>>,
    opaque: *mut c_void,
) -> c_int {
    let find = |vm: &Vm| Ok(vm.slots(as_id));
    // SAFETY: C gave the function to be called with these.
    let callback = callback.map(|f| move |slot: &_| unsafe { f(opaque, &CSlot::new(as_id, slot)) });
    // SAFETY: as the caller says.
    unsafe { each(vm, find, callback) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_slot_usage(
    vm: *mut Handle<Vm>,
    as_id: u16,
    usage: *mut CSlotUsage,
) -> c_int {
    // SAFETY: as the caller says.
    unsafe { told(vm, usage, |vm| Ok(vm.slot_usage(as_id)?.into())) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_devices(
    vm: *mut Handle<Vm>,
    callback: Option<Each<u64>>,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: C gave the function to be called with these.
    let callback = callback.map(|f| move |id: &DeviceId| unsafe { f(opaque, id.to_raw()) });
    // SAFETY: as the caller says.
    unsafe { each(vm, |vm| Ok(vm.devices()), callback) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_device_regions(
    vm: *mut Handle<Vm>,
    device: u64,
    callback: Option<Each<u64>>,
    opaque: *mut c_void,
) -> c_int {
    let find = |vm: &Vm| Ok(vm.device_regions(DeviceId::from_raw(device))?);
    // SAFETY: C gave the function to be called with these.
    let callback = callback.map(|f| move |id: &RegionId| unsafe { f(opaque, id.to_raw()) });
    // SAFETY: as the caller says.
    unsafe { each(vm, find, callback) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_gsi(
    vm: *mut Handle<Vm>,
    device: u64,
    vector: usize,
    gsi: *mut u32,
) -> c_int {
    let lookup = |vm: &Vm| {
        let found = vm.gsi(DeviceId::from_raw(device), vector)?;
        let message = || format!("vector {vector} has had no message yet");
        let found = found.ok_or_else(|| Failure::new(Errno::ENODATA, message()))?;
        // SAFETY: null or room for a number, as the caller says.
        unsafe { put(gsi, found) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, lookup) }
}
