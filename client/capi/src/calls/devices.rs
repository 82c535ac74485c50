//! Describing devices, attaching them and detaching them.

use std::ffi::{c_char, c_int};

use kvm_memslots::device::{Device, DeviceId};

use crate::changes::{CChanges, add};
use crate::constants::{KVM_MEMSLOTS_DEVICE_DEFER_IOEVENTFDS, KVM_MEMSLOTS_DEVICE_MAY_BYPASS};
use crate::device::{CDevice, describe};
use crate::handles::{Handle, give_to, take};
use crate::last::report;
use crate::record::{null, put, read, read_any};
use crate::types::{CDoorbell, CLine, CMsi, CSpec, CZone, Taking, descriptor, known, text};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_device_new(
    name: *const c_char,
    flags: u32,
    device: *mut *mut Handle<CDevice>,
) -> c_int {
    report(|| {
        let all = KVM_MEMSLOTS_DEVICE_MAY_BYPASS | KVM_MEMSLOTS_DEVICE_DEFER_IOEVENTFDS;
        known(flags.into(), all.into(), "a device")?;
        let make = || {
            // SAFETY: as the caller says.
            let mut new = Device::new(unsafe { text(name) }.ok_or_else(|| null("name"))?);
            if flags & KVM_MEMSLOTS_DEVICE_MAY_BYPASS != 0 {
                new = new.may_bypass();
            }
            if flags & KVM_MEMSLOTS_DEVICE_DEFER_IOEVENTFDS != 0 {
                new = new.defer_ioeventfds();
            }
            Ok(CDevice::new(new))
        };
        // SAFETY: as the caller says.
        unsafe { give_to(device, make) }?;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_device_region(
    device: *mut Handle<CDevice>,
    spec: *const CSpec,
    id: *mut u64,
) -> c_int {
    let region = || {
        // SAFETY: as the caller says.
        let spec = unsafe { read(spec) }?;
        let mut taking = Taking::default();
        // SAFETY: as the caller says.
        let (name, spec) = unsafe { spec.spec(&mut taking) }?;
        taking.taken();
        // SAFETY: null or room for an id, as the caller says.
        unsafe { put(id, name.to_raw()) };
        Ok(move |device: Device| device.region(name, spec))
    };
    // SAFETY: as the caller says.
    unsafe { describe(device, region) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_device_ioeventfd(
    device: *mut Handle<CDevice>,
    doorbell: *const CDoorbell,
    eventfd: c_int,
) -> c_int {
    let ioeventfd = || {
        // SAFETY: as the caller says.
        let doorbell = unsafe { read(doorbell) }?.doorbell()?;
        let eventfd = descriptor(eventfd, "eventfd")?;
        Ok(move |device: Device| device.ioeventfd(doorbell, eventfd))
    };
    // SAFETY: as the caller says.
    unsafe { describe(device, ioeventfd) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_device_zone(
    device: *mut Handle<CDevice>,
    zone: *const CZone,
) -> c_int {
    let zone = || {
        // SAFETY: as the caller says.
        let zone = unsafe { read(zone) }?.zone()?;
        Ok(move |device: Device| device.coalesced(zone))
    };
    // SAFETY: as the caller says.
    unsafe { describe(device, zone) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_device_vector(
    device: *mut Handle<CDevice>,
    eventfd: c_int,
    msi: *const CMsi,
) -> c_int {
    let vector = || {
        let eventfd = descriptor(eventfd, "eventfd")?;
        // SAFETY: as the caller says.
        let msi = unsafe { read_any(msi) }?.map(|msi| msi.msi()).transpose()?;
        Ok(move |device: Device| device.vector(eventfd, msi))
    };
    // SAFETY: as the caller says.
    unsafe { describe(device, vector) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_device_line(
    device: *mut Handle<CDevice>,
    line: *const CLine,
) -> c_int {
    // SAFETY: as the caller says.
    let line = || unsafe { read(line) }?.line();
    // SAFETY: as the caller says.
    unsafe { describe(device, line) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_attach(
    changes: *mut Handle<CChanges>,
    device: *mut Handle<CDevice>,
    id: *mut u64,
) -> c_int {
    // Whatever comes of it, the description is gone.
    // SAFETY: null, or a device that the caller does not use any more.
    let device = unsafe { take(device) };
    let attach = |changes: &mut kvm_memslots::Changes| {
        let name = changes.attach(device?.into_device()?);
        // SAFETY: null or room for an id, as the caller says.
        unsafe { put(id, name.to_raw()) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { add(changes, attach) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_detach(changes: *mut Handle<CChanges>, device: u64) -> c_int {
    let detach = |changes: &mut kvm_memslots::Changes| {
        changes.detach(DeviceId::from_raw(device));
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { add(changes, detach) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_set_vector(
    changes: *mut Handle<CChanges>,
    device: u64,
    vector: usize,
    msi: *const CMsi,
) -> c_int {
    let set = |changes: &mut kvm_memslots::Changes| {
        // SAFETY: as the caller says.
        let msi = unsafe { read_any(msi) }?.map(|msi| msi.msi()).transpose()?;
        changes.set_vector(DeviceId::from_raw(device), vector, msi);
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { add(changes, set) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_set_vector_fd(
    changes: *mut Handle<CChanges>,
    device: u64,
    vector: usize,
    eventfd: c_int,
) -> c_int {
    let set = |changes: &mut kvm_memslots::Changes| {
        let eventfd = descriptor(eventfd, "eventfd")?;
        changes.set_vector_fd(DeviceId::from_raw(device), vector, eventfd);
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { add(changes, set) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_assign_deferred(changes: *mut Handle<CChanges>) -> c_int {
    let assign = |changes: &mut kvm_memslots::Changes| {
        changes.assign_deferred();
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { add(changes, assign) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_assign_deferred_of(
    changes: *mut Handle<CChanges>,
    device: u64,
) -> c_int {
    let assign = |changes: &mut kvm_memslots::Changes| {
        changes.assign_deferred_of(DeviceId::from_raw(device));
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { add(changes, assign) }
}
