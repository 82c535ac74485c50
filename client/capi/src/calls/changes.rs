//! Collecting changes.

use std::ffi::c_int;

use kvm_bindings::kvm_irq_routing_entry;
use kvm_memslots::device::Route;
use kvm_memslots::{Changes, RegionId};

use crate::changes::{CChanges, add};
use crate::handles::{Handle, exclusive, give, own, take};
use crate::last::report;
use crate::record::{invalid, list, put, read};
use crate::types::{CBacking, CSpec, Taking};

#[unsafe(no_mangle)]
/// An empty set.
pub extern "C" fn kvm_memslots_changes_new() -> *mut Handle<CChanges> {
    give(CChanges::default())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_changes_append(
    changes: *mut Handle<CChanges>,
    other: *mut Handle<CChanges>,
) -> c_int {
    let same = std::ptr::eq(changes, other);
    report(|| {
        if same && !other.is_null() {
            return Err(invalid("a set can't be appended to itself"));
        }
        // SAFETY: null, or a set that the caller does not use any more.
        let other = unsafe { take(other) };
        // SAFETY: as the caller says.
        unsafe { exclusive(changes, |changes| changes.append(other?)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_changes_len(changes: *mut Handle<CChanges>) -> usize {
    // SAFETY: as the caller says.
    unsafe { own(changes, |set| Ok(set.changes.len())) }.unwrap_or(0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_map(
    changes: *mut Handle<CChanges>,
    spec: *const CSpec,
    id: *mut u64,
) -> c_int {
    let map = |changes: &mut Changes| {
        // SAFETY: as the caller says.
        let spec = unsafe { read(spec) }?;
        let mut taking = Taking::default();
        // SAFETY: as the caller says.
        let (name, spec) = unsafe { spec.spec(&mut taking) }?;
        changes.map_as(name, spec);
        taking.taken();
        // SAFETY: null or room for an id, as the caller says.
        unsafe { put(id, name.to_raw()) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { add(changes, map) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_split(
    changes: *mut Handle<CChanges>,
    id: u64,
    offset: u64,
    upper: *mut u64,
) -> c_int {
    let split = |changes: &mut Changes| {
        let rest = changes.split(RegionId::from_raw(id), offset);
        // SAFETY: null or room for an id, as the caller says.
        unsafe { put(upper, rest.to_raw()) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { add(changes, split) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_replace(
    changes: *mut Handle<CChanges>,
    id: u64,
    backing: *const CBacking,
) -> c_int {
    let replace = |changes: &mut Changes| {
        // SAFETY: as the caller says.
        let backing = unsafe { read(backing) }?;
        if backing.len == 0 {
            return Err(invalid("the len of the backing is 0"));
        }
        let mut taking = Taking::default();
        // SAFETY: as the caller says.
        changes.replace(RegionId::from_raw(id), unsafe { backing.backing(0, &mut taking) }?);
        taking.taken();
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { add(changes, replace) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_set_own_routes(
    changes: *mut Handle<CChanges>,
    routes: *const kvm_irq_routing_entry,
    nr_routes: usize,
) -> c_int {
    let set = |changes: &mut Changes| {
        // SAFETY: as the caller says.
        let routes = unsafe { list(routes, nr_routes, "routes") }?;
        changes.set_own_routes(routes.iter().map(Route::from_kvm));
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { add(changes, set) }
}

/// Adds a change of a region.
unsafe fn of_region(
    changes: *mut Handle<CChanges>,
    id: u64,
    change: impl FnOnce(&mut Changes, RegionId),
) -> c_int {
    let add_it = |changes: &mut Changes| {
        change(changes, RegionId::from_raw(id));
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { add(changes, add_it) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_unmap(changes: *mut Handle<CChanges>, id: u64) -> c_int {
    // SAFETY: as the caller says.
    unsafe { of_region(changes, id, Changes::unmap) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_resize(
    changes: *mut Handle<CChanges>,
    id: u64,
    len: u64,
) -> c_int {
    // SAFETY: as the caller says.
    unsafe { of_region(changes, id, |changes, id| changes.resize(id, len)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_join(changes: *mut Handle<CChanges>, id: u64) -> c_int {
    // SAFETY: as the caller says.
    unsafe { of_region(changes, id, Changes::join) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_move_to(
    changes: *mut Handle<CChanges>,
    id: u64,
    gpa: u64,
) -> c_int {
    // SAFETY: as the caller says.
    unsafe { of_region(changes, id, |changes, id| changes.move_to(id, gpa)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_set_log_dirty(
    changes: *mut Handle<CChanges>,
    id: u64,
    on: c_int,
) -> c_int {
    // SAFETY: as the caller says.
    unsafe { of_region(changes, id, |changes, id| changes.set_log_dirty(id, on != 0)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_set_read_only(
    changes: *mut Handle<CChanges>,
    id: u64,
    on: c_int,
) -> c_int {
    // SAFETY: as the caller says.
    unsafe { of_region(changes, id, |changes, id| changes.set_read_only(id, on != 0)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_set_trap(
    changes: *mut Handle<CChanges>,
    id: u64,
    on: c_int,
) -> c_int {
    // SAFETY: as the caller says.
    unsafe { of_region(changes, id, |changes, id| changes.set_trap(id, on != 0)) }
}
