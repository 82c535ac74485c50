//! The ring of the coalesced zones.

use std::ffi::{c_int, c_void};
use std::os::fd::BorrowedFd;

use kvm_memslots::{CoalescedRing, Vm};

use super::on;
use crate::handles::{Handle, exclusive, give_to};
use crate::last::report;
use crate::record::null;
use crate::types::{CZoneWrite, descriptor};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_ring_new(
    vm: *mut Handle<Vm>,
    vcpu_fd: c_int,
    ring: *mut *mut Handle<CoalescedRing>,
) -> c_int {
    let new = |vm: &Vm| {
        let fd = descriptor(vcpu_fd, "vcpu_fd")?;
        // SAFETY: open, as the caller says, and borrowed for this call only.
        let make = || Ok(vm.coalesced_ring(unsafe { BorrowedFd::borrow_raw(fd) })?);
        // SAFETY: as the caller says.
        unsafe { give_to(ring, make) }?;
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, new) }
}

/// `kvm_memslots_each_zone_write`
type EachZoneWrite = unsafe extern "C" fn(*mut c_void, *const CZoneWrite);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_ring_drain(
    ring: *mut Handle<CoalescedRing>,
    callback: Option<EachZoneWrite>,
    opaque: *mut c_void,
) -> c_int {
    let drain = |ring: &mut CoalescedRing| {
        let callback = callback.ok_or_else(|| null("each"))?;
        // SAFETY: C gave the function to be called with these.
        ring.drain(|write| unsafe { callback(opaque, &(&write).into()) });
        Ok(())
    };
    // SAFETY: as the caller says.
    report(|| unsafe { exclusive(ring, drain) })
}
