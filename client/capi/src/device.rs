//! A device, as C describes it.

use std::ffi::c_int;

use kvm_memslots::Errno;
use kvm_memslots::device::Device;

use crate::failure::Failure;
use crate::handles::{Handle, exclusive, held};
use crate::last::{guard, report};

/// `struct kvm_memslots_device`: why it can't be attached, if a call failed.
#[derive(Debug)]
pub struct CDevice(Result<Device, Failure>);

held! {
    CDevice, "kvm_memslots_device", b"kvmsDEVI";
}

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
    device: *mut Handle<CDevice>,
    part: impl FnOnce() -> Result<P, Failure>,
) -> c_int {
    let add = |CDevice(device): &mut CDevice| {
        let part = guard(part).inspect_err(|failure| {
            if device.is_ok() {
                *device = Err(failure.clone());
            }
        })?;
        let panicked = Failure::new(Errno::ENOTRECOVERABLE, "a call on this device panicked");
        *device = std::mem::replace(device, Err(panicked)).map(part);
        Ok(())
    };
    // SAFETY: as the caller says.
    report(|| unsafe { exclusive(device, add) })
}
