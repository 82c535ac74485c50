//! Slots by id: found at once, however many there are, in memory that is there
//! from the start.

use std::mem::MaybeUninit;

use super::slot::Slot;

/// Places for slots; a power of two.
pub(crate) const PLACES: usize = 1024;
/// How many are used: what is looked for is found soon.
const USED: usize = PLACES * 3 / 4;
/// A slot is among so many places, or not known.
const REACH: usize = 32;

/// Where they are.
pub(crate) type Entries = &'static mut [MaybeUninit<Slot>; PLACES];

/// By id, open addressing; a slot that was there once stays.
pub(crate) struct Map {
    entries: Entries,
    /// Which of the places are used.
    used: [u64; PLACES / 64],
    count: usize,
    /// Places that were looked at.
    #[cfg(test)]
    pub(crate) looks: std::cell::Cell<usize>,
}

/// Where a slot is, or would be.
enum Place {
    Used(usize),
    Free(usize),
    Full,
}

impl Map {
    pub(crate) const fn new(entries: Entries) -> Self {
        Self {
            entries,
            used: [0; PLACES / 64],
            count: 0,
            #[cfg(test)]
            looks: std::cell::Cell::new(0),
        }
    }

    const fn is_used(&self, place: usize) -> bool {
        self.used[place / 64] & 1 << (place % 64) != 0
    }

    fn at(&self, place: usize) -> Option<&Slot> {
        #[cfg(test)]
        self.looks.set(self.looks.get() + 1);
        // SAFETY: what is marked as used has been written.
        self.is_used(place).then(|| unsafe { self.entries[place].assume_init_ref() })
    }

    fn find(&self, id: u32) -> Place {
        // Ids count from 0 on in each address space: neighbours stay such.
        let first = (id ^ id >> 16 << 9) as usize;
        for step in 0..REACH {
            let place = (first + step) % PLACES;
            match self.at(place) {
                Some(slot) if slot.region.slot == id => return Place::Used(place),
                Some(_) => {}
                None => return Place::Free(place),
            }
        }
        Place::Full
    }

    pub(crate) fn get(&self, id: u32) -> Option<&Slot> {
        let Place::Used(place) = self.find(id) else { return None };
        self.at(place)
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut Slot> {
        let Place::Used(place) = self.find(id) else { return None };
        // SAFETY: what is found as used has been written.
        Some(unsafe { self.entries[place].assume_init_mut() })
    }

    /// The slot, made by `new` if it is not there; `None` if there is no room for it.
    pub(crate) fn get_or_insert(
        &mut self,
        id: u32,
        new: impl FnOnce() -> Slot,
    ) -> Option<&mut Slot> {
        let place = match self.find(id) {
            Place::Used(place) => place,
            Place::Free(place) if self.count < USED => {
                self.entries[place].write(new());
                self.used[place / 64] |= 1 << (place % 64);
                self.count += 1;
                place
            }
            Place::Free(_) | Place::Full => return None,
        };
        // SAFETY: it has been written, now or before.
        Some(unsafe { self.entries[place].assume_init_mut() })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        (0..PLACES).filter_map(|place| self.at(place))
    }
}
