//! What every plan must be, on random layouts.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use kvm_memslots_shim::planner::{Op, Plan, PlanError, Request, plan};
use kvm_memslots_shim::{
    Extent, GuestMemfd, Kind, Limits, Mapping, MemFlags, Range, Slot, SlotIds,
};
use proptest::prelude::*;

const PAGE: u64 = 4096;
const PAGES: u64 = 48;

/// What a page of the guest is: host page, flags, kind and private page.
type Page = (u64, MemFlags, Kind, Option<(i32, u64)>);

/// A description of an extent that is cheap to shrink: where it starts behind
/// the one before it, how long it is, and what it is.
#[derive(Debug, Clone)]
struct Drawn {
    gap: u64,
    pages: u64,
    /// Which of a few offsets between HVA and GPA: neighbours that draw the
    /// same one are contiguous in the host.
    arena: u64,
    kind: Kind,
    flags: MemFlags,
    memfd: bool,
    alone: bool,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let kind = prop_oneof![8 => Just(Kind::Ram), 1 => Just(Kind::Rom), 1 => Just(Kind::Device)];
    let flags = prop_oneof![
        6 => Just(MemFlags::empty()),
        2 => Just(MemFlags::LOG_DIRTY_PAGES),
        1 => Just(MemFlags::READONLY),
    ];
    (
        0..3_u64,
        1..6_u64,
        0..3_u64,
        kind,
        flags,
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(gap, pages, arena, kind, flags, memfd, alone)| Drawn {
            gap: if gap == 2 { 2 } else { 0 },
            pages,
            arena,
            kind,
            flags: if memfd { MemFlags::GUEST_MEMFD } else { flags },
            memfd,
            alone,
        })
}

fn extents(drawn: &[Drawn]) -> Vec<Extent> {
    let mut gpa = 0;
    let mut extents = Vec::new();
    for d in drawn {
        gpa += d.gap * PAGE;
        if gpa + d.pages * PAGE > PAGES * PAGE {
            break;
        }
        let mapping = Mapping {
            range: Range::new(gpa, d.pages * PAGE),
            hva: 0x7000_0000_0000 + d.arena * 0x1_0000_0000 + gpa,
            guest_memfd: d.memfd.then_some(GuestMemfd { fd: 9, offset: gpa }),
            flags: d.flags,
            kind: d.kind,
        };
        extents.push(Extent { mapping, alone: d.alone });
        gpa += d.pages * PAGE;
    }
    extents
}

/// Some of the extents, shifted as a whole, so that host memory reappears at
/// other guest addresses.
fn shifted(extents: &[Extent], by: u64) -> Vec<Extent> {
    extents
        .iter()
        .map(|e| Extent { mapping: e.mapping.moved_to(e.mapping.range.gpa + by * PAGE), ..*e })
        .collect()
}

fn pages<'a>(mappings: impl Iterator<Item = &'a Mapping>) -> BTreeMap<u64, Page> {
    let mut pages = BTreeMap::new();
    for m in mappings {
        for offset in (0..m.range.size).step_by(PAGE as usize) {
            let memfd = m.guest_memfd.map(|f| (f.fd, f.offset + offset));
            let before =
                pages.insert(m.range.gpa + offset, (m.hva + offset, m.flags, m.kind, memfd));
            assert!(before.is_none(), "page {:#x} mapped twice", m.range.gpa + offset);
        }
    }
    pages
}

/// KVM's rules, as far as order and ids go: slots by id.
#[derive(Clone, Default)]
struct Vm {
    slots: BTreeMap<u16, Slot>,
}

impl Vm {
    fn apply(&mut self, op: &Op) {
        if let Some(before) = op.before() {
            assert_eq!(self.slots.remove(&before.id), Some(before), "{op:?}");
        }
        if let Some(after) = op.after() {
            let range = after.mapping.range;
            for other in self.slots.values() {
                assert!(!other.mapping.range.overlaps(range), "{op:?} overlaps {other}");
            }
            assert!(self.slots.insert(after.id, after).is_none(), "{op:?}: id taken");
        }
    }

    fn live(&self) -> Vec<Slot> {
        self.slots.values().copied().collect()
    }

    fn mapped(&self) -> BTreeMap<u64, Page> {
        pages(self.slots.values().map(|slot| &slot.mapping))
    }

    fn ids(&self, limits: &Limits) -> SlotIds {
        let mut ids = SlotIds::new(limits.slots);
        for id in self.slots.keys() {
            assert!(ids.take(*id));
        }
        ids
    }

    fn plan(&self, wanted: &[Extent], limits: &Limits) -> Result<Plan, PlanError> {
        let ids = self.ids(limits);
        plan(&Request { live: &self.live(), wanted, ids: &ids, limits })
    }

    /// Carries `plan` out one by one; returns the pages that were mapped
    /// before and after but not throughout.
    fn carry_out(&mut self, plan: &Plan) -> Vec<u64> {
        let before = self.mapped();
        let mut missing = Vec::new();
        for op in &plan.ops {
            // A move takes the slot away before it puts it back.
            if let Op::Move { from, .. } = op {
                self.slots.remove(&from.id);
                missing.extend(before.keys().filter(|gpa| !self.mapped().contains_key(gpa)));
                self.slots.insert(from.id, *from);
            }
            self.apply(op);
            let now = self.mapped();
            missing.extend(before.keys().filter(|gpa| !now.contains_key(gpa)));
        }
        let after = self.mapped();
        missing.retain(|gpa| after.contains_key(gpa));
        missing.sort_unstable();
        missing.dedup();
        missing
    }
}

fn check(vm: &mut Vm, wanted: &[Extent], limits: &Limits) {
    let before = vm.slots.len();
    let plan = vm.plan(wanted, limits).unwrap();

    let kinds_before = vm.mapped();
    let missing = vm.carry_out(&plan);
    let holes: Vec<u64> =
        plan.holes.iter().flat_map(|hole| (hole.gpa..hole.end()).step_by(PAGE as usize)).collect();
    assert_eq!(missing, holes, "holes of {plan:?}");

    // Exactly the wanted layout; kinds aside, which a kept slot may not know.
    let strip = |pages: BTreeMap<u64, Page>| -> Vec<_> {
        pages.into_iter().map(|(gpa, (hva, flags, _, memfd))| (gpa, hva, flags, memfd)).collect()
    };
    assert_eq!(strip(vm.mapped()), strip(pages(wanted.iter().map(|e| &e.mapping))));

    for slot in vm.slots.values() {
        let over: Vec<_> =
            wanted.iter().filter(|e| e.mapping.range.overlaps(slot.mapping.range)).collect();
        assert!(over.windows(2).all(|w| w[0].mapping.kind == w[1].mapping.kind), "{slot}");
        if over.iter().any(|e| e.alone) {
            assert_eq!(over.len(), 1, "{slot} holds more than a region that stands alone");
            assert_eq!(over[0].mapping.range, slot.mapping.range);
        }
    }

    // Never longer than a call per slot that can't stay and one per extent.
    let gone = plan.ops.iter().filter(|op| op.invalidates()).count();
    assert!(gone <= before);
    let made = plan.ops.iter().filter(|op| matches!(op, Op::Create(_) | Op::Move { .. })).count();
    let split_by_kept = plan.kept;
    assert!(made <= wanted.len() + split_by_kept, "{made} of {}", wanted.len());
    if before == 0 {
        assert!(plan.ops.len() <= wanted.len());
    }

    // Every dirty bit that a delete would lose is named.
    for op in &plan.ops {
        let Op::Delete(old) = op else { continue };
        if !old.mapping.is_logged() {
            continue;
        }
        for gpa in (old.mapping.range.gpa..old.mapping.range.end()).step_by(PAGE as usize) {
            let stays = vm.mapped().get(&gpa).is_some_and(|now| {
                now.0 == kinds_before[&gpa].0 && now.1.contains(MemFlags::LOG_DIRTY_PAGES)
            });
            let carried = plan
                .carries
                .iter()
                .any(|c| c.slot == *old && c.range.overlaps(Range::new(gpa, PAGE)));
            assert_eq!(stays, carried, "page {gpa:#x} of {old}");
        }
    }

    assert_eq!(vm.plan(wanted, limits).unwrap().ops, [], "a second plan has nothing to do");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn any_sequence_ends_in_exactly_the_wanted_layout(
        layouts in prop::collection::vec((prop::collection::vec(drawn(), 0..12), 0..4_u64), 1..6),
    ) {
        let limits = Limits { guest_memfd: true, ..Limits::x86() };
        let mut vm = Vm::default();
        let mut previous = Vec::new();
        for (drawn, shift) in layouts {
            // Every other time memory that is there moves, which is what the
            // draws alone would hardly ever do.
            let wanted =
                if shift == 3 { shifted(&previous, 3) } else { extents(&drawn) };
            check(&mut vm, &wanted, &limits);
            previous = wanted;
        }
    }

    #[test]
    fn a_layout_that_fits_is_made_to_fit(
        layouts in prop::collection::vec(prop::collection::vec(drawn(), 0..12), 1..6),
    ) {
        let limits = Limits { guest_memfd: true, ..Limits::x86() };
        let mut vm = Vm::default();
        for drawn in layouts {
            let wanted = extents(&drawn);
            // The fewest slots that can hold it: what an empty VM gets.
            let fewest = Vm::default().plan(&wanted, &limits).unwrap().ops.len() as u32;
            let tight = limits.with_slots(fewest.max(vm.slots.keys().max().map_or(0, |id| u32::from(*id) + 1)));
            check(&mut vm, &wanted, &tight);
            if fewest > 0 {
                let short = limits.with_slots(fewest - 1);
                prop_assert_eq!(
                    Vm::default().plan(&wanted, &short).unwrap_err(),
                    PlanError::TooManySlots { needed: u64::from(fewest), available: fewest - 1 }
                );
            }
        }
    }

    #[test]
    fn order_of_the_input_does_not_matter(drawn in prop::collection::vec(drawn(), 0..12)) {
        let limits = Limits { guest_memfd: true, ..Limits::x86() };
        let wanted = extents(&drawn);
        let reversed: Vec<_> = wanted.iter().rev().copied().collect();
        let vm = Vm::default();
        prop_assert_eq!(vm.plan(&wanted, &limits).unwrap(), vm.plan(&reversed, &limits).unwrap());
    }
}

fn ram(gpa_page: u64, pages: u64) -> Extent {
    Extent {
        mapping: Mapping::ram(gpa_page * PAGE, pages * PAGE, 0x7000_0000_0000 + gpa_page * PAGE),
        alone: false,
    }
}

/// Carries out plans for `layouts` in turn; returns the last one.
fn last_plan(layouts: &[&[Extent]]) -> Plan {
    let mut vm = Vm::default();
    let mut last = Plan::default();
    for wanted in layouts {
        last = vm.plan(wanted, &Limits::x86()).unwrap();
        vm.carry_out(&last);
    }
    last
}

#[test]
fn growth_is_one_create_and_opens_no_hole() {
    let plan = last_plan(&[&[ram(0, 4)], &[ram(0, 8)]]);
    assert_eq!(plan.ops.len(), 1);
    assert_eq!(plan.cost_per_region().grace_periods, 1);
    assert_eq!(plan.holes, []);
}

#[test]
fn a_punched_hole_is_one_delete_and_two_creates() {
    let plan = last_plan(&[&[ram(0, 8)], &[ram(0, 2), ram(4, 4)]]);
    let cost = plan.cost_per_region();
    assert_eq!((cost.ioctls, cost.grace_periods), (3, 4));
    assert_eq!(plan.cost_batched(100).grace_periods, 2);
    assert_eq!(plan.holes, [Range::new(0, 2 * PAGE), Range::new(4 * PAGE, 4 * PAGE)]);
}

#[test]
fn a_bar_that_moves_is_one_move() {
    let bar = ram(2, 2);
    let moved = Extent { mapping: bar.mapping.moved_to(20 * PAGE), ..bar };
    let plan = last_plan(&[&[bar], &[moved]]);
    assert!(matches!(plan.ops[..], [Op::Move { .. }]), "{plan:?}");
    assert_eq!(plan.cost_per_region().grace_periods, 2);
}

#[test]
fn a_bar_that_moves_by_less_than_its_size_is_one_move_too() {
    let bar = ram(2, 4);
    let moved = Extent { mapping: bar.mapping.moved_to(3 * PAGE), ..bar };
    let plan = last_plan(&[&[bar], &[moved]]);
    assert!(matches!(plan.ops[..], [Op::Move { .. }]), "{plan:?}");
    assert_eq!(plan.holes, [Range::new(3 * PAGE, 3 * PAGE)]);
}

/// Of two runs of slots that could be joined, the one that frees all that is
/// needed goes, and the other stays.
#[test]
fn when_ids_run_out_the_longest_run_is_joined() {
    let mut vm = Vm::default();
    let mut wanted = Vec::new();
    let mut limits = Limits::x86();
    for page in [0, 1, 10, 11, 12] {
        wanted.push(ram(page, 1));
        let plan = vm.plan(&wanted, &limits).unwrap();
        vm.carry_out(&plan);
    }
    limits.slots = 5;
    wanted.extend([ram(20, 1), ram(30, 1)]);
    let plan = vm.plan(&wanted, &limits).unwrap();
    let deleted: Vec<_> =
        plan.ops.iter().filter(|op| op.invalidates()).map(|op| op.range().gpa / PAGE).collect();
    assert_eq!(deleted, [10, 11, 12]);
    assert_eq!(plan.ops.len(), 3 + 1 + 2);
}

#[test]
fn bars_that_swap_places_are_a_delete_a_move_and_a_create() {
    let (a, b) = (ram(0, 2), ram(10, 2));
    let swapped = [
        Extent { mapping: b.mapping.moved_to(0), ..b },
        Extent { mapping: a.mapping.moved_to(10 * PAGE), ..a },
    ];
    let plan = last_plan(&[&[a, b], &swapped]);
    assert!(matches!(plan.ops[..], [Op::Delete(_), Op::Move { .. }, Op::Create(_)]), "{plan:?}");
    assert_eq!(plan.holes.len(), 2);
}

#[test]
fn a_slot_is_never_larger_than_the_limit() {
    let limits = Limits { slot_pages: 4, ..Limits::x86() };
    let wanted: Vec<_> = (0..10).map(|n| ram(n, 1)).collect();
    let plan = Vm::default().plan(&wanted, &limits).unwrap();
    let sizes: Vec<_> = plan.ops.iter().map(|op| op.range().size / PAGE).collect();
    assert_eq!(sizes, [4, 4, 2]);
    let error = Vm::default().plan(&[ram(0, 5)], &limits).unwrap_err();
    assert_eq!(error, PlanError::TooLarge { range: Range::new(0, 5 * PAGE), limit: 4 * PAGE });
}

#[test]
fn reserved_ids_are_not_given_out() {
    let mut ids = SlotIds::new(8);
    ids.reserve(0..=5);
    let limits = Limits::x86();
    let wanted = [ram(0, 1), ram(2, 1)];
    let request = Request { live: &[], wanted: &wanted, ids: &ids, limits: &limits };
    let given: Vec<_> = plan(&request).unwrap().ops.iter().map(Op::slot_id).collect();
    assert_eq!(given, [6, 7]);
    let wanted = [ram(0, 1), ram(2, 1), ram(4, 1)];
    assert_eq!(
        plan(&Request { wanted: &wanted, ..request }).unwrap_err(),
        PlanError::TooManySlots { needed: 3, available: 2 }
    );
}

#[test]
fn extents_that_overlap_are_refused() {
    let error = Vm::default().plan(&[ram(4, 2), ram(0, 5)], &Limits::x86()).unwrap_err();
    assert_eq!(
        error,
        PlanError::Overlap {
            first: Range::new(0, 5 * PAGE),
            second: Range::new(4 * PAGE, 2 * PAGE)
        }
    );
}
