//! Which live slots can stay.

use kvm_memslots_uapi::MemFlags;

use super::request::Extent;
use crate::mapping::{Mapping, Slot};

/// What becomes of a live slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It already is what is wanted.
    Stays,
    /// It becomes that with other flags.
    Flags(MemFlags),
    /// It has to go.
    Goes,
}

/// The fate of each slot of `live`; both slices sorted.
pub(super) fn fates(live: &[Slot], wanted: &[Extent]) -> Vec<Fate> {
    let mut from = 0;
    live.iter()
        .map(|slot| {
            let range = slot.mapping.range();
            from += wanted[from..]
                .iter()
                .take_while(|e| e.mapping.range().end() <= range.gpa())
                .count();
            let cover = wanted[from..].iter().take_while(|e| e.mapping.range().gpa() < range.end());
            fate(slot, cover)
        })
        .collect()
}

/// The fate of `slot`, over which the extents of `cover` lie.
fn fate<'a>(slot: &Slot, cover: impl Iterator<Item = &'a Extent>) -> Fate {
    let range = slot.mapping.range();
    let mut covered = range.gpa();
    let mut first: Option<&Mapping> = None;
    for Extent { mapping, alone, whole, .. } in cover {
        let fits = mapping.range().gpa() <= covered
            && same_memory(&slot.mapping, mapping)
            && first.is_none_or(|first| first.agrees_with(mapping))
            && (!(*alone || *whole) || mapping.range() == range);
        if !fits {
            return Fate::Goes;
        }
        first = first.or(Some(mapping));
        covered = mapping.range().end();
    }
    match first {
        Some(first) if covered >= range.end() => flags_fate(slot, first.flags()),
        _ => Fate::Goes,
    }
}

/// Kinds are the VMM's: to KVM, the slot is the same whatever its kind.
fn same_memory(slot: &Mapping, wanted: &Mapping) -> bool {
    slot.with_kind(wanted.kind()).same_memory_as(wanted)
}

/// KVM changes nothing but dirty logging and trapping on a live slot
/// (`kvm_set_memory_region` refuses a change of `KVM_MEM_READONLY`, and any change of a slot with a
/// `guest_memfd`).
fn flags_fate(slot: &Slot, flags: MemFlags) -> Fate {
    let changed = slot.mapping.flags() ^ flags;
    if changed.is_empty() {
        Fate::Stays
    } else if (MemFlags::LOG_DIRTY_PAGES | MemFlags::TRAP).contains(changed)
        && slot.mapping.guest_memfd().is_none()
    {
        Fate::Flags(flags)
    } else {
        Fate::Goes
    }
}
