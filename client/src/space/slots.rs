//! The slots that KVM has, as far as this address space made them.

use std::collections::BTreeMap;

use kvm_memslots_shim::{GuestMemfd, Kind, Mapping, MemFlags, Range, Slot};

/// A slot without its guest address: 40 bytes instead of 64.
#[derive(Debug, Clone, Copy)]
struct Packed {
    size: u64,
    hva: u64,
    memfd_offset: u64,
    memfd: i32,
    id: u16,
    flags: u16,
    kind: Kind,
}

impl Packed {
    fn new(slot: &Slot) -> Self {
        let Mapping { range, hva, guest_memfd, flags, kind } = slot.mapping;
        let memfd = guest_memfd.unwrap_or(GuestMemfd { fd: 0, offset: 0 });
        Self {
            size: range.size,
            hva,
            memfd_offset: memfd.offset,
            memfd: memfd.fd,
            id: slot.id,
            // KVM_MEM_* that userspace may set are bits 0 to 15; GUEST_MEMFD
            // says whether the fields of that name mean anything.
            flags: flags.bits() as u16,
            kind,
        }
    }

    fn at(&self, gpa: u64) -> Slot {
        let flags = MemFlags::from_bits_retain(u32::from(self.flags));
        let memfd = GuestMemfd { fd: self.memfd, offset: self.memfd_offset };
        let mapping = Mapping {
            range: Range::new(gpa, self.size),
            hva: self.hva,
            guest_memfd: flags.contains(MemFlags::GUEST_MEMFD).then_some(memfd),
            flags,
            kind: self.kind,
        };
        Slot { id: self.id, mapping }
    }
}

/// Slots by guest address and by id.
#[derive(Debug, Default)]
pub(crate) struct SlotTable {
    by_gpa: BTreeMap<u64, Packed>,
    /// The guest address of each id; meaningful only for ids that are in use.
    gpas: Vec<u64>,
}

impl SlotTable {
    pub(crate) fn len(&self) -> usize {
        self.by_gpa.len()
    }

    pub(crate) fn insert(&mut self, slot: &Slot) {
        self.note_id(slot);
        self.by_gpa.insert(slot.mapping.range.gpa, Packed::new(slot));
    }

    /// Inserts all of `slots`.
    pub(crate) fn extend(&mut self, slots: impl Iterator<Item = Slot>) {
        let mut new: Vec<(u64, Packed)> = slots
            .map(|slot| {
                self.note_id(&slot);
                (slot.mapping.range.gpa, Packed::new(&slot))
            })
            .collect();
        // Many at once: rebuilding the tree costs less than searching it for
        // each of them.
        if new.len() > self.by_gpa.len() / 8 {
            new.sort_unstable_by_key(|(gpa, _)| *gpa);
            self.by_gpa.append(&mut BTreeMap::from_iter(new));
        } else {
            self.by_gpa.extend(new);
        }
    }

    fn note_id(&mut self, slot: &Slot) {
        let id = usize::from(slot.id);
        if self.gpas.len() <= id {
            self.gpas.reserve_exact((id + 1 - self.gpas.len()).max(self.gpas.len() / 8));
            self.gpas.resize(id + 1, 0);
        }
        self.gpas[id] = slot.mapping.range.gpa;
    }

    pub(crate) fn remove(&mut self, slot: &Slot) {
        let gpa = slot.mapping.range.gpa;
        if self.by_gpa.get(&gpa).is_some_and(|packed| packed.id == slot.id) {
            self.by_gpa.remove(&gpa);
        }
    }

    pub(crate) fn by_id(&self, id: u16) -> Option<Slot> {
        let gpa = *self.gpas.get(usize::from(id))?;
        self.by_gpa.get(&gpa).filter(|packed| packed.id == id).map(|packed| packed.at(gpa))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        self.by_gpa.iter().map(|(gpa, packed)| packed.at(*gpa))
    }

    /// The slots that overlap `range`, by guest address.
    pub(crate) fn overlapping(&self, range: Range) -> impl Iterator<Item = Slot> + '_ {
        let before = self
            .by_gpa
            .range(..range.gpa)
            .next_back()
            .filter(|(gpa, packed)| *gpa + packed.size > range.gpa);
        before
            .into_iter()
            .chain(self.by_gpa.range(range.gpa..range.end()))
            .map(|(gpa, packed)| packed.at(*gpa))
    }
}
