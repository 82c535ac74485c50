//! What C holds besides a VM: a set of changes, a device that is being
//! described.

use std::ffi::c_int;

use kvm_memslots::device::Device;
use kvm_memslots::{Changes, Errno};

use crate::failure::{Failure, guard, report};
use crate::record::null;

/// `struct kvm_memslots_changes`
#[derive(Default)]
pub struct CChanges {
    pub(crate) changes: Changes,
    /// Why it can't be applied: the first call that failed.
    failed: Option<Failure>,
}

impl CChanges {
    /// Adds a change. If that fails or panics, the set has failed.
    fn add(&mut self, f: impl FnOnce(&mut Changes) -> Result<(), Failure>) -> Result<(), Failure> {
        let number = self.changes.len();
        guard(|| f(&mut self.changes)).map_err(|failure| {
            let failure = failure.in_change(number);
            self.failed.get_or_insert_with(|| failure.clone());
            failure
        })
    }

    pub(crate) fn append(&mut self, other: Self) {
        let number = self.changes.len();
        let failed = other.failed.map(|failure| failure.behind(number));
        self.failed = self.failed.take().or(failed);
        self.changes.append(other.changes);
    }

    /// The changes, if all were added.
    pub(crate) fn whole(&self) -> Result<&Changes, Failure> {
        self.failed.clone().map_or(Ok(&self.changes), Err)
    }

    /// The same, to be applied.
    pub(crate) fn into_whole(self) -> Result<Changes, Failure> {
        self.failed.map_or(Ok(self.changes), Err)
    }
}

/// Adds a change to a set.
///
/// # Safety
/// As [the crate](crate#safety).
pub(crate) unsafe fn add(
    changes: *mut CChanges,
    f: impl FnOnce(&mut Changes) -> Result<(), Failure>,
) -> c_int {
    // SAFETY: null, or a set that this thread uses alone.
    let changes = unsafe { changes.as_mut() };
    report(|| changes.ok_or_else(|| null("changes"))?.add(f))
}

/// `struct kvm_memslots_device`: why it can't be attached, if a call failed.
pub struct CDevice(Result<Device, Failure>);

impl CDevice {
    pub(crate) const fn new(device: Device) -> Self {
        Self(Ok(device))
    }

    pub(crate) fn into_device(self) -> Result<Device, Failure> {
        self.0
    }
}

/// Adds a part to a device, which has failed if that does.
///
/// # Safety
/// As [the crate](crate#safety).
pub(crate) unsafe fn describe<P: FnOnce(Device) -> Device>(
    device: *mut CDevice,
    part: impl FnOnce() -> Result<P, Failure>,
) -> c_int {
    // SAFETY: null, or a device that this thread uses alone.
    let device = unsafe { device.as_mut() };
    report(|| {
        let CDevice(device) = device.ok_or_else(|| null("device"))?;
        let part = guard(part).inspect_err(|failure| {
            if device.is_ok() {
                *device = Err(failure.clone());
            }
        })?;
        let panicked = Failure::new(Errno::EIO, "a call on this device panicked");
        *device = std::mem::replace(device, Err(panicked)).map(part);
        Ok(())
    })
}

/// What C hands over.
///
/// # Safety
/// `handle` is null, or from [`give`] and not used after this.
pub(crate) unsafe fn take<T>(handle: *mut T) -> Option<T> {
    // SAFETY: not null, so from `Box::into_raw`, and not taken before.
    (!handle.is_null()).then(|| *unsafe { Box::from_raw(handle) })
}

/// A handle for C.
pub(crate) fn give<T>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}
