//! Who gets a slot where not all that wait can have one.
//!
//! A slot goes to the regions that have cost most exits. One that is due takes
//! the slot of another that had earned it with fewer, and with four times what a
//! slot costs it takes that of any other: so each gets its turn, however much
//! another one has earned before. Whoever gives its slot back starts from zero.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::deferred::Life;
use crate::vm::prepare::Promotion;
use crate::vm::{Commit, Tables, Vm};

/// A region, and how many slots it takes.
struct Candidate {
    index: u32,
    life: Arc<Life>,
    slots: usize,
}

impl Vm {
    /// The best that can be done for what waits, now that slots are short.
    pub(super) fn share_slots(&self, commit: &Commit, tables: &Tables) -> Promotion {
        let exits = |life: &Life| life.exits.load(Ordering::Relaxed);
        let earned = |life: &Life| life.earned.load(Ordering::Relaxed);
        let mut all = Promotion::default();
        for as_id in 0..self.limits().address_spaces {
            let serving = &self.serving[usize::from(as_id)];
            let mut waiting = self.candidates(tables, as_id, true);
            waiting.sort_by_key(|one| Reverse(exits(&one.life)));
            let mut mapped = self.candidates(tables, as_id, false);
            mapped.sort_by_key(|one| earned(&one.life));
            fit(&mut all, commit, as_id, waiting, mapped, |one, other| {
                let exits = exits(&one.life);
                let enough = serving.is_due(exits / 4) || exits > earned(&other.life);
                serving.is_due(exits) && enough
            });
        }
        all
    }

    /// Gives those a slot that had none since promotion `round`, in turn, at the
    /// cost of those that had one longest.
    pub(super) fn rotate(&self, commit: &Commit, tables: &Tables, round: u64) -> Promotion {
        let turn = |life: &Life| life.turn.load(Ordering::Relaxed);
        let mut all = Promotion::default();
        for as_id in 0..self.limits().address_spaces {
            let mut waiting = self.candidates(tables, as_id, true);
            waiting.retain(|one| turn(&one.life) <= round);
            waiting.sort_by_key(|one| turn(&one.life));
            let mut mapped = self.candidates(tables, as_id, false);
            mapped.sort_by_key(|one| turn(&one.life));
            fit(&mut all, commit, as_id, waiting, mapped, |_, _| true);
        }
        all
    }

    fn candidates(&self, tables: &Tables, as_id: u16, waiting: bool) -> Vec<Candidate> {
        let regions = &tables.regions;
        let slots = &tables.slots[usize::from(as_id)];
        let serving = &self.serving[usize::from(as_id)];
        let lives = serving.all_lives();
        let candidate = |index: u32| {
            let range = regions.range(index);
            // What shares a slot with others has none to give, nor what can't be
            // served without.
            let never_faults = || regions.extra(index).is_some_and(|extra| extra.never_faults);
            let gives = || slots.exactly(range).is_some() && serving.can_serve(never_faults());
            let counts = regions.is_waiting(index) == waiting && (waiting || gives());
            let life = lives.get(&regions.id(index)).filter(|_| counts)?;
            let slots = range.size().div_ceil(self.limits().slot_bytes()) as usize;
            Some(Candidate { index, life: Arc::clone(life), slots })
        };
        let mine = regions.deferrable().filter(|index| regions.as_id(*index) == as_id);
        mine.filter_map(candidate).collect()
    }
}

/// Fits those of `waiting` in that fit, in order; others for which some of
/// `mapped` may be `displaced`.
fn fit(
    all: &mut Promotion,
    commit: &Commit,
    as_id: u16,
    waiting: Vec<Candidate>,
    mapped: Vec<Candidate>,
    displaced: impl Fn(&Candidate, &Candidate) -> bool,
) {
    let mut free = commit.free_slots(as_id);
    let mut mapped = mapped.into_iter().peekable();
    for one in waiting {
        let mut down = Vec::new();
        while free + down.len() < one.slots {
            match mapped.next_if(|other| displaced(&one, other)) {
                Some(other) => down.push(other.index),
                None => break,
            }
        }
        let room = free + down.len();
        all.down.extend(down);
        free = room;
        if one.slots <= room {
            free -= one.slots;
            all.up.push(one.index);
        } else if room == 0 {
            break;
        }
    }
}
