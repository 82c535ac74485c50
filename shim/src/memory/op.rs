//! One memslot change.

use std::fmt;

use kvm_memslots_uapi::{MAX_ENTRIES, MemFlags, kvm_userspace_memory_region2};

use crate::mapping::{Mapping, Slot};
use crate::range::Range;

/// One memslot change: one single-region ioctl, or one entry of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Delete the slot: two grace periods (`kvm_set_memslot`: one for making it
    /// invalid, one for taking it out).
    Delete(Slot),
    /// The slot's memory appears at another guest address: two grace periods.
    Move {
        /// The slot as it is.
        from: Slot,
        /// Its new guest address. One from which the slot would wrap is for KVM
        /// to refuse; the slot after the change is then the one before it.
        gpa: u64,
    },
    /// Only the flags change: one grace period, or none where nothing but
    /// [`MemFlags::TRAP`] does.
    SetFlags {
        /// The slot as it is.
        from: Slot,
        /// Its new flags.
        flags: MemFlags,
    },
    /// A new slot: one grace period.
    Create(Slot),
}

impl Op {
    /// The slot before the change, if there is one.
    #[must_use]
    pub const fn before(&self) -> Option<Slot> {
        match *self {
            Self::Delete(slot) => Some(slot),
            Self::Move { from, .. } | Self::SetFlags { from, .. } => Some(from),
            Self::Create(_) => None,
        }
    }

    /// The slot after the change, if there is one.
    #[must_use]
    pub fn after(&self) -> Option<Slot> {
        match *self {
            Self::Delete(_) => None,
            Self::Move { from, gpa } => Some(Slot { mapping: moved(&from, gpa), ..from }),
            Self::SetFlags { from, flags } => {
                Some(Slot { mapping: from.mapping.with_flags(flags), ..from })
            }
            Self::Create(slot) => Some(slot),
        }
    }

    /// The change that takes this one back.
    #[must_use]
    pub fn inverse(&self) -> Self {
        match *self {
            Self::Delete(slot) => Self::Create(slot),
            Self::Create(slot) => Self::Delete(slot),
            Self::Move { from, gpa } => Self::Move {
                from: Slot { mapping: moved(&from, gpa), ..from },
                gpa: from.mapping.range().gpa(),
            },
            Self::SetFlags { from, flags } => Self::SetFlags {
                from: Slot { mapping: from.mapping.with_flags(flags), ..from },
                flags: from.mapping.flags(),
            },
        }
    }

    /// Whether the change takes something away first, which costs the second
    /// grace period.
    #[must_use]
    pub const fn invalidates(&self) -> bool {
        matches!(self, Self::Delete(_) | Self::Move { .. })
    }

    /// How many grace periods the single-region ioctl waits for; a VM's first flip to
    /// a slot that traps for one more ([`How::grace_periods`]).
    #[must_use]
    pub fn grace_periods(&self) -> u64 {
        match self {
            Self::Delete(_) | Self::Move { .. } => 2,
            Self::SetFlags { from, flags } => {
                let after = from.mapping.with_flags(*flags).flags();
                u64::from(from.mapping.flags() ^ after != MemFlags::TRAP)
            }
            Self::Create(_) => 1,
        }
    }

    /// Whether it has a slot trap that is there and did not.
    fn begins_to_trap(&self) -> bool {
        let Self::SetFlags { from, flags } = self else { return false };
        let [before, after] = [from.mapping, from.mapping.with_flags(*flags)].map(|it| it.flags());
        (after - before).contains(MemFlags::TRAP)
    }

    /// The id of the slot that changes.
    #[must_use]
    pub const fn slot_id(&self) -> u16 {
        match self {
            Self::Delete(slot) | Self::Create(slot) => slot.id,
            Self::Move { from, .. } | Self::SetFlags { from, .. } => from.id,
        }
    }

    /// The guest addresses the change is about: those that get mapped, or
    /// those that were, for a delete.
    #[must_use]
    pub fn range(&self) -> Range {
        match self {
            Self::Delete(slot) | Self::Create(slot) => slot.mapping.range(),
            Self::Move { from, gpa } => moved(from, *gpa).range(),
            Self::SetFlags { from, .. } => from.mapping.range(),
        }
    }

    /// The change as KVM takes it; `as_id` goes into bits 16 to 31 of `slot`,
    /// where the single-region ioctls expect it.
    #[must_use]
    pub fn to_kvm(&self, as_id: u16) -> kvm_userspace_memory_region2 {
        let slot = u32::from(as_id) << 16 | u32::from(self.slot_id());
        let (from, gpa, flags) = match self {
            Self::Delete(old) => {
                return kvm_userspace_memory_region2 {
                    slot,
                    guest_phys_addr: old.mapping.range().gpa(),
                    memory_size: 0,
                    userspace_addr: old.mapping.hva(),
                    ..Default::default()
                };
            }
            Self::Create(Slot { mapping, .. }) => (mapping, mapping.range().gpa(), mapping.flags()),
            Self::Move { from, gpa } => (&from.mapping, *gpa, from.mapping.flags()),
            Self::SetFlags { from: Slot { mapping, .. }, flags } => {
                (mapping, mapping.range().gpa(), mapping.with_flags(*flags).flags())
            }
        };
        let memfd = from.guest_memfd();
        kvm_userspace_memory_region2 {
            slot,
            flags: flags.bits(),
            guest_phys_addr: gpa,
            memory_size: from.range().size(),
            userspace_addr: from.hva(),
            guest_memfd_offset: memfd.map_or(0, |memfd| memfd.offset),
            guest_memfd: memfd.map_or(0, |memfd| u32::from_ne_bytes(memfd.fd.to_ne_bytes())),
            ..Default::default()
        }
    }
}

/// As an infinitive.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delete(slot) => write!(f, "delete {slot}"),
            Self::Create(slot) => write!(f, "create {slot}"),
            Self::Move { from, gpa } => write!(f, "move {from} to GPA {gpa:#x}"),
            Self::SetFlags { from, flags } => {
                let [before, after] = [from.mapping.flags(), *flags].map(names);
                write!(f, "set the flags of {from} from {before} to {after}")
            }
        }
    }
}

fn names(flags: MemFlags) -> String {
    let names: Vec<_> = flags.iter_names().map(|(name, _)| name).collect();
    if names.is_empty() { "none".to_owned() } else { names.join("|") }
}

fn moved(slot: &Slot, gpa: u64) -> Mapping {
    slot.mapping.moved_to(gpa).unwrap_or(slot.mapping)
}

/// How changes are handed to KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// One ioctl a change.
    PerRegion,
    /// `KVM_SET_USER_MEMORY_REGIONS`, at most this many changes a call.
    Batch {
        /// The kernel's limit.
        max_entries: u32,
    },
}

impl How {
    /// Changes a call: at least one, and no more than a batch can hold.
    #[must_use]
    pub const fn ops_per_call(self) -> usize {
        match self {
            Self::PerRegion | Self::Batch { max_entries: 0 } => 1,
            Self::Batch { max_entries } if max_entries as usize > MAX_ENTRIES => MAX_ENTRIES,
            Self::Batch { max_entries } => max_entries as usize,
        }
    }

    /// The grace periods that `ops` wait for, made in this order. `traps` is whether a
    /// flip has had a slot of the VM trap: the first one to do so waits for one
    /// (`kvm_let_guest_accesses_tell()` in the series). In a batch with something else
    /// it is no flip.
    #[must_use]
    pub fn grace_periods(self, ops: &[Op], traps: &mut bool) -> u64 {
        let mut of_call = |ops: &[Op]| {
            let most = ops.iter().map(Op::grace_periods).max().unwrap_or_default();
            let is_flip = self == Self::PerRegion || most == 0;
            let first = !*traps && is_flip && ops.iter().any(Op::begins_to_trap);
            *traps |= first;
            most + u64::from(first)
        };
        match ops {
            // What most plans are.
            [_] => of_call(ops),
            _ => ops.chunks(self.ops_per_call()).map(of_call).sum(),
        }
    }
}

/// What a plan costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// System calls that change memslots.
    pub ioctls: u64,
    /// SRCU grace periods that those calls wait for.
    pub grace_periods: u64,
}

impl Cost {
    /// What `ops` cost, in this order; `traps` as in [`How::grace_periods`].
    #[must_use]
    pub fn of(ops: &[Op], how: How, traps: &mut bool) -> Self {
        let ioctls = ops.len().div_ceil(how.ops_per_call()) as u64;
        Self { ioctls, grace_periods: how.grace_periods(ops, traps) }
    }
}
