//! What a set of changes makes of the regions that it maps.

use std::borrow::Cow;
use std::collections::HashMap;

use kvm_memslots_shim::{GuestMemfd, MemFlags};

use super::Change;
use crate::backing::{Backing, FileRange};
use crate::device::DeviceId;
use crate::{RegionId, RegionSpec};

/// The regions of a set, as its changes leave them.
#[derive(Default)]
pub(super) struct Outcome<'c> {
    /// In the order in which they come; none for what is unmapped again.
    regions: Vec<Option<(RegionId, Cow<'c, RegionSpec>)>>,
    at: HashMap<RegionId, usize>,
    devices: HashMap<DeviceId, &'c [(RegionId, RegionSpec)]>,
}

impl<'c> Outcome<'c> {
    pub(super) fn of(changes: &'c [Change]) -> Self {
        let mut outcome = Self::default();
        for change in changes {
            outcome.take(change);
        }
        outcome
    }

    pub(super) fn regions(self) -> impl Iterator<Item = (RegionId, Cow<'c, RegionSpec>)> {
        self.regions.into_iter().flatten()
    }

    fn take(&mut self, change: &'c Change) {
        match change {
            Change::Map(id, spec) => self.push(*id, Cow::Borrowed(spec)),
            Change::Attach(id, device) => {
                self.devices.insert(*id, &device.regions);
                device.regions.iter().for_each(|(id, spec)| self.push(*id, Cow::Borrowed(spec)));
            }
            Change::Unmap(id) => self.remove(*id),
            Change::Detach(id) => {
                let regions = self.devices.remove(id).unwrap_or_default();
                for (id, _) in regions {
                    self.remove(*id);
                }
            }
            Change::Split(id, upper, offset) => self.split(*id, *upper, *offset),
            Change::Resize(id, size) => self.change(*id, |spec| resize(spec, *size)),
            Change::Move(id, gpa) => self.change(*id, |spec| spec.span.gpa = *gpa),
            Change::Flags(id, set, of) => {
                self.change(*id, |spec| spec.flags = spec.flags & !*of | *set);
            }
            Change::Replace(id, backing) => self.change(*id, |spec| {
                spec.flags.set(MemFlags::GUEST_MEMFD, backing.guest_memfd.is_some());
                spec.backing = Backing::clone(backing);
            }),
            Change::Join(_)
            | Change::MoveInWindow(..)
            | Change::Vector(..)
            | Change::VectorFd(..)
            | Change::AssignDeferred(_)
            | Change::OwnRoutes(_) => {}
        }
    }

    fn push(&mut self, id: RegionId, spec: Cow<'c, RegionSpec>) {
        self.at.insert(id, self.regions.len());
        self.regions.push(Some((id, spec)));
    }

    fn remove(&mut self, id: RegionId) {
        if let Some(at) = self.at.remove(&id) {
            self.regions[at] = None;
        }
    }

    /// Of a region that an earlier change of the set maps.
    fn change(&mut self, id: RegionId, f: impl FnOnce(&mut RegionSpec)) {
        let region = self.at.get(&id).and_then(|at| self.regions[*at].as_mut());
        if let Some((_, spec)) = region {
            f(spec.to_mut());
        }
    }

    fn split(&mut self, id: RegionId, upper: RegionId, offset: u64) {
        let mut high = None;
        self.change(id, |low| {
            if let Some(part) = upper_part(low, offset) {
                (low.span.size, low.backing.len) = (offset, offset);
                high = Some(part);
            }
        });
        if let Some(high) = high {
            self.push(upper, Cow::Owned(high));
        }
    }
}

fn resize(spec: &mut RegionSpec, size: u64) {
    // What is the caller's to keep need not be kept once it is unmapped.
    if size < spec.span.size && spec.backing.owner.is_none() {
        spec.backing.len = size;
    }
    spec.span.size = size;
}

/// What is above `offset` bytes of a region; nothing where it has no such part.
fn upper_part(whole: &RegionSpec, offset: u64) -> Option<RegionSpec> {
    let mut part = whole.clone();
    part.span.size = whole.span.size.checked_sub(offset).filter(|size| *size > 0 && offset > 0)?;
    part.span.gpa = whole.span.gpa.checked_add(offset)?;
    part.backing.hva = whole.backing.hva.checked_add(offset)?;
    part.backing.len = whole.backing.len.checked_sub(offset)?;
    let moved = |from: u64| from.saturating_add(offset);
    part.backing.file =
        part.backing.file.map(|file| FileRange { offset: moved(file.offset), ..file });
    part.backing.guest_memfd =
        part.backing.guest_memfd.map(|memfd| GuestMemfd { offset: moved(memfd.offset), ..memfd });
    Some(part)
}
