//! Layouts that are drawn, and a VM that checks what every plan must be.

use std::collections::BTreeMap;

use kvm_memslots_shim::memory::{Extent, Op, Plan, PlanError, Request, plan};
use kvm_memslots_shim::{GuestMemfd, Kind, Limits, Mapping, MemFlags, Range, Slot, SlotIds};
use proptest::prelude::*;

pub(crate) const PAGE: u64 = 4096;
pub(crate) const PAGES: u64 = 48;

/// What a page of the guest is: host page, flags, kind and private page.
pub(crate) type Page = (u64, MemFlags, Kind, Option<(i32, u64)>);

/// A description of an extent that is cheap to shrink: where it starts behind
/// the one before it, how long it is, and what it is.
#[derive(Debug, Clone)]
// One for each thing that an extent can ask for.
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct Drawn {
    gap: u64,
    pages: u64,
    /// Which of a few offsets between HVA and GPA: neighbours that draw the
    /// same one are contiguous in the host.
    arena: u64,
    kind: Kind,
    flags: MemFlags,
    pub(crate) memfd: bool,
    alone: bool,
    joins: bool,
    whole: bool,
}

/// Extents that join, mostly.
pub(crate) fn drawn() -> impl Strategy<Value = Drawn> {
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
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(gap, pages, arena, kind, flags, memfd, alone, joins, whole)| Drawn {
            gap: if gap == 2 { 2 } else { 0 },
            pages,
            arena,
            kind,
            flags: if memfd { MemFlags::empty() } else { flags },
            memfd,
            alone,
            joins,
            whole,
        })
}

pub(crate) fn extents(drawn: &[Drawn]) -> Vec<Extent> {
    let mut gpa = 0;
    let mut extents = Vec::new();
    for d in drawn {
        gpa += d.gap * PAGE;
        if gpa + d.pages * PAGE > PAGES * PAGE {
            break;
        }
        let mapping =
            mapping(gpa, d.pages * PAGE, 0x7000_0000_0000 + d.arena * 0x1_0000_0000 + gpa);
        let mapping = mapping.with_flags(d.flags).with_kind(d.kind);
        let memfd = GuestMemfd { fd: 9, offset: gpa };
        let mapping = if d.memfd { mapping.with_guest_memfd(memfd).unwrap() } else { mapping };
        extents.push(Extent { whole: d.whole, ..Extent::of(mapping, d.alone, d.joins) });
        gpa += d.pages * PAGE;
    }
    extents
}

/// An extent at another address.
pub(crate) fn moved(extent: &Extent, gpa: u64) -> Extent {
    Extent { mapping: extent.mapping.moved_to(gpa).unwrap(), ..*extent }
}

/// Some of the extents, shifted as a whole, so that host memory reappears at
/// other guest addresses.
pub(crate) fn shifted(extents: &[Extent], by: u64) -> Vec<Extent> {
    extents.iter().map(|e| moved(e, e.mapping.range().gpa() + by * PAGE)).collect()
}

fn pages<'a>(mappings: impl Iterator<Item = &'a Mapping>) -> BTreeMap<u64, Page> {
    let mut pages = BTreeMap::new();
    for m in mappings {
        for offset in (0..m.range().size()).step_by(PAGE as usize) {
            let memfd = m.guest_memfd().map(|f| (f.fd, f.offset + offset));
            let before = pages
                .insert(m.range().gpa() + offset, (m.hva() + offset, m.flags(), m.kind(), memfd));
            assert!(before.is_none(), "page {:#x} mapped twice", m.range().gpa() + offset);
        }
    }
    pages
}

/// KVM's rules, as far as order and ids go: slots by id.
#[derive(Clone, Default)]
pub(crate) struct Vm {
    pub(crate) slots: BTreeMap<u16, Slot>,
    /// What is asked where ids run out.
    pub(crate) make_room: Option<u32>,
}

impl Vm {
    pub(crate) fn apply(&mut self, op: &Op) {
        if let Some(before) = op.before() {
            assert_eq!(self.slots.remove(&before.id), Some(before), "{op:?}");
        }
        if let Some(after) = op.after() {
            let range = after.mapping.range();
            for other in self.slots.values() {
                assert!(!other.mapping.range().overlaps(range), "{op:?} overlaps {other}");
            }
            assert!(self.slots.insert(after.id, after).is_none(), "{op:?}: id taken");
        }
    }

    pub(crate) fn live(&self) -> Vec<Slot> {
        self.slots.values().copied().collect()
    }

    pub(crate) fn mapped(&self) -> BTreeMap<u64, Page> {
        pages(self.slots.values().map(|slot| &slot.mapping))
    }

    fn ids(&self, limits: &Limits) -> SlotIds {
        let mut ids = SlotIds::new(limits.slots);
        for id in self.slots.keys() {
            assert!(ids.take(*id));
        }
        ids
    }

    pub(crate) fn plan(&self, wanted: &[Extent], limits: &Limits) -> Result<Plan, PlanError> {
        let ids = self.ids(limits);
        plan(&Request { live: &self.live(), wanted, ids: &ids, limits, make_room: self.make_room })
    }

    /// Carries `plan` out one by one; returns the pages that were mapped
    /// before and after but not throughout.
    pub(crate) fn carry_out(&mut self, plan: &Plan) -> Vec<u64> {
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

/// Every dirty bit that a delete would lose is named.
pub(crate) fn assert_carried(
    plan: &Plan,
    before: &BTreeMap<u64, Page>,
    after: &BTreeMap<u64, Page>,
) {
    for op in &plan.ops {
        let Op::Delete(old) = op else { continue };
        if !old.mapping.is_logged() {
            continue;
        }
        for gpa in (old.mapping.range().gpa()..old.mapping.range().end()).step_by(PAGE as usize) {
            let stays = after.get(&gpa).is_some_and(|now| {
                now.0 == before[&gpa].0 && now.1.contains(MemFlags::LOG_DIRTY_PAGES)
            });
            let carried =
                plan.carries.iter().any(|c| c.slot == *old && c.range.overlaps(range(gpa, PAGE)));
            assert_eq!(stays, carried, "page {gpa:#x} of {old}");
        }
    }
}

pub(crate) fn check(vm: &mut Vm, wanted: &[Extent], limits: &Limits) {
    let before = vm.slots.len();
    let plan = vm.plan(wanted, limits).unwrap();

    let kinds_before = vm.mapped();
    let missing = vm.carry_out(&plan);
    let holes: Vec<u64> = plan
        .holes
        .iter()
        .flat_map(|hole| (hole.gpa()..hole.end()).step_by(PAGE as usize))
        .collect();
    assert_eq!(missing, holes, "holes of {plan:?}");

    // Exactly the wanted layout; kinds aside, which a kept slot may not know.
    let strip = |pages: BTreeMap<u64, Page>| -> Vec<_> {
        pages.into_iter().map(|(gpa, (hva, flags, _, memfd))| (gpa, hva, flags, memfd)).collect()
    };
    assert_eq!(strip(vm.mapped()), strip(pages(wanted.iter().map(|e| &e.mapping))));

    for slot in vm.slots.values() {
        let over: Vec<_> =
            wanted.iter().filter(|e| e.mapping.range().overlaps(slot.mapping.range())).collect();
        assert!(over.windows(2).all(|w| w[0].mapping.kind() == w[1].mapping.kind()), "{slot}");
        if over.iter().any(|e| e.alone || e.whole && !e.joins && vm.make_room.is_none()) {
            assert_eq!(over.len(), 1, "{slot} holds more than a region that stands alone");
            assert_eq!(over[0].mapping.range(), slot.mapping.range());
        }
    }

    for made in plan.ops.iter().filter_map(|op| match op {
        Op::Create(slot) => Some(slot),
        _ => None,
    }) {
        let range = made.mapping.range();
        let over: Vec<_> = wanted.iter().filter(|e| e.mapping.range().overlaps(range)).collect();
        let shared = over.len() > 1;
        assert!(!shared || made.mapping.guest_memfd().is_none(), "{made} joins private memory");
        let willing = vm.make_room.is_some() || over.iter().all(|e| e.joins);
        assert!(!shared || willing, "{made} joins what would rather not");
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

    assert_carried(&plan, &kinds_before, &vm.mapped());
    // What is there need not have a slot of its own any more: it may have been
    // joined.
    let there: Vec<_> = wanted.iter().map(|e| Extent { whole: false, ..*e }).collect();
    assert_eq!(vm.plan(&there, limits).unwrap().ops, [], "a second plan has nothing to do");
}

pub(crate) fn range(gpa: u64, size: u64) -> Range {
    Range::new(gpa, size).unwrap()
}

pub(crate) fn mapping(gpa: u64, size: u64, hva: u64) -> Mapping {
    Mapping::new(range(gpa, size), hva, Kind::Ram).unwrap()
}

/// RAM that joins what it can.
pub(crate) fn ram(gpa_page: u64, pages: u64) -> Extent {
    let gpa = gpa_page * PAGE;
    Extent::of(mapping(gpa, pages * PAGE, 0x7000_0000_0000 + gpa), false, true)
}
