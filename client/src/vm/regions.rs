//! The regions of a VM, as they are applied.

use std::collections::BTreeSet;
use std::sync::Arc;

use kvm_memslots_shim::memory::Extent;
use kvm_memslots_shim::{Mapping, MemFlags, Range};

use super::entry::{ALONE, ByHva, DEFERRABLE, EXTRA, Entry, FREE, PERMANENT, WAITS};
use super::record::{Deferral, Extra, Record};
use crate::by_gpa::ByGpa;
use crate::by_id::ById;
use crate::error::Described;
use crate::{Region, RegionId};

/// Regions by name, by guest address, and by what else they are looked up by.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    entries: Vec<Entry>,
    free: Vec<u32>,
    ids: ById<u64, u32>,
    /// For each address space.
    by_gpa: Vec<ByGpa<u32>>,
    extras: ById<u32, Arc<Extra>>,
    tags: BTreeSet<(u64, u32)>,
    deferrable: BTreeSet<u32>,
    /// Those of them that wait for a slot.
    waiting: BTreeSet<u32>,
    /// Made when it is first asked for, as most VMMs never do.
    by_hva: Option<ByHva>,
}

impl Regions {
    pub(crate) fn new(address_spaces: u16) -> Self {
        Self {
            by_gpa: (0..address_spaces.min(u8::MAX.into())).map(|_| ByGpa::default()).collect(),
            ..Self::default()
        }
    }

    pub(crate) fn len(&self, as_id: u16) -> usize {
        self.by_gpa.get(usize::from(as_id)).map_or(0, ByGpa::len)
    }

    pub(crate) fn find(&self, id: RegionId) -> Option<u32> {
        self.ids.get(&id.to_raw()).copied()
    }

    fn entry(&self, index: u32) -> &Entry {
        &self.entries[index as usize]
    }

    pub(crate) fn id(&self, index: u32) -> RegionId {
        RegionId::from_raw(self.entry(index).id)
    }

    pub(crate) fn origin(&self, index: u32) -> Option<RegionId> {
        self.extra(index)?.origin
    }

    pub(crate) fn is_deferrable(&self, index: u32) -> bool {
        self.entry(index).has(DEFERRABLE)
    }

    pub(crate) fn as_id(&self, index: u32) -> u16 {
        self.entry(index).as_id.into()
    }

    pub(crate) fn extra(&self, index: u32) -> Option<&Arc<Extra>> {
        // Mostly there is none, and nothing to look for.
        if self.entry(index).has(EXTRA) { self.extras.get(&index) } else { None }
    }

    pub(crate) fn mapping(&self, index: u32) -> Mapping {
        let entry = self.entry(index);
        let flags = MemFlags::from_bits_retain(u32::from(entry.flags));
        let memfd = if flags.contains(MemFlags::GUEST_MEMFD) {
            self.extra(index).and_then(|extra| extra.memfd)
        } else {
            None
        };
        let mapping = Range::new(entry.gpa, entry.size)
            .and_then(|range| Mapping::from_parts(range, entry.hva, entry.kind, flags, memfd));
        // It was a mapping when it was put in.
        mapping.unwrap_or_else(|| unreachable!("an entry that is no mapping"))
    }

    pub(crate) fn range(&self, index: u32) -> Range {
        let entry = self.entry(index);
        let range = Range::new(entry.gpa, entry.size);
        range.unwrap_or_else(|| unreachable!("an entry that is no mapping"))
    }

    pub(crate) fn record(&self, index: u32) -> Record {
        let entry = self.entry(index);
        Record {
            mapping: self.mapping(index),
            as_id: entry.as_id.into(),
            alone: entry.has(ALONE),
            permanent: entry.has(PERMANENT),
            deferral: match (entry.has(DEFERRABLE), entry.has(WAITS)) {
                (false, _) => Deferral::Never,
                (true, true) => Deferral::Waiting,
                (true, false) => Deferral::Over,
            },
            extra: self.extra(index).cloned(),
        }
    }

    /// [`Record::extent`], without a record.
    pub(crate) fn extent(&self, index: u32, shares: bool) -> Option<Extent> {
        let entry = self.entry(index);
        let alone = entry.has(ALONE);
        let joins = !alone && (shares || entry.has(PERMANENT));
        (!entry.has(WAITS)).then(|| Extent::of(self.mapping(index), alone, joins))
    }

    pub(crate) fn region(&self, index: u32) -> Region {
        self.record(index).region(self.id(index))
    }

    pub(crate) fn described(&self, index: u32) -> Box<Described> {
        self.record(index).described(self.id(index))
    }

    pub(crate) fn at(&self, as_id: u16, gpa: u64) -> Option<u32> {
        let (start, &index) = self.by_gpa.get(usize::from(as_id))?.last_until(gpa)?;
        (gpa - start < self.entry(index).size).then_some(index)
    }

    /// The first region of those that overlap `range` which `counts`.
    pub(crate) fn in_the_way(
        &self,
        as_id: u16,
        range: Range,
        counts: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let by_gpa = self.by_gpa.get(usize::from(as_id))?;
        // Regions mostly come in ascending order.
        let (last, &index) = by_gpa.last()?;
        if last < range.gpa() {
            let overlaps = self.entry(index).overlaps(range) && counts(index);
            return overlaps.then_some(index);
        }
        self.overlapping(as_id, range).find(|index| counts(*index))
    }

    /// Regions that overlap `range`, by guest address.
    pub(crate) fn overlapping(&self, as_id: u16, range: Range) -> impl Iterator<Item = u32> + '_ {
        let first = self.at(as_id, range.gpa()).map(|index| self.entry(index).gpa);
        let first = first.unwrap_or(range.gpa());
        let by_gpa = self.by_gpa.get(usize::from(as_id)).into_iter();
        by_gpa
            .flat_map(move |by_gpa| by_gpa.starting(first))
            .take_while(move |(gpa, _)| *gpa < range.end())
            .map(|(_, index)| *index)
    }

    /// Whether no region is partly in `range` and partly not.
    pub(crate) fn fits(&self, as_id: u16, range: Range) -> bool {
        let crosses = |gpa: u64| {
            let index = gpa.checked_sub(1).and_then(|gpa| self.at(as_id, gpa));
            index.is_some_and(|index| self.range(index).end() > gpa)
        };
        !crosses(range.gpa()) && !crosses(range.end())
    }

    /// All of an address space, by guest address.
    pub(crate) fn iter(&self, as_id: u16) -> impl Iterator<Item = u32> + '_ {
        let by_gpa = self.by_gpa.get(usize::from(as_id)).into_iter();
        by_gpa.flat_map(|by_gpa| by_gpa.iter().map(|(_, index)| *index))
    }

    pub(crate) fn tagged(&self, tag: u64) -> impl Iterator<Item = u32> + '_ {
        self.tags.range((tag, 0)..=(tag, u32::MAX)).map(|(_, index)| *index)
    }

    pub(crate) fn knows_hvas(&self) -> bool {
        self.by_hva.is_some()
    }

    pub(crate) fn learn_hvas(&mut self) {
        let mut by_hva = ByHva::default();
        for index in self.ids.values() {
            by_hva.insert(self.entry(*index), *index);
        }
        self.by_hva = Some(by_hva);
    }

    /// The region whose memory is at `hva`, the one that starts last, and how many
    /// bytes into it that is.
    pub(crate) fn at_hva(&self, as_id: u16, hva: u64) -> Option<(u32, u64)> {
        let by_hva = self.by_hva.as_ref()?;
        let first = hva.saturating_sub(by_hva.largest);
        let starts = by_hva.starts.range((first, 0)..=(hva, u32::MAX)).rev();
        starts.map(|(start, index)| (*index, hva - start)).find(|(index, offset)| {
            let entry = self.entry(*index);
            *offset < entry.size && u16::from(entry.as_id) == as_id
        })
    }

    /// The regions that are deferrable.
    pub(crate) fn deferrable(&self) -> impl Iterator<Item = u32> + '_ {
        self.deferrable.iter().copied()
    }

    pub(crate) fn is_waiting(&self, index: u32) -> bool {
        self.entry(index).has(WAITS)
    }

    /// Those of them that wait for a slot.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = u32> + '_ {
        self.waiting.iter().copied()
    }

    /// Adds a region, whose name and addresses are free, and for which there is
    /// [room](Self::reserve).
    pub(crate) fn insert(&mut self, id: RegionId, record: &Record) {
        let entry = Entry::new(id, record);
        let index = if let Some(index) = self.free.pop() {
            self.entries[index as usize] = entry;
            index
        } else {
            self.entries.push(entry);
            (self.entries.len() - 1) as u32
        };
        self.ids.insert(entry.id, index);
        self.index(index, record.extra.clone());
        if let Some(by_gpa) = self.by_gpa.get_mut(usize::from(record.as_id)) {
            by_gpa.insert(entry.gpa, index);
        }
    }

    /// Makes room for so many more.
    pub(crate) fn reserve(&mut self, more: usize) {
        let room = (self.entries.capacity() - self.entries.len()) + self.free.len();
        if more > room {
            // Doubling would make the worst case twice the need.
            let some = (self.entries.len() / 8).max(8);
            self.entries.reserve_exact((more - self.free.len()).max(some));
        }
        self.ids.reserve(more);
    }

    /// Takes a region out. What is returned may hold its memory: it is dropped
    /// where nothing can be hurt by that.
    pub(crate) fn remove(&mut self, index: u32) -> Option<Arc<Extra>> {
        let entry = *self.entry(index);
        let extra = self.unindex(index);
        if let Some(by_gpa) = self.by_gpa.get_mut(usize::from(entry.as_id)) {
            by_gpa.remove(entry.gpa);
        }
        self.ids.remove(&entry.id);
        self.entries[index as usize].bits = FREE;
        self.free.push(index);
        extra
    }

    /// Changes a region, whose new addresses are free. All that are to move have
    /// to have [left](Self::leave) before the first is set.
    pub(crate) fn set(&mut self, index: u32, record: &Record) -> Option<Arc<Extra>> {
        let (before, now) = (*self.entry(index), Entry::new(self.id(index), record));
        let extra = match (self.extra(index), &record.extra) {
            (None, None) => true,
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            _ => false,
        };
        if extra && before.is_found_like(&now) {
            self.entries[index as usize] = now;
            return None;
        }
        let old = self.unindex(index);
        let entry = Entry::new(self.id(index), record);
        let there = std::mem::replace(&mut self.entries[index as usize], entry).gpa == entry.gpa;
        let by_gpa = self.by_gpa.get_mut(usize::from(record.as_id));
        if let Some(by_gpa) = by_gpa.filter(|_| !there) {
            by_gpa.insert(entry.gpa, index);
        }
        self.index(index, record.extra.clone());
        old
    }

    /// Takes a region's address, before it gets another.
    pub(crate) fn leave(&mut self, index: u32) {
        let entry = *self.entry(index);
        if let Some(by_gpa) = self.by_gpa.get_mut(usize::from(entry.as_id)) {
            by_gpa.remove(entry.gpa);
        }
    }

    fn index(&mut self, index: u32, extra: Option<Arc<Extra>>) {
        let entry = *self.entry(index);
        if let Some(extra) = extra {
            if let Some(tag) = extra.tag {
                self.tags.insert((tag, index));
            }
            self.extras.insert(index, extra);
        }
        if entry.has(DEFERRABLE) {
            self.deferrable.insert(index);
        }
        if entry.has(WAITS) {
            self.waiting.insert(index);
        }
        if let Some(by_hva) = &mut self.by_hva {
            by_hva.insert(&entry, index);
        }
    }

    fn unindex(&mut self, index: u32) -> Option<Arc<Extra>> {
        let entry = *self.entry(index);
        let extra = if entry.has(EXTRA) { self.extras.remove(&index) } else { None };
        if let Some(tag) = extra.as_ref().and_then(|extra| extra.tag) {
            self.tags.remove(&(tag, index));
        }
        if entry.has(DEFERRABLE) {
            self.deferrable.remove(&index);
        }
        if entry.has(WAITS) {
            self.waiting.remove(&index);
        }
        if let Some(by_hva) = &mut self.by_hva {
            by_hva.starts.remove(&(entry.hva, index));
        }
        extra
    }

    /// The regions that hold memory.
    pub(crate) fn owned(&self) -> impl Iterator<Item = RegionId> + '_ {
        let owned = self.extras.iter().filter(|(_, extra)| extra.owner.is_some());
        owned.map(|(index, _)| self.id(*index))
    }

    /// What holds memory.
    pub(crate) fn take_extras(&mut self) -> Vec<Arc<Extra>> {
        std::mem::take(&mut self.extras).into_values().collect()
    }
}
