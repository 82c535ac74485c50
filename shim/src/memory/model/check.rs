//! What KVM says to one memslot change, in KVM's order: the first rule that is
//! broken gives the errno. Each rule names the kernel function it is from, in
//! `virt/kvm/kvm_main.c` unless another file is named.

use kvm_memslots_uapi::{MemFlags, kvm_userspace_memory_region2};

use super::vm::Vm;
use crate::errno::Errno;
use crate::mapping::{GuestMemfd, Kind, Mapping, Slot};
use crate::range::Range;

/// What a region that breaks no rule comes to (`enum kvm_mr_change`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Create(Slot),
    Delete {
        old: Slot,
    },
    /// The log flag may change with it.
    Move {
        old: Slot,
        new: Slot,
    },
    FlagsOnly {
        old: Slot,
        new: Slot,
    },
    Nothing,
}

impl Change {
    /// Grace periods of the single-region ioctl (`kvm_set_memslot()`: one for
    /// each `kvm_swap_active_memslots()`).
    pub(super) fn grace_periods(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::FlagsOnly { old, new } => {
                u64::from(old.mapping.flags() ^ new.mapping.flags() != MemFlags::TRAP)
            }
            Self::Create(_) => 1,
            Self::Delete { .. } | Self::Move { .. } => 2,
        }
    }
}

pub(super) fn begins_to_trap(old: &Slot, new: &Slot) -> bool {
    let traps = |slot: &Slot| slot.mapping.flags().contains(MemFlags::TRAP);
    !traps(old) && traps(new)
}

/// A region that breaks a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    /// A move is refused by the architecture when the slot is invalid already:
    /// one grace period for that, and one for making it valid again.
    pub(super) grace_periods: u64,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno, grace_periods: 0 }
    }
}

impl Vm {
    /// `kvm_vm_ioctl_set_memory_region()`, up to the first thing that it
    /// changes for good.
    pub(super) fn check(&self, region: &kvm_userspace_memory_region2) -> Result<Change, Refusal> {
        let change = self.check_generic(region)?;
        let (range, grace_periods) = match change {
            Change::Create(slot) => (slot.mapping.range(), 0),
            Change::Move { new, .. } => (new.mapping.range(), 2),
            _ => return Ok(change),
        };
        self.check_arch(range).map_err(|errno| Refusal { errno, grace_periods })?;
        Ok(change)
    }

    /// The same, without what the architecture says.
    pub(super) fn check_generic(
        &self,
        region: &kvm_userspace_memory_region2,
    ) -> Result<Change, Errno> {
        let id = region.slot as u16;
        refuse_if(u32::from(id) >= self.config.limits.slots)?;
        self.check_flags(region)?;
        self.check_sanity(region)?;
        let change = self.classify(region)?;
        self.check_overlap(region, change)?;
        if let Change::Create(slot) = change {
            if let Some(memfd) = slot.mapping.guest_memfd() {
                self.memfds.check(memfd, slot.mapping.range().size(), self.config.bound)?;
            }
        }
        Ok(change)
    }

    /// `check_memory_region_flags()`.
    fn check_flags(&self, region: &kvm_userspace_memory_region2) -> Result<(), Errno> {
        let limits = &self.config.limits;
        let mut valid = MemFlags::LOG_DIRTY_PAGES;
        valid.set(MemFlags::GUEST_MEMFD, limits.guest_memfd);
        valid.set(MemFlags::READONLY, limits.readonly);
        valid.set(MemFlags::TRAP, limits.trap);
        if region.flags & MemFlags::GUEST_MEMFD.bits() != 0 {
            // Private memory can't be logged, and an access to it can't be
            // emulated, as one to a read-only or trapping slot is.
            valid.remove(MemFlags::LOG_DIRTY_PAGES | MemFlags::READONLY | MemFlags::TRAP);
        }
        refuse_if(region.flags & !valid.bits() != 0)
    }

    /// "General sanity checks" of `kvm_set_memory_region()`. They hold for a
    /// delete too, whose addresses mean nothing.
    fn check_sanity(&self, region: &kvm_userspace_memory_region2) -> Result<(), Errno> {
        let limits = &self.config.limits;
        let unaligned = |address: u64| address % limits.page_size != 0;
        let size = region.memory_size;
        let wraps = |address: u64| address.checked_add(size).is_none();
        let memfd = region.flags & MemFlags::GUEST_MEMFD.bits() != 0;
        let hva_end = region.userspace_addr.checked_add(size);

        refuse_if(unaligned(size))?;
        refuse_if(unaligned(region.guest_phys_addr))?;
        refuse_if(unaligned(region.userspace_addr))?;
        // access_ok()
        refuse_if(hva_end.is_none_or(|end| end > self.config.hva_end))?;
        refuse_if(memfd && unaligned(region.guest_memfd_offset))?;
        refuse_if(memfd && wraps(region.guest_memfd_offset))?;
        refuse_if(region.slot >> 16 >= u32::from(limits.address_spaces))?;
        refuse_if(wraps(region.guest_phys_addr))?;
        refuse_if(size / limits.page_size > limits.slot_pages)
    }

    /// Which change it is (`kvm_set_memory_region()`).
    fn classify(&self, region: &kvm_userspace_memory_region2) -> Result<Change, Errno> {
        let old = self.space(region.slot >> 16).and_then(|space| space.get(region.slot as u16));
        let old = old.map(|live| live.slot);
        if region.memory_size == 0 {
            return old.map(|old| Change::Delete { old }).ok_or(Errno::EINVAL);
        }
        let Some(old) = old else {
            let slot = slot_of(region).ok_or(Errno::EINVAL)?;
            let pages = slot.mapping.range().size() / self.config.limits.page_size;
            // KVM counts the pages of all slots in an unsigned long.
            self.pages.checked_add(pages).ok_or(Errno::EINVAL)?;
            return Ok(Change::Create(slot));
        };
        let flags = MemFlags::from_bits_truncate(region.flags);
        let fixed = MemFlags::READONLY | MemFlags::GUEST_MEMFD;
        // A slot with private memory can only be deleted.
        refuse_if(flags.contains(MemFlags::GUEST_MEMFD))?;
        refuse_if(region.userspace_addr != old.mapping.hva())?;
        refuse_if(region.memory_size != old.mapping.range().size())?;
        refuse_if((flags ^ old.mapping.flags()).intersects(fixed))?;
        let moved = old.mapping.moved_to(region.guest_phys_addr).ok_or(Errno::EINVAL)?;
        let new = Slot { mapping: moved.with_flags(flags), ..old };
        Ok(if new.mapping.range() != old.mapping.range() {
            Change::Move { old, new }
        } else if new != old {
            Change::FlagsOnly { old, new }
        } else {
            Change::Nothing
        })
    }

    /// `kvm_check_memslot_overlap()`: against every other slot of the address
    /// space, KVM's own among them.
    fn check_overlap(
        &self,
        region: &kvm_userspace_memory_region2,
        change: Change,
    ) -> Result<(), Errno> {
        let (Change::Create(new) | Change::Move { new, .. }) = change else { return Ok(()) };
        let as_id = region.slot >> 16;
        let range = new.mapping.range();
        let internal = as_id == 0 && self.config.internal.iter().any(|own| own.overlaps(range));
        let id = region.slot as u16;
        if internal || self.space(as_id).is_some_and(|space| space.overlaps(id, range)) {
            return Err(Errno::EEXIST);
        }
        Ok(())
    }

    /// `kvm_arch_prepare_memory_region()` (`arch/x86/kvm/x86.c`,
    /// `arch/arm64/kvm/mmu.c`), of a slot that is made, or is to be, at `range`:
    /// `kvm_mmu_max_gfn()`, `kvm_phys_size()`. KVM comes here from
    /// `kvm_set_memslot()`, so a move has cost a grace period already.
    pub(super) fn check_arch(&self, range: Range) -> Result<(), Errno> {
        if self.config.gpa_end().is_some_and(|end| range.end() > end) {
            return Err(self.config.beyond);
        }
        Ok(())
    }
}

/// The slot that a region asks for.
fn slot_of(region: &kvm_userspace_memory_region2) -> Option<Slot> {
    let flags = MemFlags::from_bits_truncate(region.flags);
    let range = Range::new(region.guest_phys_addr, region.memory_size)?;
    let memfd = flags.contains(MemFlags::GUEST_MEMFD).then(|| GuestMemfd {
        fd: i32::from_ne_bytes(region.guest_memfd.to_ne_bytes()),
        offset: region.guest_memfd_offset,
    });
    let mapping = Mapping::from_parts(range, region.userspace_addr, Kind::Ram, flags, memfd)?;
    Some(Slot { id: region.slot as u16, mapping })
}

const fn refuse_if(broken: bool) -> Result<(), Errno> {
    if broken { Err(Errno::EINVAL) } else { Ok(()) }
}
