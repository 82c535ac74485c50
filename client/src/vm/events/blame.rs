//! Whom a call is about, to explain a refusal: looked for when there is one.

use std::sync::Arc;

use kvm_memslots_shim::events::{Irqfd, Op, Part, Route};

use super::attached::Attached;
use super::change::EventChange;
use super::claims::Owner;
use super::draft::{Altered, Edited};
use super::{Devices, EventState};
use crate::device::{DeviceId, DevicePart};

/// Whom a call is about: the name of a device, its part, and the change that is
/// to blame. No name where it is nobody's.
pub(in crate::vm) type Blame = (Arc<str>, DevicePart, Option<usize>);

impl EventChange {
    /// Whom a call of this change is about, of a VM that has these devices still.
    pub(in crate::vm) fn blame(&self, op: &Op, state: &EventState, devices: &Devices) -> Blame {
        let owner: Option<Owner> = match op {
            Op::Assign(part @ (Part::Ioeventfd(_) | Part::Zone(_)))
            | Op::Deassign(part @ (Part::Ioeventfd(_) | Part::Zone(_))) => {
                let claims = [&self.come, &self.gone, &state.claims];
                claims.into_iter().find_map(|claims| claims.owner(part))
            }
            Op::Assign(Part::Irqfd(_)) | Op::Deassign(Part::Irqfd(_)) | Op::Routes { .. } => {
                // What others do not have of it is about those that change.
                let mut ids = self.edits.keys().chain(devices.keys());
                ids.find_map(|id| {
                    let (device, altered) = self.device(*id, devices)?;
                    let part = part_of(op, device, altered, state.no_irqbypass)?;
                    Some((*id, part))
                })
            }
        };
        let Some((id, part)) = owner else {
            return ("".into(), DevicePart::Routes, self.own_routes_change);
        };
        let device = self.device(id, devices);
        let name = device.map(|(device, _)| Arc::clone(&device.name)).unwrap_or_default();
        (name, part, self.edits.get(&id).map(|edit| edit.number))
    }

    /// A device that comes, or is there, and those of its vectors that change.
    fn device<'a>(
        &'a self,
        id: DeviceId,
        devices: &'a Devices,
    ) -> Option<(&'a Attached, Option<&'a Altered>)> {
        let there = devices.get(&id);
        match self.edits.get(&id).map(|edit| &edit.what) {
            Some(Edited::New(device)) => Some((device, None)),
            Some(Edited::Altered { vectors, .. }) => Some((there?, Some(vectors))),
            Some(Edited::Gone) | None => Some((there?, None)),
        }
    }
}

/// The part of a device that a call is about: of irqfds, or of routes.
fn part_of(
    op: &Op,
    device: &Attached,
    altered: Option<&Altered>,
    no_irqbypass: bool,
) -> Option<DevicePart> {
    let is = |route: Option<Route>, irqfd: Option<Irqfd>| match op {
        Op::Routes { from, to } => {
            route.is_some_and(|route| from.contains(&route) != to.contains(&route))
        }
        Op::Assign(Part::Irqfd(it)) | Op::Deassign(Part::Irqfd(it)) => irqfd == Some(*it),
        _ => false,
    };
    let before = device.vectors.iter().enumerate();
    let after = altered.into_iter().flatten().map(|(index, vector)| (*index, vector));
    let vectors = before.chain(after).find(|(_, vector)| {
        let (route, irqfd) = device.of_vector(vector, no_irqbypass);
        is(route, irqfd)
    });
    let vector = vectors.map(|(index, _)| DevicePart::Vector { index });
    let part = vector.or_else(|| {
        let line = device.lines.iter().find(|line| {
            let (route, irqfd) = device.of_line(line, no_irqbypass);
            is(route, Some(irqfd))
        })?;
        Some(DevicePart::Line { gsi: line.gsi })
    })?;
    Some(if matches!(op, Op::Routes { .. }) { DevicePart::Routes } else { part })
}
