//! A loop of ioctls: what a VMM does without this library.

use std::collections::BTreeMap;

use kvm_memslots::backend::model::memory::GuestAccess;
use kvm_memslots::backend::{MemoryCalls, MemoryModel, Op};
use kvm_memslots::{Kind, Mapping, MemFlags, Range, Slot};

use super::{PAGE, Reference, Reg, Step};

/// One call for each change, a slot for each region (and one for what it grew
/// by), on a model of its own.
pub struct Loop {
    pub model: MemoryModel,
    slots: BTreeMap<u64, Vec<Slot>>,
    free: Vec<u16>,
}

impl Loop {
    pub fn new(model: MemoryModel) -> Self {
        Self { model, slots: BTreeMap::new(), free: (0..2_000).rev().collect() }
    }

    fn call(&self, op: Op) {
        // SAFETY: the model maps nothing.
        unsafe { self.model.change(0, &op) }.unwrap();
    }

    fn create(&mut self, of: u64, mapping: Mapping) {
        let slot = Slot { id: self.free.pop().unwrap(), mapping };
        self.call(Op::Create(slot));
        self.slots.entry(of).or_default().push(slot);
    }

    fn delete_all(&mut self, of: u64) -> Vec<Slot> {
        let slots = self.slots.remove(&of).unwrap();
        for slot in &slots {
            self.call(Op::Delete(*slot));
            self.free.push(slot.id);
        }
        slots
    }

    fn make(&mut self, reg: &Reg) {
        self.create(reg.id.to_raw(), mapping(reg.page, reg.pages, reg.hva, reg.flags));
    }

    /// Makes the step that leads from `before` to `after`, unless it leads
    /// nowhere. A region that is split is made anew.
    pub fn step(&mut self, before: &Reference, after: &Reference, step: &Step) {
        let again = step.makes_anew(before);
        let find = |all: &Reference, id| {
            all.regions.iter().find(|reg| reg.id == id && again != Some(id)).copied()
        };
        for reg in &before.regions {
            if find(after, reg.id).is_none() {
                self.delete_all(reg.id.to_raw());
            }
        }
        for old in &before.regions {
            if let Some(new) = find(after, old.id) {
                self.change(old, &new, step);
            }
        }
        for reg in &after.regions {
            if find(before, reg.id).is_none() {
                self.make(reg);
            }
        }
    }

    fn change(&mut self, old: &Reg, new: &Reg, step: &Step) {
        let id = old.id.to_raw();
        if (old.hva, old.flags & MemFlags::READONLY) != (new.hva, new.flags & MemFlags::READONLY) {
            // Each slot as it was, with other memory or another flag.
            for slot in self.delete_all(id) {
                let range = slot.mapping.range();
                let hva = new.hva + (range.gpa() - new.page * PAGE);
                let plain = Mapping::new(range, hva, Kind::Ram).unwrap();
                self.create(id, plain.with_flags(new.flags));
            }
        } else if old.flags != new.flags {
            for at in 0..self.slots[&id].len() {
                let from = self.slots[&id][at];
                self.call(Op::SetFlags { from, flags: new.flags });
                let slots = self.slots.get_mut(&id).unwrap();
                slots[at].mapping = from.mapping.with_flags(new.flags);
            }
        } else if old.page != new.page {
            self.shift(old, new);
        } else if new.pages > old.pages && new.alone {
            // One slot is what it is to have.
            self.delete_all(id);
            self.make(new);
        } else if new.pages > old.pages {
            let hva = new.hva + old.pages * PAGE;
            let added = mapping(new.page + old.pages, new.pages - old.pages, hva, new.flags);
            self.create(id, added);
        } else if new.pages < old.pages {
            self.shrink(id, Range::new(new.page * PAGE, new.pages * PAGE).unwrap());
        } else {
            assert!(old.pages == new.pages, "{step:?}");
        }
    }

    /// Moves the slots, in the order in which none is in the way of another.
    fn shift(&mut self, old: &Reg, new: &Reg) {
        let mut slots = self.slots.remove(&old.id.to_raw()).unwrap();
        slots.sort_by_key(|slot| slot.mapping.range());
        if new.page > old.page {
            slots.reverse();
        }
        for slot in &mut slots {
            let gpa = slot.mapping.range().gpa() - old.page * PAGE + new.page * PAGE;
            self.call(Op::Move { from: *slot, gpa });
            slot.mapping = slot.mapping.moved_to(gpa).unwrap();
        }
        self.slots.insert(old.id.to_raw(), slots);
    }

    fn shrink(&mut self, id: u64, to: Range) {
        for slot in self.slots.remove(&id).unwrap() {
            let left = slot.mapping.clipped_to(to);
            if left == Some(slot.mapping) {
                self.slots.entry(id).or_default().push(slot);
                continue;
            }
            self.call(Op::Delete(slot));
            self.free.push(slot.id);
            if let Some(left) = left {
                self.create(id, left);
            }
        }
    }

    /// What a guest finds at each page.
    pub fn hva(&self, page: u64) -> Option<u64> {
        match self.model.guest_at(0, page * PAGE) {
            GuestAccess::Ram { hva } => Some(hva),
            _ => None,
        }
    }
}

fn mapping(page: u64, pages: u64, hva: u64, flags: MemFlags) -> Mapping {
    let range = Range::new(page * PAGE, pages * PAGE).unwrap();
    Mapping::new(range, hva, Kind::Ram).unwrap().with_flags(flags)
}
