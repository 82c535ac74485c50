//! Windows.

use std::ffi::{c_int, c_void};

use kvm_memslots::device::Device;
use kvm_memslots::window::{Edit, Placement, Window};
use kvm_memslots::{RegionId, Vm};

use super::with_vm;
use crate::changes::{CChanges, add};
use crate::device::{CDevice, describe};
use crate::failure::{Failure, there};
use crate::handles::{Handle, give_to, shared};
use crate::last::report;
use crate::record::{Out, list, null, put, read, read_any};
use crate::types::{CPlacement, CSpec, CWindowSpec};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_window_new(
    spec: *const CWindowSpec,
    window: *mut *mut Handle<Window>,
) -> c_int {
    report(|| {
        // SAFETY: as the caller says.
        let make = || Ok(Window::new(unsafe { read(spec) }?.spec()?)?);
        // SAFETY: as the caller says.
        unsafe { give_to(window, make) }?;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_window_map(
    changes: *mut Handle<CChanges>,
    window: *mut Handle<Window>,
    spec: *const CSpec,
    id: *mut u64,
) -> c_int {
    let map = |changes: &mut kvm_memslots::Changes| {
        // SAFETY: as the caller says.
        let spec = unsafe { read_any(spec) }?;
        // SAFETY: as the caller says.
        let region = unsafe { shared(window, |window| Ok((window.region(), window.backing()))) }?;
        let name = match spec {
            None => changes.map(region.0),
            Some(spec) => {
                // SAFETY: as the caller says.
                let (name, spec) = unsafe { spec.of_window(region.0.span(), region.1) }?;
                changes.map_as(name, spec);
                name
            }
        };
        // SAFETY: null or room for an id, as the caller says.
        unsafe { put(id, name.to_raw()) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { add(changes, map) }
}

/// Runs `f` on a window, for C.
unsafe fn on(window: *mut Handle<Window>, f: impl FnOnce(&Window) -> Result<(), Failure>) -> c_int {
    // SAFETY: as the caller says; a window can be shared.
    report(|| unsafe { shared(window, f) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_window_place(
    window: *mut Handle<Window>,
    placement: *const CPlacement,
) -> c_int {
    // SAFETY: as the caller says.
    unsafe { kvm_memslots_window_edit(window, &raw const placement, 1) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_window_remove(
    window: *mut Handle<Window>,
    offset: u64,
    len: u64,
) -> c_int {
    // SAFETY: as the caller says.
    unsafe { on(window, |window| Ok(window.remove(offset, len)?)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_window_edit(
    window: *mut Handle<Window>,
    edits: *const *const CPlacement,
    nr_edits: usize,
) -> c_int {
    let apply = |window: &Window| {
        let mut known = Vec::with_capacity(nr_edits.min(64));
        // SAFETY: as the caller says.
        for (edit, number) in unsafe { list(edits, nr_edits, "edits") }?.iter().zip(0..) {
            // SAFETY: as the caller says.
            let edit = unsafe { read(*edit) };
            // SAFETY: as the caller says; its descriptor is open for this call.
            let edit = edit.and_then(|edit| Ok((edit, unsafe { edit.fd() }?)));
            known.push(edit.map_err(|failure| failure.in_change(number))?);
        }
        let mut set = Edit::new();
        for ((edit, fd), number) in known.iter().zip(0..) {
            // SAFETY: as the caller says.
            let added = unsafe { edit.add(fd.as_ref(), &mut set) };
            added.map_err(|failure| failure.in_change(number))?;
        }
        Ok(window.apply(&set)?)
    };
    // SAFETY: as the caller says.
    unsafe { on(window, apply) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_window_at(
    window: *mut Handle<Window>,
    offset: u64,
    placement: *mut CPlacement,
) -> c_int {
    let lookup = |window: &Window| {
        // SAFETY: as the caller says.
        let out = unsafe { Out::new(placement) }?;
        let what = || format!("nothing is placed at offset {offset:#x}");
        out.put(there(window.at(offset), what)?);
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(window, lookup) }
}

/// `kvm_memslots_each_placement`
type EachPlacement = unsafe extern "C" fn(*mut c_void, *const CPlacement);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_window_placed(
    window: *mut Handle<Window>,
    callback: Option<EachPlacement>,
    opaque: *mut c_void,
) -> c_int {
    let lookup = |window: &Window| {
        let callback = callback.ok_or_else(|| null("each"))?;
        // SAFETY: C gave the function to be called with these.
        let tell = |placement: Placement| unsafe { callback(opaque, &placement.into()) };
        window.placed().into_iter().for_each(tell);
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(window, lookup) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_window_found(
    window: *mut Handle<Window>,
    vm: *mut Handle<Vm>,
    as_id: u16,
    gpa: u64,
    offset: *mut u64,
) -> c_int {
    let lookup = |window: &Window| {
        // SAFETY: as the caller says.
        let found = unsafe { with_vm(vm, |vm| Ok(window.offset_at(vm, as_id, gpa))) }?;
        let what = || format!("GPA {gpa:#x} of address space {as_id} is not in the window");
        // SAFETY: null or room for a number, as the caller says.
        unsafe { put(offset, there(found, what)?) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(window, lookup) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_device_in_window(
    device: *mut Handle<CDevice>,
    window: *mut Handle<Window>,
    placement: *const CPlacement,
    id: *mut u64,
) -> c_int {
    let in_window = || {
        // SAFETY: as the caller says.
        let placement = unsafe { read(placement) }?;
        // SAFETY: as the caller says: its descriptor is open for this call.
        let part = |window: &Window| unsafe { placement.part(window) };
        // SAFETY: as the caller says; a window can be shared.
        let part = unsafe { shared(window, part) }?;
        let name = RegionId::new();
        // SAFETY: null or room for an id, as the caller says.
        unsafe { put(id, name.to_raw()) };
        Ok(move |device: Device| device.in_window(name, part))
    };
    // SAFETY: as the caller says.
    unsafe { describe(device, in_window) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_move_in_window(
    changes: *mut Handle<CChanges>,
    id: u64,
    offset: u64,
) -> c_int {
    let move_it = |changes: &mut kvm_memslots::Changes| {
        changes.move_in_window(RegionId::from_raw(id), offset);
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { add(changes, move_it) }
}
