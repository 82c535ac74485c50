//! Memory of BARs that the guest has put in a window: placed there, without a
//! slot.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use kvm_memslots_shim::{Errno, MemFlags, Range};

use super::bells::BarKey;
use super::error::PciError;
use super::id::FunctionId;
use super::places::{Item, Key, keys_of};
use crate::window::{
    Astray, CheckedFile, Placement, Steps, Window, WindowError, WindowErrorKind, WindowPart,
};
use crate::{Access, RegionSpec, Vm};

/// The windows, and what is in them.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    /// Whether there is to be no memory anywhere else.
    pub(super) has_all: bool,
    windows: Vec<Window>,
    /// Of each part that is in a file: that, or why it can't be placed.
    files: HashMap<Key, Result<CheckedFile, WindowErrorKind>>,
    placed: BTreeMap<Key, WindowPart>,
    astray: Astray<Key>,
}

impl Shelf {
    pub(super) fn add(&mut self, window: Window) {
        self.windows.push(window);
    }

    /// A part of a function that is new.
    pub(super) fn learn(&mut self, key: Key, spec: &RegionSpec) {
        let file = spec.backing.descriptor().filter(|_| !self.windows.is_empty());
        self.files.extend(file.map(|file| (key, CheckedFile::duplicate(file))));
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
    pub(super) fn part(
        &self,
        key: Key,
        spec: &RegionSpec,
        (window, offset): (usize, u64),
    ) -> Result<WindowPart, PciError> {
        let special = spec.flags.intersects(MemFlags::TRAP | MemFlags::GUEST_MEMFD);
        let range = spec.backing.file.filter(|_| !special).ok_or(PciError::NoFile)?;
        let file = match self.files.get(&key) {
            Some(Ok(file)) => file,
            Some(Err(kind)) => return Err(PciError::File(kind.clone())),
            None => return Err(PciError::NoFile),
        };
        let window = &self.windows[window];
        let part = WindowPart::new(window, offset, spec.span.size, file, range.offset);
        let read_only =
            spec.flags.contains(MemFlags::READONLY) || spec.backing.access == Access::Read;
        Ok(if read_only { part.read_only() } else { part })
    }

    /// What is placed of a BAR.
    pub(super) fn of(&self, bar: BarKey) -> Vec<(usize, Placement)> {
        let mine = self.placed.range(keys_of(bar));
        mine.filter_map(|(key, part)| match key.2 {
            Item::Window(n) => Some((n, part.placement())),
            Item::Doorbell(_) => None,
        })
        .collect()
    }

    /// Has the windows hold what is wanted of those `bars`, and nothing else of theirs; or what
    /// they held before. An error that is one BAR's trouble says whose: not that a host
    /// is out of memory, nor a fork.
    pub(super) fn follow(
        &mut self,
        bars: &BTreeSet<BarKey>,
        mut wanted: BTreeMap<Key, WindowPart>,
    ) -> Result<(), (Option<Key>, WindowError)> {
        let its_own = |error: &WindowError| !matches!(error.errno(), Errno::ENOMEM | Errno::EIO);
        self.astray.repair().map_err(|(_, error)| (None, error))?;
        let stays = |(key, part): &(&Key, &WindowPart)| {
            part.is_there() && wanted.get(*key).is_some_and(|now| now.is(part))
        };
        let placed = bars.iter().flat_map(|bar| self.placed.range(keys_of(*bar)));
        let (stay, gone): (Vec<_>, Vec<_>) = placed.partition(stays);
        let stay: HashSet<Key> = stay.into_iter().map(|(key, _)| *key).collect();
        let own = |(key, part): (&Key, &WindowPart)| (*key, part.clone());
        let come = wanted.iter().filter(|(key, _)| !stay.contains(*key)).map(own).collect();
        let gone: Vec<_> = gone.into_iter().map(own).collect();
        let left: Vec<Key> = gone.iter().map(|(key, _)| *key).collect();
        let steps = Steps::new(gone, come).map_err(|(key, error)| (Some(key), error))?;
        steps.take(&mut self.astray).map_err(|refused| {
            let blamed = refused.comes && refused.undone.is_empty() && its_own(&refused.error);
            (blamed.then_some(refused.whose), refused.error)
        })?;
        for key in &left {
            self.placed.remove(key);
        }
        self.placed.append(&mut wanted);
        Ok(())
    }
}
