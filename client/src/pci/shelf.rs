//! Memory of BARs that the guest has put in a window: placed there, without a
//! slot.

use std::collections::{BTreeMap, HashMap};

use kvm_memslots_shim::{Errno, MemFlags, Range};

use super::error::PciError;
use super::id::FunctionId;
use super::places::{Item, Key};
use crate::window::{CheckedFile, Contents, Placement, Window, WindowError, WindowErrorKind};
use crate::{Access, RegionSpec, Vm};

/// What is placed in which window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    window: usize,
    placement: Placement,
    file_offset: u64,
}

/// The windows, and what is in them.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    /// Whether there is to be no memory anywhere else.
    pub(super) has_all: bool,
    windows: Vec<Window>,
    /// Of each part that is in a file: that, or why it can't be placed.
    files: HashMap<Key, Result<CheckedFile, WindowErrorKind>>,
    placed: HashMap<Key, Spot>,
}

impl Shelf {
    pub(super) fn add(&mut self, window: Window) {
        self.windows.push(window);
    }

    /// A part of a function that is new.
    pub(super) fn learn(&mut self, key: Key, spec: &RegionSpec) {
        let file = spec.backing.file.filter(|_| !self.windows.is_empty());
        if let Some(file) = file {
            self.files.insert(key, CheckedFile::duplicate(file.fd));
        }
    }

    /// The function is gone, and nothing of it is placed.
    pub(super) fn forget(&mut self, function: FunctionId) {
        self.files.retain(|(id, ..), _| *id != function);
    }

    /// In which window all of a range is, and where in it.
    pub(super) fn find(&self, vm: &Vm, as_id: u16, range: Range) -> Option<(usize, u64)> {
        let mut windows = self.windows.iter().enumerate();
        windows.find_map(|(n, window)| Some((n, window.offset_of(vm, as_id, range)?)))
    }

    /// What a part there is to be.
    pub(super) fn spot(
        &self,
        key: Key,
        spec: &RegionSpec,
        (window, offset): (usize, u64),
    ) -> Result<Spot, PciError> {
        let special = MemFlags::TRAP | MemFlags::GUEST_MEMFD;
        let file = spec.backing.file.filter(|_| !spec.flags.intersects(special));
        let file = file.ok_or(PciError::NoFile)?;
        match self.files.get(&key) {
            Some(Ok(_)) => {}
            Some(Err(kind)) => return Err(PciError::File(kind.clone())),
            None => return Err(PciError::NoFile),
        }
        let read_only =
            spec.flags.contains(MemFlags::READONLY) || spec.backing.access == Access::Read;
        let access = if read_only { Access::Read } else { Access::ReadWrite };
        let (len, file_offset) = (spec.span.size, file.offset);
        let placement = Placement { offset, len, access, file_offset: Some(file_offset) };
        Ok(Spot { window, placement, file_offset })
    }

    /// What is placed of a BAR.
    pub(super) fn of(&self, function: FunctionId, bar: usize) -> Vec<(usize, Placement)> {
        let mine = self.placed.iter().filter(|((f, b, _), _)| (*f, *b) == (function, bar));
        let part = |(key, spot): (&Key, &Spot)| match key.2 {
            Item::Window(part) => Some((part, spot.placement)),
            Item::Doorbell(_) => None,
        };
        let mut mine: Vec<_> = mine.filter_map(part).collect();
        mine.sort_unstable_by_key(|(part, _)| *part);
        mine
    }

    /// Removes what is not to be there.
    pub(super) fn clear(&mut self, wanted: &BTreeMap<Key, Spot>) -> Result<(), WindowError> {
        // Somebody else may have removed it.
        let there = |spot: &Spot| {
            self.windows[spot.window].at(spot.placement.offset) == Some(spot.placement)
        };
        let gone = self
            .placed
            .iter()
            .filter(|(key, spot)| wanted.get(*key) != Some(*spot) || !there(spot));
        let gone: Vec<(Key, Spot, bool)> =
            gone.map(|(key, spot)| (*key, *spot, there(spot))).collect();
        for (key, spot, is_there) in gone {
            let Placement { offset, len, .. } = spot.placement;
            if is_there {
                self.windows[spot.window].remove(offset, len)?;
            }
            self.placed.remove(&key);
        }
        Ok(())
    }

    /// Places what is to be there and is not; stops at the first that is refused.
    pub(super) fn fill(&mut self, wanted: &BTreeMap<Key, Spot>) -> Result<(), (Key, WindowError)> {
        for (key, spot) in wanted {
            let (false, Some(Ok(file))) = (self.placed.contains_key(key), self.files.get(key))
            else {
                continue;
            };
            let Placement { offset, len, access, .. } = spot.placement;
            let contents = Contents::checked(file, spot.file_offset);
            let contents = match access {
                Access::Read => contents.read_only(),
                Access::ReadWrite => contents,
            };
            let placed = self.windows[spot.window].place(offset, len, contents);
            placed.map_err(|error| (*key, error))?;
            self.placed.insert(*key, *spot);
        }
        Ok(())
    }
}

/// Whether a place that was refused is one BAR's trouble: not a host that is out
/// of memory, nor a fork.
pub(super) fn is_its_own(error: &WindowError) -> bool {
    !matches!(error.errno(), Errno::ENOMEM | Errno::EIO)
}
