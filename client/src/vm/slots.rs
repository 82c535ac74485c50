//! The slots that KVM has of one address space, as far as this library made
//! them.

use std::collections::BTreeMap;

use kvm_memslots_shim::memory::Op;
use kvm_memslots_shim::{GuestMemfd, Kind, Mapping, MemFlags, Range, Slot};

use super::regions::ById;

/// A slot without its guest address and its `guest_memfd`.
#[derive(Debug, Clone, Copy)]
struct Packed {
    size: u64,
    hva: u64,
    id: u16,
    flags: u16,
    kind: Kind,
}

/// Slots by guest address and by id.
#[derive(Debug, Default)]
pub(crate) struct SlotTable {
    by_gpa: BTreeMap<u64, Packed>,
    /// The guest address of each id; meaningful only for ids that are in use.
    gpas: Vec<u64>,
    memfds: ById<u64, GuestMemfd>,
}

impl SlotTable {
    pub(crate) fn len(&self) -> usize {
        self.by_gpa.len()
    }

    fn slot(&self, gpa: u64, packed: &Packed) -> Slot {
        let flags = MemFlags::from_bits_retain(u32::from(packed.flags));
        let memfd = if flags.contains(MemFlags::GUEST_MEMFD) {
            self.memfds.get(&packed.id.into()).copied()
        } else {
            None
        };
        let plain = Range::new(gpa, packed.size)
            .and_then(|range| Mapping::new(range, packed.hva, packed.kind));
        let mapping = plain.and_then(|mapping| match memfd {
            Some(memfd) => mapping.with_guest_memfd(memfd),
            None => Some(mapping),
        });
        // It was a mapping when it was put in.
        let mapping = mapping.unwrap_or_else(|| unreachable!("a slot that is no mapping"));
        Slot { id: packed.id, mapping: mapping.with_flags(flags) }
    }

    pub(crate) fn insert(&mut self, slot: &Slot) {
        let (gpa, packed) = self.note(slot);
        self.by_gpa.insert(gpa, packed);
    }

    /// Inserts all of `slots`.
    fn extend(&mut self, slots: impl Iterator<Item = Slot>) {
        let slots: Vec<Slot> = slots.collect();
        if let Some(last) = slots.iter().map(|slot| usize::from(slot.id)).max() {
            self.room_for(last);
        }
        let mut new: Vec<(u64, Packed)> = slots.iter().map(|slot| self.note(slot)).collect();
        // Many at once: rebuilding the tree costs less than searching it for
        // each of them.
        if new.len() > self.by_gpa.len() / 8 {
            new.sort_unstable_by_key(|(gpa, _)| *gpa);
            self.by_gpa.append(&mut BTreeMap::from_iter(new));
        } else {
            self.by_gpa.extend(new);
        }
    }

    fn room_for(&mut self, id: usize) {
        if self.gpas.len() <= id {
            self.gpas.reserve_exact((id + 1 - self.gpas.len()).max(self.gpas.len() / 8));
            self.gpas.resize(id + 1, 0);
        }
    }

    fn note(&mut self, slot: &Slot) -> (u64, Packed) {
        let Slot { id, mapping } = *slot;
        let (at, gpa) = (usize::from(id), mapping.range().gpa());
        self.room_for(at);
        self.gpas[at] = gpa;
        if let Some(memfd) = mapping.guest_memfd() {
            self.memfds.insert(id.into(), memfd);
        }
        let packed = Packed {
            size: mapping.range().size(),
            hva: mapping.hva(),
            id,
            // KVM_MEM_* that userspace may set are bits 0 to 15.
            flags: mapping.flags().bits() as u16,
            kind: mapping.kind(),
        };
        (gpa, packed)
    }

    pub(crate) fn remove(&mut self, slot: &Slot) {
        let gpa = slot.mapping.range().gpa();
        if self.by_gpa.get(&gpa).is_some_and(|packed| packed.id == slot.id) {
            self.by_gpa.remove(&gpa);
            if slot.mapping.guest_memfd().is_some() {
                self.memfds.remove(&slot.id.into());
            }
        }
    }

    /// Follows changes that were made.
    pub(crate) fn follow(&mut self, ops: &[Op]) {
        if let [op] = ops {
            if let Some(before) = op.before() {
                self.remove(&before);
            }
            if let Some(after) = op.after() {
                self.insert(&after);
            }
            return;
        }
        for slot in ops.iter().filter_map(Op::before) {
            self.remove(&slot);
        }
        self.extend(ops.iter().filter_map(Op::after));
    }

    pub(crate) fn by_id(&self, id: u16) -> Option<Slot> {
        let gpa = *self.gpas.get(usize::from(id))?;
        let packed = self.by_gpa.get(&gpa).filter(|packed| packed.id == id)?;
        Some(self.slot(gpa, packed))
    }

    /// Whether no slot overlaps `range`.
    pub(crate) fn is_free(&self, range: Range) -> bool {
        let last = self.by_gpa.range(..range.end()).next_back();
        last.is_none_or(|(gpa, packed)| *gpa + packed.size <= range.gpa())
    }

    /// The slot that is just there.
    pub(crate) fn exactly(&self, range: Range) -> Option<Slot> {
        let gpa = range.gpa();
        let packed = self.by_gpa.get(&gpa).filter(|packed| packed.size == range.size())?;
        Some(self.slot(gpa, packed))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        self.by_gpa.iter().map(|(gpa, packed)| self.slot(*gpa, packed))
    }

    /// The slots that overlap `range`, by guest address.
    pub(crate) fn overlapping(&self, range: Range) -> impl Iterator<Item = Slot> + '_ {
        let before = self.by_gpa.range(..range.gpa()).next_back();
        let before = before.filter(|(gpa, packed)| *gpa + packed.size > range.gpa());
        before
            .into_iter()
            .chain(self.by_gpa.range(range.gpa()..range.end()))
            .map(|(gpa, packed)| self.slot(*gpa, packed))
    }
}
