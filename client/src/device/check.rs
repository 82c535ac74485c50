//! What is wrong with devices that are to be attached, before any call.

use std::collections::BTreeMap;

use kvm_memslots_shim::eventing::{Bus, Ioeventfd, Msi, RouteTarget};

use super::Eventing;
use super::error::{DeviceError, DeviceErrorKind, DevicePart};
use super::parts::Device;

impl Eventing {
    /// Checks devices against each other and against what is attached.
    pub(super) fn check(&self, new: &[Device]) -> Result<(), DeviceError> {
        self.check_ioeventfds(new)?;
        self.check_lines(new)?;
        for device in new {
            for (index, vector) in device.vectors.iter().enumerate() {
                self.check_msi(&device.name, index, vector.msi)?;
            }
        }
        self.check_route_count(new)
    }

    pub(super) fn check_msi(
        &self,
        device: &str,
        index: usize,
        msi: Option<Msi>,
    ) -> Result<(), DeviceError> {
        if msi.is_some_and(|msi| msi.devid.is_some()) && !self.limits.devid {
            let part = DevicePart::Vector { index };
            return Err(DeviceError::of(device, part, DeviceErrorKind::NoDevid));
        }
        Ok(())
    }

    fn check_ioeventfds(&self, new: &[Device]) -> Result<(), DeviceError> {
        let mut taken = BTreeMap::<(Bus, u64), Vec<(&Device, DevicePart, Ioeventfd)>>::new();
        let places = |device: &Device| {
            let at = |(index, ioeventfd): (usize, Ioeventfd)| {
                let (bus, addr) = (ioeventfd.bus, ioeventfd.addr);
                (DevicePart::Ioeventfd { index, bus, addr }, ioeventfd)
            };
            let all = device.ioeventfds.iter().map(super::setup::IoeventfdSpec::ioeventfd);
            all.enumerate().map(at).collect::<Vec<_>>()
        };
        for device in self.attached() {
            for (part, ioeventfd) in places(device) {
                let here = taken.entry((ioeventfd.bus, ioeventfd.addr)).or_default();
                here.push((device, part, ioeventfd));
            }
        }
        for device in new {
            for (part, ioeventfd) in places(device) {
                let here = taken.entry((ioeventfd.bus, ioeventfd.addr)).or_default();
                if let Some((other, other_part, _)) =
                    here.iter().find(|(_, _, other)| other.collides_with(&ioeventfd))
                {
                    let other = other.name.clone();
                    let other_part = *other_part;
                    let kind = DeviceErrorKind::IoeventfdTaken { other, other_part };
                    return Err(DeviceError::of(&device.name, part, kind));
                }
                here.push((device, part, ioeventfd));
            }
        }
        Ok(())
    }

    fn check_lines(&self, new: &[Device]) -> Result<(), DeviceError> {
        let mut lines = BTreeMap::new();
        let mut vectors = BTreeMap::new();
        for device in self.attached() {
            lines.extend(device.lines.iter().map(|line| (line.gsi, (device, line))));
            let gsis = device.vectors.iter().filter_map(|vector| vector.gsi);
            vectors.extend(gsis.map(|gsi| (gsi, device)));
        }
        for device in new {
            for line in &device.lines {
                let (gsi, limit) = (line.gsi, self.limits.routes);
                let refused =
                    |kind| Err(DeviceError::of(&device.name, DevicePart::Line { gsi }, kind));
                if gsi >= limit {
                    return refused(DeviceErrorKind::GsiBeyondLimit { gsi, limit });
                }
                if self.reserved.iter().any(|range| range.contains(&gsi)) {
                    let by = "the VMM, which reserved it".into();
                    return refused(DeviceErrorKind::GsiTaken { gsi, by });
                }
                if let Some(other) = vectors.get(&gsi) {
                    let by = format!("a vector of device \"{}\"", other.name).into();
                    return refused(DeviceErrorKind::GsiTaken { gsi, by });
                }
                if let Some((other, other_line)) = lines.insert(gsi, (device, line)) {
                    let shared = other_line.resample.is_some() && line.resample.is_some();
                    if !shared || (line.pin.is_some() && line.pin != other_line.pin) {
                        let by = format!("a line of device \"{}\"", other.name).into();
                        return refused(DeviceErrorKind::GsiTaken { gsi, by });
                    }
                }
                if line.pin.is_some_and(|pin| self.clashes(gsi, pin)) {
                    return refused(DeviceErrorKind::RouteTaken { gsi });
                }
            }
        }
        Ok(())
    }

    /// Whether the VMM's own routes leave no room for this one.
    fn clashes(&self, gsi: u32, (chip, pin): (u32, u32)) -> bool {
        let own = self.own_routes.iter().filter(|route| route.gsi == gsi);
        own.map(|route| route.target).any(|target| match target {
            RouteTarget::Irqchip { chip: other, pin: there } => other == chip && there != pin,
            _ => true,
        })
    }

    fn check_route_count(&self, new: &[Device]) -> Result<(), DeviceError> {
        // New vectors have no GSI yet, so `add_to` leaves them out.
        let (mut state, mut vectors) = (self.wanted(), 0);
        let limit = self.limits.routes;
        for device in new {
            vectors += device.vectors.iter().filter(|vector| vector.msi.is_some()).count();
            device.add_to(&mut state, false);
            let routes = state.routes.len() + vectors;
            if routes > limit as usize {
                let kind = DeviceErrorKind::TooManyRoutes { routes, limit };
                return Err(DeviceError::of(&device.name, DevicePart::Routes, kind));
            }
        }
        Ok(())
    }
}
