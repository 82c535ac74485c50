//! The memory of devices, in one transaction.

use std::sync::Arc;

use super::error::{DeviceError, DeviceErrorKind, DevicePart};
use super::parts::Device;
use crate::{AddressSpace, CommitReport, Error, HostMemory, Range, RegionId, RegionSpec};

/// The memory of each device: its regions, and who keeps them alive.
pub(super) type Memory = Vec<Vec<(RegionSpec, Option<Arc<dyn HostMemory>>)>>;

/// Maps the memory of all devices in one transaction.
pub(super) fn map(
    space: &mut AddressSpace,
    devices: &mut [Device],
    memory: Memory,
) -> Result<Option<CommitReport>, DeviceError> {
    if memory.iter().all(Vec::is_empty) {
        return Ok(None);
    }
    let ranges: Vec<Vec<Range>> = memory
        .iter()
        .map(|regions| regions.iter().map(|(spec, _)| spec.extent.mapping.range).collect())
        .collect();
    let mut tx = space.begin();
    for (device, regions) in devices.iter_mut().zip(memory) {
        for (index, (spec, owner)) in regions.into_iter().enumerate() {
            let mapped = match owner {
                Some(owner) => tx.map_owned(spec, owner),
                // SAFETY: whoever added the region promised this
                // (`DeviceSetup::region`).
                None => unsafe { tx.map(spec) },
            };
            let id = mapped.map_err(|error| {
                let kind = DeviceErrorKind::Memory(error);
                DeviceError::of(&device.name, DevicePart::Region { index }, kind)
            })?;
            device.regions.push(id);
        }
    }
    tx.commit().map(Some).map_err(|error| {
        let place = blamed(&error).and_then(|blamed| {
            let overlaps = |range: &Range| range.gpa < blamed.end() && blamed.gpa < range.end();
            ranges.iter().zip(&*devices).find_map(|(ranges, device)| {
                let index = ranges.iter().position(overlaps)?;
                Some((device.name.clone(), DevicePart::Region { index }))
            })
        });
        let (device, part) = place.unzip();
        DeviceError { device, part, kind: Box::new(DeviceErrorKind::Memory(error)) }
    })
}

pub(super) fn unmap(
    space: &mut AddressSpace,
    regions: &[RegionId],
) -> Result<Option<CommitReport>, Error> {
    if regions.is_empty() {
        return Ok(None);
    }
    let mut tx = space.begin();
    for region in regions {
        tx.unmap(*region)?;
    }
    tx.commit().map(Some)
}

/// The device and the part of it that an error of an unmap is about.
pub(super) fn who(
    devices: &[Device],
    error: &Error,
    space: &AddressSpace,
) -> (Option<Box<str>>, Option<DevicePart>) {
    let is_there = |id: &RegionId| {
        blamed(error).is_some_and(|blamed| {
            space.region(*id).is_ok_and(|region| {
                region.range.gpa < blamed.end() && blamed.gpa < region.range.end()
            })
        })
    };
    let found = devices.iter().find_map(|device| {
        let index = device.regions.iter().position(is_there)?;
        Some((device.name.clone(), DevicePart::Region { index }))
    });
    found.unzip()
}

/// The guest addresses that an error of a commit is about.
fn blamed(error: &Error) -> Option<Range> {
    match error {
        Error::Refused { range, .. } | Error::Hole { range, .. } => Some(*range),
        _ => None,
    }
}
