//! `KVM_SET_USER_MEMORY_REGIONS`, as its ABI says.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_int;
use std::sync::Arc;

use kvm_memslots_uapi::probe::ProbeVm;
use kvm_memslots_uapi::{
    KVM_CAP_USER_MEMORY_REGIONS, MemoryRegions, MemoryRegionsFlags, kvm_userspace_memory_region2,
    kvm_userspace_memory_regions,
};

use super::apply::Undo;
use super::check::Change;
use super::space::Live;
use super::{Call, Model};
use crate::Mapping;
use crate::backend::Errno;

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
    /// Slots that got a new dirty bitmap in this batch and still have it.
    fresh: BTreeSet<u16>,
    /// Something was deleted or moved: the second grace period.
    invalidates: bool,
}

impl Model {
    /// `KVM_SET_USER_MEMORY_REGIONS` with the header and entries of `regions`,
    /// as [`set_user_memory_regions_raw`](Self::set_user_memory_regions_raw).
    ///
    /// # Errors
    /// As there.
    pub fn set_user_memory_regions(&mut self, regions: &mut MemoryRegions) -> Result<(), Errno> {
        let mut header = *regions.header();
        let outcome = self.set_user_memory_regions_raw(&mut header, regions.entries());
        regions.set_failed(header.failed);
        outcome
    }

    /// `KVM_SET_USER_MEMORY_REGIONS`: carries the entries out in order, all or
    /// none. `header.failed` comes back as the index of the entry that was
    /// refused, or as `nr` if none is to blame; nothing else in the header
    /// changes.
    ///
    /// # Errors
    /// `ENOTTY` where the kernel lacks the ioctl ([`Limits::batch`]; the header
    /// is untouched then). Of the header, in this order: `EINVAL` for an
    /// unknown flag, a reserved word that is not 0, an address space beyond
    /// the limit, or `nr` 0 without [`MemoryRegionsFlags::DRY_RUN`]; `E2BIG`
    /// for `nr` beyond the limit; `EFAULT` where `nr` names more entries than
    /// there are. Of an entry: `EINVAL` for bits 16 to 31 of its slot, and
    /// else what the single-region ioctl would say, were the entries before it
    /// carried out.
    ///
    /// [`Limits::batch`]: crate::Limits::batch
    pub fn set_user_memory_regions_raw(
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
        if let Some(fault) = self.injected(Call::SetRegions) {
            return Err(Blame { errno: fault.errno(), entry: fault.entry() });
        }
        let as_id = header.as_id as u16;
        let mut journal = Journal::default();
        let outcome = entries.iter().zip(0..).try_for_each(|(entry, index)| {
            self.enter(as_id, entry, &mut journal)
                .map_err(|errno| Blame { errno, entry: Some(index) })
        });
        if outcome.is_err() || dry_run {
            for undo in journal.undo.into_iter().rev() {
                self.undo(as_id, undo);
            }
            return outcome;
        }
        // What is not live needs no grace period, and neither does a batch of
        // entries that change nothing.
        self.counts.grace_periods += match (journal.undo.is_empty(), journal.invalidates) {
            (true, _) => 0,
            (false, false) => 1,
            (false, true) => 2,
        };
        self.carry(as_id, journal);
        Ok(())
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
        journal: &mut Journal,
    ) -> Result<(), Errno> {
        if entry.slot > u32::from(u16::MAX) {
            return Err(Errno::EINVAL);
        }
        let region =
            kvm_userspace_memory_region2 { slot: u32::from(as_id) << 16 | entry.slot, ..*entry };
        let change = self.check(&region).map_err(|refusal| refusal.errno)?;
        journal.invalidates |= matches!(change, Change::Delete { .. } | Change::Move { .. });
        if let Some(undo) = self.apply(as_id, change) {
            let logged = self.live(as_id, undo.id).is_some_and(|live| live.dirty.is_some());
            let was_logged = undo.before.as_ref().is_some_and(|live| live.dirty.is_some());
            if logged && !was_logged {
                journal.fresh.insert(undo.id);
            } else if !logged {
                journal.fresh.remove(&undo.id);
            }
            journal.undo.push(undo);
        }
        Ok(())
    }

    /// Dirty bits of logged slots that were replaced, into the logged slots
    /// that map the same guest pages to the same host pages.
    fn carry(&mut self, as_id: u16, journal: Journal) {
        let page = self.config.limits.page_size;
        let before = LoggedBefore::new(journal.undo);
        for id in journal.fresh {
            let Some(live) =
                self.spaces.get_mut(usize::from(as_id)).and_then(|space| space.get_mut(id))
            else {
                continue;
            };
            let new = live.slot.mapping;
            let Some(bitmap) = &mut live.dirty else { continue };
            for (old, old_bitmap) in before.overlapping(&new) {
                let Some(shared) = new.range.intersection(old.range) else { continue };
                let page_of = |start: u64| (shared.gpa - start) / page;
                Arc::make_mut(bitmap).copy(
                    page_of(new.range.gpa),
                    old_bitmap,
                    page_of(old.range.gpa),
                    shared.size / page,
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
struct LoggedBefore(BTreeMap<u64, (Mapping, Arc<super::dirty::Bitmap>)>);

impl LoggedBefore {
    fn new(undo: Vec<Undo>) -> Self {
        let mut seen = BTreeSet::new();
        // The first time that the batch touched an id, the slot was as before.
        let before = undo.into_iter().filter(|undo| seen.insert(undo.id));
        let logged = before.filter_map(|undo| {
            let Live { slot, dirty } = undo.before?;
            Some((slot.mapping.range.gpa, (slot.mapping, dirty?)))
        });
        Self(logged.collect())
    }

    /// Those that put the same host pages behind guest pages of `new`.
    fn overlapping<'a>(
        &'a self,
        new: &'a Mapping,
    ) -> impl Iterator<Item = (&'a Mapping, &'a super::dirty::Bitmap)> {
        self.0
            .range(..new.range.end())
            .rev()
            .map(|(_, (mapping, bitmap))| (mapping, bitmap.as_ref()))
            .take_while(|(old, _)| old.range.end() > new.range.gpa)
            .filter(|(old, _)| old.same_host_pages_as(new))
    }
}

impl ProbeVm for Model {
    /// Knows no capability but that of the batch ioctl.
    fn check_extension(&mut self, cap: u32) -> c_int {
        let batch = self.config.limits.batch.unwrap_or(0);
        if cap == KVM_CAP_USER_MEMORY_REGIONS {
            c_int::try_from(batch).unwrap_or(c_int::MAX)
        } else {
            0
        }
    }

    fn set_user_memory_regions(
        &mut self,
        header: &mut kvm_userspace_memory_regions,
    ) -> Result<(), c_int> {
        self.set_user_memory_regions_raw(header, &[]).map_err(|errno| errno as c_int)
    }
}
