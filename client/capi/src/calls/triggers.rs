//! Triggers: eventfds that this process alone signals.

use std::ffi::c_int;
use std::sync::Arc;

use kvm_memslots::Errno;
use kvm_memslots::device::{Device, Trigger};

use crate::device::{CDevice, describe};
use crate::failure::Failure;
use crate::handles::{Handle, give_to, shared};
use crate::last::report;
use crate::record::{put, read_any};
use crate::trigger::CTrigger;
use crate::types::{CMsi, descriptor};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_trigger_new(
    eventfd: c_int,
    trigger: *mut *mut Handle<CTrigger>,
) -> c_int {
    report(|| {
        let make = || {
            let eventfd = descriptor(eventfd, "eventfd")?;
            Ok(CTrigger(Arc::new(Trigger::new(eventfd))))
        };
        // SAFETY: as the caller says.
        unsafe { give_to(trigger, make) }?;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_trigger_signal(trigger: *mut Handle<CTrigger>) -> c_int {
    let signal = |trigger: &CTrigger| {
        trigger.0.signal().map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            Failure::new(errno, format!("signalling the eventfd: {error}"))
        })
    };
    // SAFETY: as the caller says; a trigger can be shared.
    report(|| unsafe { shared(trigger, signal) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_trigger_pending(
    trigger: *mut Handle<CTrigger>,
    pending: *mut c_int,
) -> c_int {
    let lookup = |trigger: &CTrigger| {
        // SAFETY: null or room for a number, as the caller says.
        unsafe { put(pending, c_int::from(trigger.0.is_pending())) };
        Ok(())
    };
    // SAFETY: as the caller says; a trigger can be shared.
    report(|| unsafe { shared(trigger, lookup) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_device_triggered_vector(
    device: *mut Handle<CDevice>,
    trigger: *mut Handle<CTrigger>,
    msi: *const CMsi,
) -> c_int {
    let vector = || {
        // SAFETY: as the caller says; a trigger can be shared.
        let trigger = unsafe { shared(trigger, |trigger| Ok(Arc::clone(&trigger.0))) }?;
        // SAFETY: as the caller says.
        let msi = unsafe { read_any(msi) }?.map(|msi| msi.msi()).transpose()?;
        Ok(move |device: Device| device.triggered_vector(trigger, msi))
    };
    // SAFETY: as the caller says.
    unsafe { describe(device, vector) }
}
