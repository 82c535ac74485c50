//! The regions of an address space, and the edits of the transaction at hand.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_memslots_shim::{Extent, GuestMemfd, Kind, Mapping, MemFlags, Range};

use crate::error::{Described, Error};
use crate::{HostMemory, Region, RegionId};

/// Numbers address spaces, so that an id is not taken for one of another.
static SPACES: AtomicU32 = AtomicU32::new(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Mapped,
    /// Unmapped by the transaction at hand.
    Leaving,
}

/// Whether a region waits for its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deferral {
    /// It never does.
    Never,
    /// It does: there is no slot.
    Waiting,
    /// It did, or would have.
    Over,
}

/// An extent and its bookkeeping in 48 bytes.
#[derive(Debug, Clone, Copy)]
struct Entry {
    gpa: u64,
    size: u64,
    hva: u64,
    memfd_offset: u64,
    memfd: i32,
    generation: u32,
    flags: u16,
    kind: Kind,
    alone: bool,
    deferral: Deferral,
    state: State,
}

impl Entry {
    fn set(&mut self, extent: &Extent) {
        let Mapping { range, hva, guest_memfd, flags, kind } = extent.mapping;
        let memfd = guest_memfd.unwrap_or(GuestMemfd { fd: 0, offset: 0 });
        *self = Self {
            gpa: range.gpa,
            size: range.size,
            hva,
            memfd_offset: memfd.offset,
            memfd: memfd.fd,
            // KVM_MEM_* that userspace may set are bits 0 to 15.
            flags: flags.bits() as u16,
            kind,
            alone: extent.alone,
            ..*self
        };
    }

    fn extent(&self) -> Extent {
        let flags = MemFlags::from_bits_retain(u32::from(self.flags));
        let memfd = GuestMemfd { fd: self.memfd, offset: self.memfd_offset };
        let mapping = Mapping {
            range: Range::new(self.gpa, self.size),
            hva: self.hva,
            guest_memfd: flags.contains(MemFlags::GUEST_MEMFD).then_some(memfd),
            flags,
            kind: self.kind,
        };
        Extent { mapping, alone: self.alone }
    }
}

/// What the transaction at hand did to a region, to be taken back if it is not
/// committed.
#[derive(Debug)]
pub(crate) enum Edit {
    Added(u32),
    Removed(u32),
    /// The region, and how it was. Its guest address never changes. Boxed, as
    /// most edits are of the other kinds.
    Changed(u32, Box<Extent>),
    /// The region waited for its slot.
    Promoted(u32),
}

impl Edit {
    /// The region.
    pub(crate) const fn index(&self) -> u32 {
        match self {
            Self::Added(index)
            | Self::Removed(index)
            | Self::Changed(index, _)
            | Self::Promoted(index) => *index,
        }
    }
}

/// Regions by index and by guest address.
///
/// A transaction edits the table in place and keeps a journal, so that a commit
/// of a few regions among thousands costs what those few cost.
pub(crate) struct RegionTable {
    space: u32,
    entries: Vec<Entry>,
    free: Vec<u32>,
    by_gpa: BTreeMap<u64, u32>,
    labels: HashMap<u32, Box<str>>,
    owners: HashMap<u32, Arc<dyn HostMemory>>,
    /// Those mapped that are deferrable.
    deferrable: BTreeSet<u32>,
    journal: Vec<Edit>,
}

impl RegionTable {
    pub(crate) fn new() -> Self {
        Self {
            space: SPACES.fetch_add(1, Ordering::Relaxed),
            entries: Vec::new(),
            free: Vec::new(),
            by_gpa: BTreeMap::new(),
            labels: HashMap::new(),
            owners: HashMap::new(),
            deferrable: BTreeSet::new(),
            journal: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_gpa.len()
    }

    pub(crate) fn id(&self, index: u32) -> RegionId {
        let generation = self.entries[index as usize].generation;
        RegionId { space: self.space, index, generation }
    }

    /// The index that `id` names.
    pub(crate) fn index_of(&self, id: RegionId) -> Result<u32, Error> {
        if id.space != self.space {
            return Err(Error::ForeignRegion { id, space: self.space });
        }
        match self.entries.get(id.index as usize) {
            Some(entry) if entry.generation == id.generation && entry.state == State::Mapped => {
                Ok(id.index)
            }
            Some(entry) if entry.generation >= id.generation => Err(Error::StaleRegion { id }),
            _ => Err(Error::UnknownRegion { id, space: self.space }),
        }
    }

    pub(crate) fn extent(&self, index: u32) -> Extent {
        self.entries[index as usize].extent()
    }

    pub(crate) fn region(&self, index: u32) -> Region<'_> {
        let Extent { mapping, alone } = self.extent(index);
        let deferral = self.deferral(index);
        Region {
            id: self.id(index),
            range: mapping.range,
            hva: mapping.hva,
            guest_memfd: mapping.guest_memfd,
            flags: mapping.flags,
            kind: mapping.kind,
            alone,
            deferrable: deferral != Deferral::Never,
            deferred: deferral == Deferral::Waiting,
            label: self.label(index),
        }
    }

    pub(crate) fn deferral(&self, index: u32) -> Deferral {
        self.entries[index as usize].deferral
    }

    /// What a slot has to say of the region; nothing while that waits for one.
    pub(crate) fn wanted(&self, index: u32) -> Option<Extent> {
        (self.deferral(index) != Deferral::Waiting).then(|| self.extent(index))
    }

    /// The regions that are deferrable, by index.
    pub(crate) fn deferrable(&self) -> impl Iterator<Item = u32> + '_ {
        self.deferrable.iter().copied()
    }

    /// Whether the transaction at hand is about any of those.
    pub(crate) fn edits_deferrable(&self) -> bool {
        self.journal.iter().any(|edit| self.deferral(edit.index()) != Deferral::Never)
    }

    /// Has the region wait no longer.
    pub(crate) fn promote(&mut self, index: u32) {
        self.entries[index as usize].deferral = Deferral::Over;
        self.journal.push(Edit::Promoted(index));
    }

    pub(crate) fn label(&self, index: u32) -> Option<&str> {
        self.labels.get(&index).map(|label| &**label)
    }

    pub(crate) fn owner(&self, index: u32) -> Option<&Arc<dyn HostMemory>> {
        self.owners.get(&index)
    }

    pub(crate) fn describe(&self, index: u32) -> Box<Described> {
        self.describe_as(index, &self.extent(index).mapping)
    }

    /// The region, as if it had this mapping.
    pub(crate) fn describe_as(&self, index: u32, mapping: &Mapping) -> Box<Described> {
        Described::new(Some(self.id(index)), self.label(index), mapping)
    }

    /// Indices by guest address.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.by_gpa.values().copied()
    }

    /// The region at a guest address.
    pub(crate) fn at(&self, gpa: u64) -> Option<u32> {
        let (_, index) = self.by_gpa.range(..=gpa).next_back()?;
        let entry = &self.entries[*index as usize];
        (gpa - entry.gpa < entry.size).then_some(*index)
    }

    /// A region other than `except` that overlaps `range`.
    pub(crate) fn in_the_way(&self, range: Range, except: Option<u32>) -> Option<u32> {
        let overlaps = |index: &u32| {
            let entry = &self.entries[*index as usize];
            Range::new(entry.gpa, entry.size).overlaps(range)
        };
        // Regions mostly come in ascending order.
        let (last, index) = self.by_gpa.last_key_value()?;
        if *last < range.gpa && Some(*index) != except {
            return Some(*index).filter(overlaps);
        }
        // Regions are disjoint: if any overlaps, the last one that starts below
        // the end does.
        self.by_gpa
            .range(..range.end())
            .rev()
            .map(|(_, index)| *index)
            .find(|index| Some(*index) != except)
            .filter(overlaps)
    }

    /// Regions that overlap `range`, by guest address.
    pub(crate) fn overlapping(&self, range: Range) -> impl Iterator<Item = u32> + '_ {
        let first = self.at(range.gpa).map_or(range.gpa, |index| self.entries[index as usize].gpa);
        self.by_gpa.range(first..range.end()).map(|(_, index)| *index)
    }

    /// A region in `range`, or one that the transaction at hand takes away.
    pub(crate) fn in_or_from(&self, range: Range) -> Option<u32> {
        let leaving = || {
            self.journal.iter().find_map(|edit| match edit {
                Edit::Removed(index) => {
                    self.extent(*index).mapping.range.overlaps(range).then_some(*index)
                }
                Edit::Added(_) | Edit::Changed(..) | Edit::Promoted(_) => None,
            })
        };
        self.overlapping(range).next().or_else(leaving)
    }

    pub(crate) fn journal(&self) -> &[Edit] {
        &self.journal
    }

    /// The regions that the transaction at hand changed or took away, as they
    /// were before it.
    pub(crate) fn changed(&self) -> Vec<Mapping> {
        // Only the first edit of a region has what was there before.
        let mut seen = HashSet::new();
        self.journal
            .iter()
            .filter_map(|edit| match edit {
                Edit::Added(index) => {
                    seen.insert(*index);
                    None
                }
                Edit::Promoted(_) => None,
                Edit::Removed(index) => seen.insert(*index).then(|| self.extent(*index).mapping),
                Edit::Changed(index, before) => seen.insert(*index).then_some(before.mapping),
            })
            .collect()
    }

    pub(crate) fn is_mapped(&self, index: u32) -> bool {
        self.entries[index as usize].state == State::Mapped
    }

    /// Adds a region, whose addresses must be free.
    pub(crate) fn add(
        &mut self,
        extent: &Extent,
        label: Option<Box<str>>,
        owner: Option<Arc<dyn HostMemory>>,
        deferral: Deferral,
    ) -> RegionId {
        let index = self.free.pop().unwrap_or_else(|| {
            let index = self.entries.len();
            if index == self.entries.capacity() {
                // Doubling would make the worst case twice the need.
                self.entries.reserve_exact((index / 4).max(4));
            }
            self.entries.push(Entry {
                gpa: 0,
                size: 0,
                hva: 0,
                memfd_offset: 0,
                memfd: 0,
                generation: 0,
                flags: 0,
                kind: Kind::Ram,
                alone: false,
                deferral: Deferral::Never,
                state: State::Free,
            });
            index as u32
        });
        let entry = &mut self.entries[index as usize];
        entry.set(extent);
        entry.deferral = deferral;
        entry.state = State::Mapped;
        if deferral != Deferral::Never {
            self.deferrable.insert(index);
        }
        self.by_gpa.insert(extent.mapping.range.gpa, index);
        if let Some(label) = label {
            self.labels.insert(index, label);
        }
        if let Some(owner) = owner {
            self.owners.insert(index, owner);
        }
        self.journal.push(Edit::Added(index));
        self.id(index)
    }

    pub(crate) fn remove(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.state = State::Leaving;
        self.by_gpa.remove(&entry.gpa);
        self.deferrable.remove(&index);
        self.journal.push(Edit::Removed(index));
    }

    /// Gives a region another extent at the same guest address.
    pub(crate) fn change(&mut self, index: u32, extent: &Extent) {
        let entry = &mut self.entries[index as usize];
        self.journal.push(Edit::Changed(index, Box::new(entry.extent())));
        entry.set(extent);
    }

    /// Takes the edits of the transaction at hand back, the last one first.
    pub(crate) fn roll_back(&mut self) {
        while let Some(edit) = self.journal.pop() {
            match edit {
                Edit::Added(index) => {
                    if self.is_mapped(index) {
                        let gpa = self.entries[index as usize].gpa;
                        self.by_gpa.remove(&gpa);
                    }
                    self.release(index);
                }
                Edit::Removed(index) => {
                    let entry = &mut self.entries[index as usize];
                    entry.state = State::Mapped;
                    self.by_gpa.insert(entry.gpa, index);
                    if entry.deferral != Deferral::Never {
                        self.deferrable.insert(index);
                    }
                }
                Edit::Promoted(index) => {
                    self.entries[index as usize].deferral = Deferral::Waiting;
                }
                Edit::Changed(index, before) => self.entries[index as usize].set(&before),
            }
        }
    }

    /// Makes the edits of the transaction at hand permanent.
    pub(crate) fn settle(&mut self) {
        for edit in std::mem::take(&mut self.journal) {
            if let Edit::Removed(index) = edit {
                self.release(index);
            }
        }
    }

    /// Makes an index free for another region, under another generation.
    fn release(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.state = State::Free;
        self.deferrable.remove(&index);
        self.labels.remove(&index);
        self.owners.remove(&index);
        // An index whose generations are used up is not used again.
        if let Some(generation) = entry.generation.checked_add(1) {
            entry.generation = generation;
            self.free.push(index);
        }
    }

    /// The owners of the regions that the transaction at hand adds.
    pub(crate) fn added_owners(&self) -> impl Iterator<Item = Arc<dyn HostMemory>> + '_ {
        self.journal.iter().filter_map(|edit| match edit {
            Edit::Added(index) => self.owners.get(index).cloned(),
            Edit::Removed(_) | Edit::Changed(..) | Edit::Promoted(_) => None,
        })
    }

    pub(crate) fn has_owners(&self) -> bool {
        !self.owners.is_empty()
    }

    pub(crate) fn owned(&self) -> HashSet<u32> {
        self.owners.keys().copied().collect()
    }

    pub(crate) fn take_owners(&mut self) -> HashMap<u32, Arc<dyn HostMemory>> {
        std::mem::take(&mut self.owners)
    }
}
