//! Ranges, mappings and slot ids: nothing wraps, whatever is asked, and the
//! fast way is the plain one.
#![allow(clippy::unwrap_used)]

mod bits;
mod pages;

use std::collections::BTreeSet;

use kvm_memslots_shim::memory::Op;
use kvm_memslots_shim::{GuestMemfd, Kind, Mapping, MemFlags, Range, Slot, SlotIds};
use proptest::prelude::*;

/// Any number, and more of those at which something ends.
fn number() -> impl Strategy<Value = u64> {
    let edges = vec![0, 1, 0x1000, 1 << 63, u64::MAX - 0xfff, u64::MAX - 1, u64::MAX];
    prop_oneof![any::<u64>(), prop::sample::select(edges), 0..64_u64]
}

fn range() -> impl Strategy<Value = Range> {
    (number(), number()).prop_filter_map("no range", |(a, b)| {
        Range::between(a.min(b), a.max(b)).or_else(|| Range::new(a, 1))
    })
}

fn mapping() -> impl Strategy<Value = Mapping> {
    let memfd = prop::option::of((any::<i32>(), number()));
    (range(), number(), memfd, any::<u16>()).prop_map(|(range, hva, memfd, flags)| {
        let last = u64::MAX - range.size();
        let mapping = Mapping::new(range, hva.min(last), Kind::Device).unwrap();
        let mapping = mapping.with_flags(MemFlags::from_bits_truncate(flags.into()));
        let memfd = memfd.map(|(fd, offset)| GuestMemfd { fd, offset: offset.min(last) });
        memfd.map_or(mapping, |memfd| mapping.with_guest_memfd(memfd).unwrap())
    })
}

/// No address in it wraps.
fn assert_sound(mapping: &Mapping) {
    let range = mapping.range();
    assert!(range.size() > 0);
    assert_eq!(range.gpa().checked_add(range.size()), Some(range.end()));
    assert!(mapping.hva().checked_add(range.size()).is_some());
    let memfd = mapping.guest_memfd();
    assert!(memfd.is_none_or(|memfd| memfd.offset.checked_add(range.size()).is_some()));
    assert_eq!(mapping.flags().contains(MemFlags::GUEST_MEMFD), memfd.is_some());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn a_range_is_neither_empty_nor_wraps(gpa in number(), size in number(), at in number()) {
        let end = u128::from(gpa) + u128::from(size);
        let valid = size > 0 && end <= u64::MAX.into();
        let range = Range::new(gpa, size);
        prop_assert_eq!(range.is_some(), valid);
        prop_assert_eq!(Range::between(gpa, size).is_some(), gpa < size);
        if let Some(range) = range {
            prop_assert_eq!((range.gpa(), range.size()), (gpa, size));
            prop_assert_eq!(u128::from(range.end()), end);
            prop_assert_eq!(Range::between(gpa, range.end()), Some(range));
            prop_assert_eq!(range.contains(at), at >= gpa && u128::from(at) < end);
            prop_assert_eq!(format!("{range:?}"), format!("[{gpa:#x}, {:#x})", range.end()));
        }
    }

    #[test]
    fn what_ranges_share_is_in_both(a in range(), b in range(), at in number()) {
        let shared = a.intersection(b);
        prop_assert_eq!(shared, b.intersection(a));
        prop_assert_eq!(shared.is_some(), a.overlaps(b));
        for at in [at, a.gpa(), b.gpa(), a.end(), b.end() - 1] {
            let both = a.contains(at) && b.contains(at);
            prop_assert_eq!(shared.is_some_and(|shared| shared.contains(at)), both);
        }
    }

    #[test]
    fn a_mapping_is_made_only_where_nothing_wraps(range in range(), at in number(), fd in any::<i32>()) {
        let fits = at.checked_add(range.size()).is_some();
        prop_assert_eq!(Mapping::new(range, at, Kind::Ram).is_some(), fits);
        let mapping = Mapping::new(range, 0, Kind::Ram).unwrap();
        let memfd = GuestMemfd { fd, offset: at };
        let private = mapping.with_guest_memfd(memfd);
        prop_assert_eq!(private.map(|private| private.guest_memfd()), fits.then_some(Some(memfd)));
        let moved = mapping.moved_to(at);
        prop_assert_eq!(moved.map(|moved| moved.range()), Range::new(at, range.size()));
    }

    #[test]
    fn what_comes_of_a_mapping_is_sound(
        mapping in mapping(),
        other in mapping(),
        clip in range(),
        gpa in number(),
        flags in any::<u32>(),
    ) {
        let slot = Slot { id: 0, mapping };
        let flags = MemFlags::from_bits_retain(flags);
        let ops = [
            Op::Create(slot),
            Op::Delete(slot),
            Op::Move { from: slot, gpa },
            Op::SetFlags { from: slot, flags },
        ];
        let of_ops = ops.iter().flat_map(|op| [op.before(), op.after(), op.inverse().after()]);
        let of_ops: Vec<_> = of_ops.flatten().map(|slot| slot.mapping).collect();
        let made = [mapping.clipped_to(clip), mapping.moved_to(gpa), mapping.joined(&other)];
        for made in made.into_iter().flatten().chain(of_ops) {
            assert_sound(&made);
        }
        // Any bits beside the one that has to agree with the file.
        let flagged = mapping.with_flags(flags);
        prop_assert_eq!(flagged.guest_memfd(), mapping.guest_memfd());
        let others = MemFlags::all() - MemFlags::GUEST_MEMFD;
        prop_assert_eq!(flagged.flags() & others, flags & others);
        for op in &ops {
            let kvm = op.to_kvm(3);
            prop_assert_eq!(kvm.slot, 3 << 16);
            let private = kvm.flags & MemFlags::GUEST_MEMFD.bits() != 0;
            prop_assert_eq!(private, kvm.memory_size > 0 && mapping.guest_memfd().is_some());
        }
    }

    #[test]
    fn parts_that_follow_each_other_are_joined_to_what_they_were(
        mapping in mapping(),
        at in any::<prop::sample::Index>(),
    ) {
        let range = mapping.range();
        prop_assume!(range.size() > 1);
        let middle = range.gpa() + 1 + at.index((range.size() - 1).min(1 << 40) as usize) as u64;
        let part = |gpa, end| mapping.clipped_to(Range::between(gpa, end).unwrap()).unwrap();
        let (low, high) = (part(range.gpa(), middle), part(middle, range.end()));
        prop_assert!(low.continues_as(&high) && low.agrees_with(&high));
        prop_assert_eq!(low.joined(&high), Some(mapping));
        prop_assert_eq!(high.joined(&low), None);
        prop_assert_eq!(low.joined(&high.with_kind(Kind::Rom)), None);
        let flags = high.flags() ^ MemFlags::READONLY;
        prop_assert_eq!(low.joined(&high.with_flags(flags)), None);
        prop_assert!(low.same_memory_as(&high.with_flags(flags)));
    }

}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn ids_are_those_of_a_set(
        limit in prop_oneof![0..200_u32, 4090..4100_u32, 65_530..70_000_u32],
        ops in prop::collection::vec((0..4_u8, any::<prop::sample::Index>()), 0..300),
    ) {
        let mut ids = SlotIds::new(limit);
        let mut free: BTreeSet<u16> = (0..limit.min(1 << 16)).map(|id| id as u16).collect();
        let (mut used, mut reserved) = (BTreeSet::new(), BTreeSet::new());
        for (what, at) in ops {
            // At and beyond the limit, too.
            let id = at.index(limit as usize + 2).min(usize::from(u16::MAX)) as u16;
            match what {
                0 => {
                    let lowest = free.pop_first();
                    prop_assert_eq!(ids.lowest_free(), lowest);
                    used.extend(lowest);
                    prop_assert!(lowest.is_none_or(|lowest| ids.take(lowest)));
                }
                1 => {
                    let was_free = free.remove(&id);
                    prop_assert_eq!(ids.take(id), was_free);
                    used.extend(was_free.then_some(id));
                }
                2 => {
                    let was_used = used.remove(&id);
                    prop_assert_eq!(ids.give_back(id), was_used);
                    free.extend(was_used.then_some(id));
                }
                _ => {
                    let run = id..=id.saturating_add(70);
                    let in_use = used.range(run.clone()).next().copied();
                    prop_assert_eq!(ids.try_reserve(run.clone()), in_use.map_or(Ok(()), Err));
                    if in_use.is_none() {
                        let known = run.filter(|id| u32::from(*id) < limit);
                        known.for_each(|id| {
                            free.remove(&id);
                            reserved.insert(id);
                        });
                    }
                }
            }
            let counts = (ids.in_use(), ids.available(), ids.capacity());
            let (used, free) = (used.len() as u32, free.len() as u32);
            prop_assert_eq!(counts, (used, free, used + free));
        }
        prop_assert!(ids.free().eq(free.iter().copied()));
        prop_assert_eq!(ids.lowest_free(), free.first().copied());
        for id in used.iter().chain(&reserved).chain(&free) {
            prop_assert_eq!(ids.contains(*id), used.contains(id));
        }
    }
}

#[test]
fn a_mapping_is_compact() {
    assert_eq!(size_of::<Mapping>(), 40);
    assert_eq!(size_of::<Slot>(), 48);
}
