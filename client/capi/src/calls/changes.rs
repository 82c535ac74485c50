//! Collecting changes.

use std::ffi::c_int;

use kvm_bindings::kvm_irq_routing_entry;
use kvm_memslots::RegionId;
use kvm_memslots::device::Route;

use crate::failure::report;
use crate::handles::{CChanges, add, give, take};
use crate::record::{invalid, list, null, put, read};
use crate::types::{CBacking, CSpec};

#[unsafe(no_mangle)]
/// An empty set.
pub extern "C" fn kvm_memslots_changes_new() -> *mut CChanges {
    give(CChanges::default())
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_changes_free(changes: *mut CChanges) {
    report(|| {
        // SAFETY: null, or a set that the caller does not use any more.
        drop(unsafe { take(changes) });
        Ok(())
    });
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_changes_append(
    changes: *mut CChanges,
    other: *mut CChanges,
) -> c_int {
    let same = std::ptr::eq(changes, other);
    report(|| {
        if same && !other.is_null() {
            return Err(invalid("a set can't be appended to itself"));
        }
        // SAFETY: null, or a set that the caller does not use any more.
        let other = unsafe { take(other) };
        // SAFETY: null, or another set, that this thread uses alone.
        let changes = unsafe { changes.as_mut() }.ok_or_else(|| null("changes"))?;
        changes.append(other.ok_or_else(|| null("other"))?);
        Ok(())
    })
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_changes_len(changes: *const CChanges) -> usize {
    // SAFETY: null, or a set that this thread uses alone.
    unsafe { changes.as_ref() }.map_or(0, |set| set.changes.len())
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_map(
    changes: *mut CChanges,
    spec: *const CSpec,
    id: *mut u64,
) -> c_int {
    let map = |changes: &mut kvm_memslots::Changes| {
        // SAFETY: as the caller says.
        let spec = unsafe { read(spec) }?;
        // SAFETY: as the caller says.
        let (name, spec) = unsafe { spec.spec() }?;
        changes.map_as(name, spec);
        // SAFETY: null or room for an id, as the caller says.
        unsafe { put(id, name.to_raw()) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { add(changes, map) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_split(
    changes: *mut CChanges,
    id: u64,
    offset: u64,
    upper: *mut u64,
) -> c_int {
    let split = |changes: &mut kvm_memslots::Changes| {
        let rest = changes.split(RegionId::from_raw(id), offset);
        // SAFETY: null or room for an id, as the caller says.
        unsafe { put(upper, rest.to_raw()) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { add(changes, split) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_replace(
    changes: *mut CChanges,
    id: u64,
    backing: *const CBacking,
) -> c_int {
    let replace = |changes: &mut kvm_memslots::Changes| {
        // SAFETY: as the caller says.
        let backing = unsafe { read(backing) }?;
        if backing.len == 0 {
            return Err(invalid("the len of the backing is 0"));
        }
        // SAFETY: as the caller says.
        changes.replace(RegionId::from_raw(id), unsafe { backing.backing(0) }?);
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { add(changes, replace) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_set_own_routes(
    changes: *mut CChanges,
    routes: *const kvm_irq_routing_entry,
    nr_routes: usize,
) -> c_int {
    let set = |changes: &mut kvm_memslots::Changes| {
        // SAFETY: as the caller says.
        let routes = unsafe { list(routes, nr_routes, "routes") }?;
        changes.set_own_routes(routes.iter().map(Route::from_kvm));
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { add(changes, set) }
}

/// Changes of a region that take numbers.
macro_rules! of_a_region {
    ($($c:ident => $rust:ident($($arg:ident: $ty:ty => $value:expr)?);)*) => {
        $(
            /// # Safety
            /// As [the crate](crate#safety).
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $c(changes: *mut CChanges, id: u64 $(, $arg: $ty)?) -> c_int {
                let change = |changes: &mut kvm_memslots::Changes| {
                    changes.$rust(RegionId::from_raw(id) $(, $value)?);
                    Ok(())
                };
                // SAFETY: as the caller says.
                unsafe { add(changes, change) }
            }
        )*
    };
}

of_a_region! {
    kvm_memslots_unmap => unmap();
    kvm_memslots_resize => resize(len: u64 => len);
    kvm_memslots_join => join();
    kvm_memslots_move_to => move_to(gpa: u64 => gpa);
    kvm_memslots_set_log_dirty => set_log_dirty(on: c_int => on != 0);
    kvm_memslots_set_read_only => set_read_only(on: c_int => on != 0);
    kvm_memslots_set_trap => set_trap(on: c_int => on != 0);
}
