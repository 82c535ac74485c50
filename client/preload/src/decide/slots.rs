//! The slots of one VM: what the VMM believes KVM has, and what KVM has.

use std::collections::BTreeMap;

use kvm_memslots::deferred::policy::Churn;

use super::region::{READONLY, Region};

/// How a slot that churns is taken away and brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// As the VMM asks for it.
    AsAsked,
    /// It stays, and its trap bit is set and cleared.
    Trap,
    /// It is removed; it is brought back when that has become worth it.
    Defer,
}

/// Which slots are treated so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) way: Way,
    /// How many flips of a slot are let through: removals, and additions of the
    /// same that was removed.
    pub(crate) flips: u32,
    /// Also slots that the guest may write to.
    pub(crate) writable: bool,
}

/// What KVM has of a slot that the VMM has asked for at least once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Mapped,
    Trapping,
    Nothing,
}

#[derive(Debug)]
struct Slot {
    /// As it was mapped last.
    region: Region,
    /// Whether it is there, as the VMM sees it.
    wanted: bool,
    held: Held,
    churn: Churn<Region>,
}

impl Slot {
    const fn is_deferred(&self) -> bool {
        self.wanted && matches!(self.held, Held::Nothing)
    }

    const fn is_spare(&self) -> bool {
        !self.wanted && matches!(self.held, Held::Trapping)
    }
}

/// A call that makes KVM's slot what the VMM believes it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repair {
    /// Maps a slot that was deferred.
    Map(Region),
    /// Deletes a slot that traps only.
    Delete(Region),
}

impl Repair {
    /// What is to be asked of KVM.
    pub(crate) const fn call(&self) -> Region {
        match self {
            Self::Map(region) => *region,
            Self::Delete(region) => region.gone(),
        }
    }
}

/// What becomes of a call of the VMM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// KVM gets it as it is, and its answer is the answer.
    Pass,
    /// KVM gets this one instead: the trap bit is set.
    Trap(Region),
    /// The same: the trap bit is cleared.
    Untrap(Region),
    /// KVM gets nothing, the slot is mapped later.
    Defer,
    /// KVM gets nothing: there is nothing to delete, the slot was deferred.
    Forget,
}

/// What to do for a call of the VMM's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What has to be done before.
    pub(crate) repairs: Vec<Repair>,
    pub(crate) action: Action,
}

/// A piece of host memory that a guest's access reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) hva: u64,
    pub(crate) bytes: usize,
}

/// What becomes of an access that came out of the guest as MMIO.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It is for the VMM.
    Pass,
    /// It is served from these pieces, in order.
    Serve {
        pieces: Vec<Piece>,
        /// Whether it came out because a slot is deferred; else the slot has
        /// just been mapped.
        deferred: bool,
    },
}

/// The slots of one VM.
#[derive(Debug)]
pub(crate) struct Slots {
    slots: BTreeMap<u32, Slot>,
    rules: Rules,
}

impl Slots {
    pub(crate) const fn new(rules: Rules) -> Self {
        Self { slots: BTreeMap::new(), rules }
    }

    /// From here on every call passes. What is not as the VMM believes stays
    /// so until it is repaired.
    pub(crate) const fn stop(&mut self) {
        self.rules.way = Way::AsAsked;
    }

    /// Whether slot `slot` is one that is flipped or deferred.
    pub(crate) fn is_managed(&self, slot: u32) -> bool {
        self.slots.get(&slot).is_some_and(|slot| self.manages(slot))
    }

    /// Whether any slot is.
    pub(crate) fn manages_any(&self) -> bool {
        self.slots.values().any(|slot| self.manages(slot))
    }

    fn manages(&self, slot: &Slot) -> bool {
        let flags = slot.region.flags;
        self.rules.way != Way::AsAsked
            && self.churns(slot)
            && (flags == READONLY || flags == 0 && self.rules.writable)
    }

    /// Whether the next flip of it is one too many.
    const fn churns(&self, slot: &Slot) -> bool {
        slot.churn.flips() >= self.rules.flips
    }

    /// How many slots are deferred.
    pub(crate) fn deferred(&self) -> usize {
        self.slots.values().filter(|slot| slot.is_deferred()).count()
    }

    /// Whether `asked` changes the flags of a slot that is there.
    pub(crate) fn changes_flags(&self, asked: &Region) -> bool {
        let there = self.slots.get(&asked.slot).filter(|slot| slot.wanted && asked.size != 0);
        there.is_some_and(|slot| slot.region.flags != asked.flags)
    }

    /// What to do for `asked`.
    pub(crate) fn plan(&self, asked: &Region) -> Plan {
        let own = self.slots.get(&asked.slot);
        if asked.size == 0 {
            return own.map_or(Plan::pass(), |slot| self.delete(slot));
        }
        if let Some(slot) = own.filter(|slot| !slot.wanted && slot.region == *asked) {
            let free = !self.others(asked).any(|other| other.wanted);
            match slot.held {
                Held::Trapping if free => {
                    return Plan { repairs: Vec::new(), action: Action::Untrap(slot.region) };
                }
                Held::Nothing if free && self.rules.way == Way::Defer && self.manages(slot) => {
                    return Plan { repairs: Vec::new(), action: Action::Defer };
                }
                _ => {}
            }
        }
        let in_the_way = own.into_iter().chain(self.others(asked));
        Plan { repairs: in_the_way.filter_map(Slot::repair).collect(), action: Action::Pass }
    }

    fn delete(&self, slot: &Slot) -> Plan {
        let action = match slot.held {
            Held::Nothing if slot.wanted => Action::Forget,
            Held::Mapped if self.rules.way == Way::Trap && self.manages(slot) => {
                Action::Trap(slot.region)
            }
            _ => {
                return Plan { repairs: slot.repair().into_iter().collect(), action: Action::Pass };
            }
        };
        Plan { repairs: Vec::new(), action }
    }

    /// The other slots that map pages of `region`, or did.
    fn others(&self, region: &Region) -> impl Iterator<Item = &Slot> {
        let overlapping =
            |slot: &&Slot| slot.region.slot != region.slot && slot.region.overlaps(region);
        self.slots.values().filter(overlapping)
    }

    /// Calls that make KVM's slots what the VMM believes they are.
    pub(crate) fn repairs(&self) -> Vec<Repair> {
        self.slots.values().filter_map(Slot::repair).collect()
    }

    /// KVM has taken `repair`.
    pub(crate) fn repaired(&mut self, repair: &Repair) {
        let (region, held) = match repair {
            Repair::Map(region) => (region, Held::Mapped),
            Repair::Delete(region) => (region, Held::Nothing),
        };
        if let Some(slot) = self.slots.get_mut(&region.slot) {
            slot.held = held;
        }
    }

    /// `asked` has been done as `action` says, and succeeded.
    pub(crate) fn done(&mut self, asked: &Region, action: Action) {
        let held = match action {
            Action::Pass if asked.size == 0 => Held::Nothing,
            Action::Pass | Action::Untrap(_) => Held::Mapped,
            Action::Trap(_) => Held::Trapping,
            Action::Defer | Action::Forget => Held::Nothing,
        };
        if asked.size == 0 {
            if let Some(slot) = self.slots.get_mut(&asked.slot) {
                slot.churn.removed();
                slot.wanted = false;
                slot.held = held;
            }
            return;
        }
        let after = self.rules.flips;
        let slot = self.slots.entry(asked.slot).or_insert_with(|| Slot {
            region: *asked,
            wanted: false,
            held,
            churn: Churn::after(after),
        });
        // What is there already is not added.
        if !slot.wanted || slot.region != *asked {
            slot.churn.added(*asked);
        }
        slot.region = *asked;
        slot.wanted = true;
        slot.held = held;
    }

    /// What becomes of an access to `bytes` bytes at `gpa` that came out as
    /// MMIO. A write to memory that the guest may only read is the VMM's also
    /// where that memory is mapped.
    pub(crate) fn access(&self, space: u32, gpa: u64, bytes: usize, write: bool) -> Access {
        let mut pieces = Vec::new();
        let (mut deferred, mut ours) = (false, false);
        let mut done = 0;
        while done < bytes {
            let Some(at) = gpa.checked_add(done as u64) else { return Access::Pass };
            let Some((slot, (hva, left))) = self.reached(space, at) else { return Access::Pass };
            if write && slot.region.flags & READONLY != 0 {
                return Access::Pass;
            }
            deferred |= slot.is_deferred();
            ours |= self.churns(slot);
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            let piece = Piece { hva, bytes: left.min(bytes - done) };
            pieces.push(piece);
            done += piece.bytes;
        }
        if ours || deferred { Access::Serve { pieces, deferred } } else { Access::Pass }
    }

    /// The slot that is at `gpa` as the VMM sees it, and where that is in host
    /// memory.
    fn reached(&self, space: u32, gpa: u64) -> Option<(&Slot, (u64, u64))> {
        let there = |slot: &&Slot| slot.wanted && slot.region.space() == space;
        self.slots.values().filter(there).find_map(|slot| Some((slot, slot.region.at(gpa)?)))
    }
}

impl Slot {
    fn repair(&self) -> Option<Repair> {
        if self.is_deferred() {
            Some(Repair::Map(self.region))
        } else if self.is_spare() {
            Some(Repair::Delete(self.region))
        } else {
            None
        }
    }
}

impl Plan {
    const fn pass() -> Self {
        Self { repairs: Vec::new(), action: Action::Pass }
    }
}
