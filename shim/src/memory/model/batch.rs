//! `KVM_SET_USER_MEMORY_REGIONS`, as its ABI says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kvm_memslots_uapi::{
    MemFlags, MemoryRegionsFlags, kvm_userspace_memory_region2, kvm_userspace_memory_regions,
};

use super::apply::Undo;
use super::bitmap::{Bitmap, Carry};
use super::check::begins_to_trap;
use super::counts::Call;
use super::space::Live;
use super::vm::Vm;
use crate::errno::Errno;
use crate::mapping::{Mapping, Slot};
use crate::range::Range;

/// A batch that was refused.
struct Blame {
    errno: Errno,
    /// The entry to blame, if one is.
    entry: Option<u32>,
}

impl From<Errno> for Blame {
    fn from(errno: Errno) -> Self {
        Self { errno, entry: None }
    }
}

/// What a batch has changed so far.
#[derive(Default)]
struct Journal {
    undo: Vec<Undo>,
    /// The last entry of each slot.
    last_entry: BTreeMap<u16, u32>,
    /// Slots that an entry deleted; what has such an id now is another slot.
    deleted: BTreeSet<u16>,
}

impl Journal {
    /// The slots that the batch touched, as they were before it.
    fn before(&self) -> impl Iterator<Item = (u16, Option<&Live>)> {
        let mut seen = BTreeSet::new();
        // The first time that the batch touched an id, the slot was as before.
        let first = self.undo.iter().filter(move |undo| seen.insert(undo.id));
        first.map(|undo| (undo.id, undo.before.as_ref()))
    }
}

/// What all entries of a slot amount to.
struct Net {
    last_entry: u32,
    before: Option<Slot>,
    after: Option<Slot>,
}

impl Net {
    /// Where the batch puts a slot that was not there before.
    fn placed(&self) -> Option<Range> {
        let range = |slot: Slot| slot.mapping.range();
        self.after.map(range).filter(|after| self.before.map(range) != Some(*after))
    }

    fn grace_periods(&self) -> u64 {
        match (self.before, self.after) {
            (None, None) => 0,
            (None, Some(_)) => 1,
            (Some(_), None) => 2,
            (Some(before), Some(after)) => {
                let without =
                    |slot: Slot, flags| slot.mapping.with_flags(slot.mapping.flags() - flags);
                let same = |flags| without(before, flags) == without(after, flags);
                if same(MemFlags::TRAP) {
                    0
                } else if same(MemFlags::TRAP | MemFlags::LOG_DIRTY_PAGES) {
                    1
                } else {
                    2
                }
            }
        }
    }
}

impl Vm {
    /// `KVM_SET_USER_MEMORY_REGIONS`.
    pub(super) fn set_regions(
        &mut self,
        header: &mut kvm_userspace_memory_regions,
        entries: &[kvm_userspace_memory_region2],
    ) -> Result<(), Errno> {
        let Some(limit) = self.config.limits.batch else {
            self.counts.ioctls += 1;
            self.counts.refused += 1;
            return Err(Errno::ENOTTY);
        };
        let dry_run = header.flags & MemoryRegionsFlags::DRY_RUN.bits() != 0;
        self.counts.dry_runs += u64::from(dry_run);
        self.counts.ioctls += u64::from(!dry_run);
        let outcome = self.batch(header, entries, limit, dry_run);
        let blamed = outcome.as_ref().err().and_then(|blame| blame.entry);
        header.failed = blamed.unwrap_or(header.nr);
        outcome.map_err(|blame| {
            self.counts.refused += u64::from(!dry_run);
            blame.errno
        })
    }

    fn batch(
        &mut self,
        header: &kvm_userspace_memory_regions,
        entries: &[kvm_userspace_memory_region2],
        limit: u32,
        dry_run: bool,
    ) -> Result<(), Blame> {
        self.check_header(header, limit)?;
        let entries = entries.get(..header.nr as usize).ok_or(Errno::EFAULT)?;
        let struck = self.faults.strike(Call::SetRegions);
        struck.map_err(|(errno, entry)| Blame { errno, entry })?;
        let as_id = header.as_id as u16;
        let mut journal = Journal::default();
        let outcome = entries.iter().zip(0..).try_for_each(|(entry, index)| {
            self.enter(as_id, entry, index, &mut journal)
                .map_err(|errno| Blame { errno, entry: Some(index) })
        });
        match outcome.and_then(|()| self.net_outcome(as_id, &journal)) {
            Ok(grace_periods) if !dry_run => {
                self.counts.grace_periods += grace_periods;
                let begins = |(id, before): (u16, Option<&Live>)| {
                    let both = before.zip(self.live(as_id, id));
                    both.is_some_and(|(old, new)| begins_to_trap(&old.slot, &new.slot))
                };
                let flips = grace_periods == 0 && journal.before().any(begins);
                self.flipped(flips);
                self.carry(as_id, &journal);
                Ok(())
            }
            outcome => {
                for undo in journal.undo.into_iter().rev() {
                    self.undo(as_id, undo);
                }
                outcome.map(drop)
            }
        }
    }

    /// What the architecture says to what the entries amount to; how many grace
    /// periods that takes: the most that any slot needs.
    fn net_outcome(&self, as_id: u16, journal: &Journal) -> Result<u64, Blame> {
        let mut nets: Vec<_> = journal
            .before()
            .map(|(id, before)| Net {
                last_entry: journal.last_entry.get(&id).copied().unwrap_or_default(),
                before: before.map(|live| live.slot),
                after: self.live(as_id, id).map(|live| live.slot),
            })
            .collect();
        nets.sort_unstable_by_key(|net| net.last_entry);
        for net in &nets {
            if let Some(range) = net.placed() {
                self.check_arch(range)
                    .map_err(|errno| Blame { errno, entry: Some(net.last_entry) })?;
            }
        }
        Ok(nets.iter().map(Net::grace_periods).max().unwrap_or_default())
    }

    fn check_header(&self, header: &kvm_userspace_memory_regions, limit: u32) -> Result<(), Errno> {
        let flags = MemoryRegionsFlags::from_bits(header.flags).ok_or(Errno::EINVAL)?;
        let as_ids = u32::from(self.config.limits.address_spaces);
        let empty = header.nr == 0 && !flags.contains(MemoryRegionsFlags::DRY_RUN);
        if header.reserved != [0; 6] || header.as_id >= as_ids || empty {
            return Err(Errno::EINVAL);
        }
        if header.nr > limit { Err(Errno::E2BIG) } else { Ok(()) }
    }

    /// Carries one entry out, to be undone if a later one is refused.
    fn enter(
        &mut self,
        as_id: u16,
        entry: &kvm_userspace_memory_region2,
        index: u32,
        journal: &mut Journal,
    ) -> Result<(), Errno> {
        if entry.slot > u32::from(u16::MAX) {
            return Err(Errno::EINVAL);
        }
        let region =
            kvm_userspace_memory_region2 { slot: u32::from(as_id) << 16 | entry.slot, ..*entry };
        let change = self.check_generic(&region)?;
        journal.last_entry.insert(entry.slot as u16, index);
        if let Some(undo) = self.apply(as_id, change) {
            if self.live(as_id, undo.id).is_none() {
                journal.deleted.insert(undo.id);
            }
            journal.undo.push(undo);
        }
        Ok(())
    }

    /// Dirty bits of logged slots that were replaced, into the logged slots
    /// that map the same guest pages to the same host pages. A slot that is
    /// logged before and after, and was not deleted, keeps its own bits, even
    /// if an entry in between turned logging off.
    fn carry(&mut self, as_id: u16, journal: &Journal) {
        let page = self.config.limits.page_size;
        let before = LoggedBefore::new(journal);
        let Some(space) = self.spaces.get_mut(usize::from(as_id)) else { return };
        for (id, was) in journal.before() {
            let Some(live) = space.get_mut(id) else { continue };
            let new = live.slot.mapping;
            let Some(bitmap) = &mut live.dirty else { continue };
            let own = was.and_then(|was| was.dirty.as_ref());
            let own = own.filter(|_| !journal.deleted.contains(&id));
            let how = if own.is_some() { Carry::Add } else { Carry::Copy };
            if let Some(own) = own {
                bitmap.clone_from(own);
            }
            for (old, old_bitmap) in before.overlapping(&new) {
                if own.is_some_and(|own| Arc::ptr_eq(own, old_bitmap)) {
                    continue;
                }
                let Some(shared) = new.range().intersection(old.range()) else { continue };
                let page_of = |start: u64| (shared.gpa() - start) / page;
                Arc::make_mut(bitmap).carry(
                    how,
                    page_of(new.range().gpa()),
                    old_bitmap,
                    page_of(old.range().gpa()),
                    shared.size() / page,
                );
            }
        }
    }

    fn live(&self, as_id: u16, id: u16) -> Option<&Live> {
        self.space(u32::from(as_id))?.get(id)
    }
}

/// The logged slots that a batch touched, as they were before it. Disjoint,
/// by guest address.
struct LoggedBefore(BTreeMap<u64, (Mapping, Arc<Bitmap>)>);

impl LoggedBefore {
    fn new(journal: &Journal) -> Self {
        let logged = journal.before().filter_map(|(_, before)| {
            let Live { slot, dirty } = before?;
            let dirty = dirty.as_ref()?;
            Some((slot.mapping.range().gpa(), (slot.mapping, Arc::clone(dirty))))
        });
        Self(logged.collect())
    }

    /// Those that put the same host pages behind guest pages of `new`.
    fn overlapping<'a>(
        &'a self,
        new: &'a Mapping,
    ) -> impl Iterator<Item = (&'a Mapping, &'a Arc<Bitmap>)> {
        self.0
            .range(..new.range().end())
            .rev()
            .map(|(_, (mapping, bitmap))| (mapping, bitmap))
            .take_while(|(old, _)| old.range().end() > new.range().gpa())
            .filter(|(old, _)| old.same_host_pages_as(new))
    }
}
