//! The slots that KVM has of one address space, as far as this library made
//! them.

use kvm_memslots_shim::memory::Op;
use kvm_memslots_shim::{GuestMemfd, Kind, Mapping, MemFlags, Range, Slot};

use crate::by_gpa::ByGpa;
use crate::by_id::ById;

/// A slot without its id and its `guest_memfd`, in 32 bytes. Where no slot is,
/// it has no size.
#[derive(Debug, Clone, Copy)]
struct Packed {
    gpa: u64,
    size: u64,
    hva: u64,
    flags: u16,
    kind: Kind,
}

const NONE: Packed = Packed { gpa: 0, size: 0, hva: 0, flags: 0, kind: Kind::Ram };

/// Slots by guest address and by id.
#[derive(Debug, Default)]
pub(crate) struct SlotTable {
    by_gpa: ByGpa<u16>,
    /// By id.
    slots: Vec<Packed>,
    memfds: ById<u64, GuestMemfd>,
}

impl SlotTable {
    pub(crate) fn len(&self) -> usize {
        self.by_gpa.len()
    }

    fn packed(&self, id: u16) -> &Packed {
        self.slots.get(usize::from(id)).unwrap_or(&NONE)
    }

    fn slot(&self, id: u16) -> Slot {
        let packed = self.packed(id);
        let flags = MemFlags::from_bits_retain(u32::from(packed.flags));
        let memfd = if flags.contains(MemFlags::GUEST_MEMFD) {
            self.memfds.get(&id.into()).copied()
        } else {
            None
        };
        let mapping = Range::new(packed.gpa, packed.size)
            .and_then(|range| Mapping::from_parts(range, packed.hva, packed.kind, flags, memfd));
        // It was a mapping when it was put in.
        let mapping = mapping.unwrap_or_else(|| unreachable!("a slot that is no mapping"));
        Slot { id, mapping }
    }

    pub(crate) fn insert(&mut self, slot: &Slot) {
        let Slot { id, mapping } = *slot;
        self.room_for(usize::from(id));
        let gpa = mapping.range().gpa();
        // Whatever was said of the id and of the address before.
        if let Some(old) = self.by_id(id) {
            self.remove(&old);
        }
        if let Some(memfd) = mapping.guest_memfd() {
            self.memfds.insert(id.into(), memfd);
        }
        if let Some(old) = self.by_gpa.insert(gpa, id) {
            self.slots[usize::from(old)] = NONE;
        }
        self.slots[usize::from(id)] = Packed {
            gpa,
            size: mapping.range().size(),
            hva: mapping.hva(),
            // KVM_MEM_* that userspace may set are bits 0 to 15.
            flags: mapping.flags().bits() as u16,
            kind: mapping.kind(),
        };
    }

    fn room_for(&mut self, id: usize) {
        if self.slots.len() <= id {
            let more = id + 1 - self.slots.len();
            if self.slots.capacity() <= id {
                // Doubling would make the worst case twice the need.
                self.slots.reserve_exact(more.max(self.slots.len() / 8));
            }
            self.slots.resize(id + 1, NONE);
        }
    }

    pub(crate) fn remove(&mut self, slot: &Slot) {
        let gpa = slot.mapping.range().gpa();
        if self.by_gpa.remove_if(gpa, |id| *id == slot.id).is_some() {
            self.slots[usize::from(slot.id)] = NONE;
            if slot.mapping.guest_memfd().is_some() {
                self.memfds.remove(&slot.id.into());
            }
        }
    }

    /// Follows changes that were made.
    pub(crate) fn follow(&mut self, ops: &[Op]) {
        match ops {
            [Op::Create(slot)] => return self.insert(slot),
            [Op::Delete(slot)] => return self.remove(slot),
            _ => {}
        }
        let elsewhere = || ops.iter().filter(|op| !matches!(op, Op::SetFlags { .. }));
        for slot in elsewhere().filter_map(Op::before) {
            self.remove(&slot);
        }
        // All at once.
        if let Some(last) = ops.iter().map(Op::slot_id).max() {
            self.room_for(last.into());
        }
        for slot in elsewhere().filter_map(Op::after) {
            self.insert(&slot);
        }
        for op in ops {
            if let Op::SetFlags { from, .. } = op {
                self.set_flags(from, op);
            }
        }
    }

    fn set_flags(&mut self, from: &Slot, op: &Op) {
        let Some(after) = op.after() else { return };
        let there = self.slots.get_mut(usize::from(from.id));
        match there.filter(|there| there.size > 0 && there.gpa == from.mapping.range().gpa()) {
            Some(there) => there.flags = after.mapping.flags().bits() as u16,
            None => self.insert(&after),
        }
    }

    pub(crate) fn by_id(&self, id: u16) -> Option<Slot> {
        (self.packed(id).size > 0).then(|| self.slot(id))
    }

    /// Whether no slot overlaps `range`.
    pub(crate) fn is_free(&self, range: Range) -> bool {
        let last = self.by_gpa.last_until(range.end() - 1);
        last.is_none_or(|(gpa, id)| gpa + self.packed(*id).size <= range.gpa())
    }

    /// The slot that is just there.
    pub(crate) fn exactly(&self, range: Range) -> Option<Slot> {
        let id = *self.by_gpa.get(range.gpa())?;
        (self.packed(id).size == range.size()).then(|| self.slot(id))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        self.by_gpa.iter().map(|(_, id)| self.slot(*id))
    }

    /// The slots that overlap `range`, by guest address.
    pub(crate) fn overlapping(&self, range: Range) -> impl Iterator<Item = Slot> + '_ {
        let first = self.by_gpa.last_until(range.gpa());
        let first = first.filter(|(gpa, id)| gpa + self.packed(**id).size > range.gpa());
        let slots = self.by_gpa.starting(first.map_or(range.gpa(), |(gpa, _)| gpa));
        slots.take_while(move |(gpa, _)| *gpa < range.end()).map(|(_, id)| self.slot(*id))
    }

    /// Whether a slot has just this memory, and with `whole` no more.
    pub(super) fn has(&self, mapping: &Mapping, whole: bool) -> bool {
        let range = mapping.range();
        self.overlapping(range).any(|slot| {
            let there = slot.mapping.range();
            slot.mapping.flags() == mapping.flags()
                && slot.mapping.same_host_pages_as(mapping)
                && there.gpa() <= range.gpa()
                && there.end() >= range.end()
                && (!whole || there == range)
        })
    }
}
