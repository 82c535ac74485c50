//! The slots of one VM: what the VMM believes KVM has, and what KVM has.

use kvm_memslots::deferred::policy::Churn;

use super::map::{Entries, Map};
use super::region::Region;
use super::rules::{Rules, Way};
use super::slot::{Held, Repair, Slot, SlotCounts};

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

/// What to do for a call of the VMM's: first the repairs that
/// [`in_the_way`](Slots::in_the_way) says, if there may be any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) repairs: bool,
    pub(crate) action: Action,
}

impl Plan {
    /// KVM gets it, and what is in its way is put right before.
    pub(crate) const PASS: Self = Self { repairs: true, action: Action::Pass };
}

/// How many slots of a VM can churn at a time; the others are left alone. What a
/// call costs depends on these, not on how many slots there are.
const CHURNING: usize = 16;

/// The slots of one VM.
pub(crate) struct Slots {
    all: Map,
    /// Those that churn: ids, and how many there are.
    churning: [u32; CHURNING],
    listed: usize,
    deferred: usize,
    unknown: u64,
    rules: Rules,
}

impl Slots {
    pub(crate) const fn new(rules: Rules, entries: Entries) -> Self {
        Self {
            all: Map::new(entries),
            churning: [0; CHURNING],
            listed: 0,
            deferred: 0,
            unknown: 0,
            rules,
        }
    }

    /// From here on every call passes. What is not as the VMM believes stays
    /// so until it is repaired.
    pub(crate) const fn stop(&mut self) {
        self.rules.way = Way::AsAsked;
    }

    pub(crate) const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// All of them, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.all.iter()
    }

    /// To count what was done for one.
    pub(crate) fn counts(&mut self, slot: u32) -> Option<&mut SlotCounts> {
        self.all.get_mut(slot).map(|slot| &mut slot.counts)
    }

    /// Whether slot `slot` is one that is flipped or deferred.
    pub(crate) fn is_managed(&self, slot: u32) -> bool {
        self.rules.way != Way::AsAsked && self.all.get(slot).is_some_and(|slot| slot.listed)
    }

    /// Whether it can become one by the flags that it has, or had when it was there.
    pub(crate) fn may_churn(&self, slot: u32) -> bool {
        self.all.get(slot).is_some_and(|slot| self.rules.allow(slot.region.flags))
    }

    /// Why `slot`, which was flipped, is left alone; `None` if it is not.
    pub(crate) fn left_alone(&self, slot: &Slot) -> Option<&'static str> {
        const LOGGED: u32 = 1;
        let Region { flags, .. } = slot.region;
        let reason = match () {
            () if slot.listed => return None,
            () if flags & LOGGED != 0 => "its writes are logged",
            () if !self.rules.allow(flags) => "the guest may write to it",
            () if slot.churn.flips() < self.rules.flips => "too few flips of the same",
            () if self.rules.way == Way::AsAsked => "all are as the VMM asks",
            () => "16 others churn",
        };
        Some(reason)
    }

    /// How many slots were looked at so far.
    #[cfg(test)]
    pub(crate) fn looks(&self) -> usize {
        self.all.looks.get()
    }

    /// Calls for slots that there was no room to know.
    pub(crate) const fn unknown(&self) -> u64 {
        self.unknown
    }

    /// Whether any slot is.
    pub(crate) fn manages_any(&self) -> bool {
        self.rules.way != Way::AsAsked && self.listed > 0
    }

    /// How many slots are deferred.
    pub(crate) const fn deferred(&self) -> usize {
        self.deferred
    }

    /// Those that churn.
    pub(super) fn churning(&self) -> impl Iterator<Item = &Slot> {
        self.churning[..self.listed].iter().filter_map(|slot| self.all.get(*slot))
    }

    /// Whether `asked` changes the flags of a slot that is there.
    pub(crate) fn changes_flags(&self, asked: &Region) -> bool {
        let there = self.all.get(asked.slot).filter(|slot| slot.wanted && asked.size != 0);
        there.is_some_and(|slot| slot.region.flags != asked.flags)
    }

    /// What to do for `asked`.
    pub(crate) fn plan(&self, asked: &Region) -> Plan {
        let own = self.all.get(asked.slot);
        let instead = |action| Plan { repairs: false, action };
        let managed = self.is_managed(asked.slot);
        match own {
            // What KVM would refuse, it is to refuse.
            Some(slot) if asked.surely_deletes(&slot.region) && slot.is_deferred() => {
                instead(Action::Forget)
            }
            Some(slot)
                if asked.surely_deletes(&slot.region)
                    && slot.held == Held::Mapped
                    && managed
                    && self.rules.way == Way::Trap =>
            {
                instead(Action::Trap(slot.region))
            }
            Some(slot) if !slot.wanted && slot.region == *asked => match slot.held {
                // What else is at its place has it start anew, see `done`.
                Held::Trapping if slot.listed => instead(Action::Untrap(slot.region)),
                Held::Nothing if managed && self.rules.way == Way::Defer => instead(Action::Defer),
                _ => Plan::PASS,
            },
            _ => Plan::PASS,
        }
    }

    /// The next call that has to be made before KVM gets `asked`.
    pub(crate) fn in_the_way(&self, asked: &Region) -> Option<Repair> {
        let own = |slot: &&Slot| slot.region.slot == asked.slot;
        let over = |slot: &&Slot| asked.size != 0 && slot.region.overlaps(asked);
        self.churning().filter(|slot| own(slot) || over(slot)).find_map(Slot::repair)
    }

    /// The next call that makes KVM's slots what the VMM believes they are, of
    /// those after the first `from`; and where it is.
    pub(crate) fn repair(&self, from: usize) -> Option<(usize, Repair)> {
        let churning = self.churning().enumerate().skip(from);
        churning.into_iter().find_map(|(at, slot)| Some((at, slot.repair()?)))
    }

    /// The same for one slot.
    pub(crate) fn repair_of(&self, slot: u32) -> Option<Repair> {
        self.all.get(slot).and_then(Slot::repair)
    }

    /// KVM has taken `repair`.
    pub(crate) fn repaired(&mut self, repair: &Repair) {
        let (region, held) = match repair {
            Repair::Map(region) => (region, Held::Mapped),
            Repair::Delete(region) => (region, Held::Nothing),
        };
        if let Some(slot) = self.all.get_mut(region.slot) {
            self.deferred -= usize::from(slot.is_deferred());
            slot.held = held;
        }
    }

    /// Slot `slot` is as KVM has it, and is to be looked at as if it were new.
    pub(crate) fn restart(&mut self, slot: u32) {
        if let Some(slot) = self.all.get_mut(slot) {
            slot.churn.reset();
            slot.listed = false;
        }
        if let Some(at) = self.churning[..self.listed].iter().position(|id| *id == slot) {
            self.listed -= 1;
            self.churning[at] = self.churning[self.listed];
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
            if let Some(slot) = self.all.get_mut(asked.slot) {
                self.deferred -= usize::from(slot.is_deferred());
                slot.churn.removed();
                slot.counts.flips += u64::from(slot.wanted);
                slot.wanted = false;
                slot.held = held;
                self.list(asked.slot);
            }
            return;
        }
        self.displace(asked);
        let after = self.rules.flips;
        let new = || Slot {
            region: *asked,
            wanted: false,
            held,
            churn: Churn::after(after),
            listed: false,
            counts: SlotCounts::default(),
        };
        // Where there is no room it is not known, and left alone.
        let Some(slot) = self.all.get_or_insert(asked.slot, new) else {
            self.unknown += 1;
            return;
        };
        slot.counts.deferred += u64::from(action == Action::Defer);
        let was_deferred = slot.is_deferred();
        let again = slot.region == *asked;
        // What is there already is not added.
        if !slot.wanted || !again {
            slot.counts.flips += u64::from(again && slot.churn.flips() > 0);
            slot.churn.added(*asked);
        }
        slot.region = *asked;
        slot.wanted = true;
        slot.held = held;
        let is_deferred = slot.is_deferred();
        self.deferred = self.deferred + usize::from(is_deferred) - usize::from(was_deferred);
        if again {
            self.list(asked.slot);
        } else if self.all.get(asked.slot).is_some_and(|slot| slot.listed) {
            self.restart(asked.slot);
            if let Some(slot) = self.all.get_mut(asked.slot) {
                slot.churn.added(*asked);
            }
        }
    }

    /// Slots that were where `asked` is now begin anew.
    fn displace(&mut self, asked: &Region) {
        let gone = |slot: &Slot| {
            !slot.wanted && slot.region.slot != asked.slot && slot.region.overlaps(asked)
        };
        let next =
            |slots: &Self| slots.churning().find(|slot| gone(slot)).map(|slot| slot.region.slot);
        while let Some(slot) = next(self) {
            self.restart(slot);
        }
    }

    /// Lists slot `slot` if the next flip of it is one too many.
    fn list(&mut self, slot: u32) {
        let rules = self.rules;
        let Some(own) = self.all.get_mut(slot) else { return };
        let churns = own.churn.flips() >= rules.flips && rules.allow(own.region.flags);
        if churns && !own.listed && self.listed < CHURNING {
            own.listed = true;
            self.churning[self.listed] = slot;
            self.listed += 1;
        }
    }
}
