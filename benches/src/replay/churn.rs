//! One call after the other, but for slots that keep coming back unchanged.

use std::collections::HashMap;
use std::fmt;

use kvm_memslots::{Errno, MemFlags, Range};
use kvm_memslots_shim::uapi::kvm_userspace_memory_region2;

use super::{Make, Refused, Spent};
use crate::trace::Call;
use kvm_memslots_kit::raw::RawCalls;

/// How often a slot has to come back unchanged, where nothing else is asked
/// for.
pub const CHURN_AFTER: u32 = 2;

type Region = kvm_userspace_memory_region2;

const TRAP: u32 = MemFlags::TRAP.bits();

/// What is done with a slot that churns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum With {
    /// As the trace has it.
    Nothing,
    /// Instead of being deleted it traps.
    Trap,
    /// Once deleted, it is not made again: the guest's accesses exit, and the
    /// VMM serves them.
    Defer,
}

/// Makes the calls as the VMM did, one by one. A slot that was deleted and
/// came back unchanged, under the same id, as often as asked for churns, and is
/// treated differently from then on.
pub struct Churn {
    slots: Box<dyn RawCalls>,
    with: With,
    after: u32,
    ids: HashMap<u32, Track>,
    /// Whether a slot has begun to trap: the first flip of a VM waits.
    trapped: bool,
}

/// What is known of a slot id.
#[derive(Debug, Clone, Copy, Default)]
struct Track {
    /// What KVM has; trapping if nothing is wanted.
    live: Option<Region>,
    /// What the trace has.
    wanted: Option<Region>,
    deleted: Option<Region>,
    /// How often it came back.
    returns: u32,
}

impl Track {
    const fn traps(&self) -> bool {
        self.live.is_some() && self.wanted.is_none()
    }
}

impl fmt::Debug for Churn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Churn").field("with", &self.with).finish_non_exhaustive()
    }
}

impl Churn {
    /// Does `with` to slots that came back `after` times.
    ///
    /// # Safety
    /// The host memory of all calls is the guest's, as
    /// [`RawCalls::set_region`] says, until the VM is gone.
    #[must_use]
    pub unsafe fn new(slots: Box<dyn RawCalls>, with: With, after: u32) -> Self {
        Self { slots, with, after, ids: HashMap::new(), trapped: false }
    }

    fn call(&mut self, region: &Region) -> Result<Spent, Errno> {
        let mut track = self.ids.get(&region.slot).copied().unwrap_or_default();
        let cost = if region.memory_size == 0 {
            self.delete(&mut track, region)
        } else {
            self.create_or_change(&mut track, region)
        }?;
        self.ids.insert(region.slot, track);
        Ok(cost)
    }

    fn delete(&mut self, track: &mut Track, region: &Region) -> Result<Spent, Errno> {
        track.deleted = track.wanted.take();
        match track.live {
            // It was not made again.
            None => Ok(Spent::default()),
            Some(live) if self.with == With::Trap && track.returns >= self.after => {
                self.set(&Region { flags: live.flags | TRAP, ..live })?;
                let first = !std::mem::replace(&mut self.trapped, true);
                Ok(Spent { flips: 1, ..Spent::calls(0, first.into()) })
            }
            Some(_) => {
                self.set(region)?;
                track.live = None;
                Ok(Spent::calls(1, 2))
            }
        }
    }

    fn create_or_change(&mut self, track: &mut Track, region: &Region) -> Result<Spent, Errno> {
        let returns = track.wanted.is_none() && track.deleted == Some(*region);
        track.returns += u32::from(returns);
        if returns && track.traps() {
            self.set(region)?;
            track.wanted = Some(*region);
            return Ok(Spent { flips: 1, ..Spent::default() });
        }
        if returns && self.with == With::Defer && track.returns > self.after {
            track.wanted = Some(*region);
            return Ok(Spent::default());
        }
        let mut cost = Spent::default();
        if track.traps() {
            cost += self.evict(track)?;
        }
        cost += self.make_room(region)?;
        self.set(region)?;
        cost += Spent::calls(1, waits(track.live, region));
        track.live = Some(*region);
        track.wanted = Some(*region);
        Ok(cost)
    }

    /// Deletes trapping slots that something else is to be made over.
    fn make_room(&mut self, region: &Region) -> Result<Spent, Errno> {
        let range = |region: &Region| Range::new(region.guest_phys_addr, region.memory_size);
        let in_the_way = |(id, track): (&u32, &Track)| {
            let live = track.live.filter(|_| track.traps() && *id != region.slot)?;
            let same_space = id >> 16 == region.slot >> 16;
            let overlap = range(&live)?.overlaps(range(region)?);
            (same_space && overlap).then_some((*id, *track))
        };
        let evicted: Vec<(u32, Track)> = match self.with {
            With::Trap => self.ids.iter().filter_map(in_the_way).collect(),
            With::Nothing | With::Defer => Vec::new(),
        };
        let mut cost = Spent::default();
        for (id, mut track) in evicted {
            cost += self.evict(&mut track)?;
            self.ids.insert(id, track);
        }
        Ok(cost)
    }

    fn evict(&mut self, track: &mut Track) -> Result<Spent, Errno> {
        if let Some(live) = track.live.take() {
            self.set(&Region { memory_size: 0, flags: 0, ..live })?;
        }
        Ok(Spent::calls(1, 2))
    }

    fn set(&mut self, region: &Region) -> Result<(), Errno> {
        // SAFETY: whoever made this value promised it, for all calls.
        unsafe { self.slots.set_region(region) }
    }
}

/// Grace periods of a create, a move or a change of flags (`kvm_set_memslot()`).
fn waits(live: Option<Region>, region: &Region) -> u64 {
    match live {
        Some(live) if live == *region => 0,
        Some(live) if live.guest_phys_addr != region.guest_phys_addr => 2,
        _ => 1,
    }
}

impl Make for Churn {
    fn burst(&mut self, calls: &[Call]) -> Result<Spent, Refused> {
        let mut spent = Spent::default();
        for call in calls {
            let made = self.call(&call.region);
            spent += made.map_err(|errno| Refused { line: call.line, why: errno.to_string() })?;
        }
        Ok(spent)
    }
}
