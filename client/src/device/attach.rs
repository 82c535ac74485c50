//! Attaching and detaching.

use std::time::Instant;

use kvm_memslots_shim::eventing::Refused;

use super::error::{DeviceError, DeviceErrorKind, DevicePart};
use super::eventing::{Eventing, Slot};
use super::memory::{Memory, map, unmap, who};
use super::parts::Device;
use super::{DeviceId, DeviceReport, DeviceSetup};
use crate::{AddressSpace, RegionId};

impl Eventing {
    /// Attaches one device; see [`attach_all`](Self::attach_all).
    ///
    /// # Errors
    /// As there.
    pub fn attach(
        &mut self,
        space: &mut AddressSpace,
        setup: DeviceSetup,
    ) -> Result<DeviceId, DeviceError> {
        let (ids, _) = self.attach_all(space, [setup])?;
        Ok(ids[0])
    }

    /// Attaches devices, all or none: memory, then routes, irqfds, ioeventfds.
    /// What [`set_vector`](Self::set_vector) has staged is carried out along
    /// with them.
    ///
    /// # Errors
    /// [`DeviceError`], by device and part; nothing is attached then.
    pub fn attach_all(
        &mut self,
        space: &mut AddressSpace,
        setups: impl IntoIterator<Item = DeviceSetup>,
    ) -> Result<(Vec<DeviceId>, DeviceReport), DeviceError> {
        let start = Instant::now();
        let mut memory = Memory::new();
        let mut devices = Vec::new();
        for mut setup in setups {
            memory.push(std::mem::take(&mut setup.regions));
            devices.push(Device::new(setup));
        }
        self.check(&devices)?;
        if let Err(error) = self.take_gsis(&mut devices) {
            self.free_gsis(&devices);
            return Err(error);
        }
        let mapped = match map(space, &mut devices, memory) {
            Ok(mapped) => mapped,
            Err(error) => {
                self.free_gsis(&devices);
                return Err(error);
            }
        };
        let ids = self.insert(devices);
        match self.settle() {
            Ok(events) => {
                self.keep_staged();
                Ok((ids, DeviceReport { memory: mapped, events, elapsed: start.elapsed() }))
            }
            Err(refused) => Err(self.give_up_attaching(space, &ids, refused)),
        }
    }

    /// Takes devices out again whose calls were refused.
    #[cold]
    fn give_up_attaching(
        &mut self,
        space: &mut AddressSpace,
        ids: &[DeviceId],
        refused: Refused,
    ) -> DeviceError {
        let mut error = self.explain(refused);
        let devices: Vec<Device> = ids.iter().filter_map(|id| self.remove(*id)).collect();
        if let DeviceErrorKind::Stuck { .. } = *error.kind {
            self.limbo.extend(devices.iter().flat_map(Device::fds));
            self.set_difference(&mut error);
        }
        self.free_gsis(&devices);
        let all: Vec<RegionId> = devices.iter().flat_map(|device| device.regions.clone()).collect();
        match unmap(space, &all) {
            Ok(_) => error,
            Err(why) => match *error.kind {
                DeviceErrorKind::Stuck { ref mut regions, .. } => {
                    *regions = all;
                    error
                }
                _ => DeviceError {
                    device: error.device.clone(),
                    part: error.part,
                    kind: Box::new(DeviceErrorKind::MemoryStuck {
                        regions: all,
                        error: why,
                        because: Box::new(error),
                    }),
                },
            },
        }
    }

    /// Detaches one device; see [`detach_all`](Self::detach_all).
    ///
    /// # Errors
    /// As there.
    pub fn detach(
        &mut self,
        space: &mut AddressSpace,
        id: DeviceId,
    ) -> Result<DeviceReport, DeviceError> {
        self.detach_all(space, &[id])
    }

    /// Detaches devices, all or none: ioeventfds, then irqfds, routes, memory.
    /// When it returns, no eventfd of theirs raises an interrupt any more, and
    /// host memory is the VMM's again. What is staged is carried out along.
    ///
    /// # Errors
    /// [`DeviceError`], by device and part; all of them are attached then. An
    /// event that arrived meanwhile is still in its eventfd, and raises its
    /// interrupt.
    pub fn detach_all(
        &mut self,
        space: &mut AddressSpace,
        ids: &[DeviceId],
    ) -> Result<DeviceReport, DeviceError> {
        let start = Instant::now();
        for (index, id) in ids.iter().enumerate() {
            let device = self.device(*id)?;
            if ids[..index].contains(id) {
                let mut error = DeviceError::nobodys(DeviceErrorKind::NamedTwice { id: *id });
                error.device = Some(device.name.clone());
                return Err(error);
            }
        }
        let before = self.live.clone();
        let devices: Vec<Device> = ids.iter().filter_map(|id| self.take(*id)).collect();
        let settled = self.settle();
        let regions: Vec<RegionId> =
            devices.iter().flat_map(|device| device.regions.clone()).collect();
        let events = match settled {
            Ok(events) => events,
            Err(refused) => {
                self.put_back(ids, devices);
                let mut error = self.explain(refused);
                self.set_difference(&mut error);
                return Err(error);
            }
        };
        match unmap(space, &regions) {
            Ok(memory) => {
                self.keep_staged();
                self.free_gsis(&devices);
                for id in ids {
                    self.retire(*id);
                }
                Ok(DeviceReport { memory, events, elapsed: start.elapsed() })
            }
            Err(error) => {
                let (device, part) = who(&devices, &error, space);
                self.put_back(ids, devices);
                if let Err(refused) = self.settle_to(&before) {
                    let mut error = self.explain(refused);
                    self.make_stuck(&mut error);
                    return Err(error);
                }
                let kind = Box::new(DeviceErrorKind::Memory(error));
                Err(DeviceError { device, part, kind })
            }
        }
    }

    fn take_gsis(&mut self, devices: &mut [Device]) -> Result<(), DeviceError> {
        let limit = self.limits.routes;
        for line in devices.iter().flat_map(|device| &device.lines) {
            // Lines share GSIs, and the VMM's own routes have reserved some.
            self.gsis.take_this(line.gsi);
        }
        for device in devices {
            for (index, vector) in device.vectors.iter_mut().enumerate() {
                if vector.msi.is_some() {
                    vector.gsi = self.gsis.take();
                    if vector.gsi.is_none() {
                        let part = DevicePart::Vector { index };
                        let kind = DeviceErrorKind::NoGsiLeft { limit };
                        return Err(DeviceError::of(&device.name, part, kind));
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives the GSIs of devices back that are not attached any more.
    fn free_gsis(&mut self, devices: &[Device]) {
        for device in devices {
            for gsi in device.vectors.iter().filter_map(|vector| vector.gsi) {
                self.gsis.give_back(gsi);
            }
            for gsi in device.lines.iter().map(|line| line.gsi) {
                let own = self.own_routes.iter().any(|route| route.gsi == gsi);
                let shared = self.attached().any(|d| d.lines.iter().any(|line| line.gsi == gsi));
                if !own && !shared {
                    self.gsis.give_back(gsi);
                }
            }
        }
    }
}

/// The places of devices.
impl Eventing {
    fn insert(&mut self, devices: Vec<Device>) -> Vec<DeviceId> {
        let mut from = 0;
        let mut place = |device| {
            let free = self.slots[from..].iter().position(|slot| slot.device.is_none());
            let index = free.map_or(self.slots.len(), |free| from + free);
            if index == self.slots.len() {
                self.slots.push(Slot::default());
            }
            from = index + 1;
            self.slots[index].device = Some(device);
            let generation = self.slots[index].generation;
            DeviceId { eventing: self.id, index: index as u32, generation }
        };
        devices.into_iter().map(&mut place).collect()
    }

    /// Takes a device out, without its id.
    fn take(&mut self, id: DeviceId) -> Option<Device> {
        self.slots.get_mut(id.index as usize)?.device.take()
    }

    fn put_back(&mut self, ids: &[DeviceId], devices: Vec<Device>) {
        for (id, device) in ids.iter().zip(devices) {
            if let Some(slot) = self.slots.get_mut(id.index as usize) {
                slot.device = Some(device);
            }
        }
    }

    /// The id never names a device again.
    fn retire(&mut self, id: DeviceId) {
        if let Some(slot) = self.slots.get_mut(id.index as usize) {
            slot.generation = slot.generation.wrapping_add(1);
        }
    }

    fn remove(&mut self, id: DeviceId) -> Option<Device> {
        let device = self.take(id);
        self.retire(id);
        device
    }
}
