//! What holds for the model whatever it is asked.

#![allow(clippy::unwrap_used)]

use kvm_memslots_shim::memory::Op as Change;
use kvm_memslots_shim::memory::model::{DirtyTracking, GuestAccess, Model, ModelConfig};
use kvm_memslots_shim::uapi::{
    MemFlags, MemoryRegions, MemoryRegionsFlags, kvm_userspace_memory_region2 as Region,
};
use kvm_memslots_shim::{Errno, Limits, Range, Slot};
use proptest::collection::vec;
use proptest::prelude::*;

const PAGE: u64 = 4096;
/// Guest pages of the test's small world.
const PAGES: u64 = 64;
const IDS: u16 = 8;
const MEMFD: u32 = 5;
const MEMFD_PAGES: u64 = 16;

/// `bits` of guest physical address.
fn model(dirty: DirtyTracking, bits: u32) -> Model {
    let limits = Limits::x86().with_slots(u32::from(IDS)).with_batch(64).with_guest_memfd();
    let config = ModelConfig::new(limits).guest_physical_bits(bits).dirty_tracking(dirty);
    let model = Model::with_config(config);
    model.add_guest_memfd(5, MEMFD_PAGES * PAGE);
    model
}

/// Mostly regions that make sense one by one, so that about half are accepted;
/// a few that never can be.
fn region() -> impl Strategy<Value = Region> {
    let flags = prop_oneof![
        6 => Just(MemFlags::empty()),
        6 => Just(MemFlags::LOG_DIRTY_PAGES),
        1 => Just(MemFlags::READONLY),
        2 => Just(MemFlags::GUEST_MEMFD),
    ];
    let pages = prop_oneof![3 => Just(0_u64), 8 => Just(4), 4 => 1_u64..12];
    let damage = prop_oneof![20 => Just(0_u64), 1 => Just(1), 1 => Just(PAGE / 2)];
    // Where pages keep their host address, whichever slot they are in.
    let offset = prop_oneof![4 => Just(1000_u64), 1 => Just(2000)];
    let id = prop_oneof![30 => 0..IDS, 1 => Just(IDS)];
    (id, 0..PAGES + 2, pages, flags, offset, damage).prop_map(
        |(id, gfn, pages, flags, offset, damage)| Region {
            slot: u32::from(id),
            flags: flags.bits(),
            guest_phys_addr: gfn * PAGE + damage,
            memory_size: pages * PAGE,
            userspace_addr: (gfn + offset) * PAGE,
            guest_memfd: MEMFD,
            guest_memfd_offset: gfn / 4 * PAGE,
            ..Default::default()
        },
    )
}

/// A region as it comes, or one that asks a live slot for what it is with one
/// thing different.
#[derive(Debug, Clone)]
enum Op {
    Set(Region),
    Relog(u16),
    MoveTo(u16, u64),
    Again(u16),
    /// Two slots for one, with a hole of so many pages between them.
    Split(u16, u16, u64),
    /// One slot for two.
    Merge(u16, u16),
    /// The same guest pages, other host pages.
    Rebase(u16),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => region().prop_map(Op::Set),
        1 => (0..IDS).prop_map(Op::Relog),
        1 => (0..IDS, 0..PAGES).prop_map(|(id, gfn)| Op::MoveTo(id, gfn)),
        1 => (0..IDS).prop_map(Op::Again),
        2 => (0..IDS, 0..IDS, 0..2_u64).prop_map(|(a, b, hole)| Op::Split(a, b, hole)),
        2 => (0..IDS, 0..IDS).prop_map(|(a, b)| Op::Merge(a, b)),
        1 => (0..IDS).prop_map(Op::Rebase),
    ]
}

/// What `op` asks for, where `model` is at.
fn resolve(model: &Model, op: &Op) -> Vec<Region> {
    let delete = |id: u16| Region { slot: u32::from(id), ..Default::default() };
    let live =
        |id: u16| model.slot(0, id).map_or(delete(id), |slot| Change::Create(slot).to_kvm(0));
    match *op {
        Op::Set(region) => vec![region],
        Op::Relog(id) => {
            let region = live(id);
            vec![Region { flags: region.flags ^ MemFlags::LOG_DIRTY_PAGES.bits(), ..region }]
        }
        Op::MoveTo(id, gfn) => vec![Region { guest_phys_addr: gfn * PAGE, ..live(id) }],
        Op::Again(id) => vec![live(id)],
        Op::Split(id, other, hole) => {
            let whole = live(id);
            let half = whole.memory_size / PAGE / 2 * PAGE;
            let second = Region { slot: u32::from(other), ..skip(whole, half + hole * PAGE) };
            vec![delete(id), Region { memory_size: half, ..whole }, second]
        }
        Op::Rebase(id) => {
            let region = live(id);
            let userspace_addr = region.userspace_addr + 3 * PAGE;
            vec![delete(id), Region { userspace_addr, ..region }]
        }
        Op::Merge(id, other) => {
            let memory_size = live(id).memory_size + live(other).memory_size;
            vec![delete(id), delete(other), Region { memory_size, ..live(id) }]
        }
    }
}

/// `region` without its first `bytes`.
fn skip(region: Region, bytes: u64) -> Region {
    Region {
        guest_phys_addr: region.guest_phys_addr + bytes,
        userspace_addr: region.userspace_addr + bytes,
        memory_size: region.memory_size.saturating_sub(bytes),
        guest_memfd_offset: region.guest_memfd_offset + bytes,
        ..region
    }
}

/// The entries that `ops` come to, each where those before it that were
/// accepted have left the model, up to and with the first that is refused.
fn entries_until_refused(model: &Model, ops: &[Op]) -> (Model, Vec<Region>, Option<Errno>) {
    let model = model.fork();
    let mut entries = Vec::new();
    for op in ops {
        for region in resolve(&model, op) {
            entries.push(region);
            if let Err(errno) = model.set_user_memory_region2(&region) {
                return (model, entries, Some(errno));
            }
        }
    }
    (model, entries, None)
}

/// Single-region calls, as far as they are accepted.
fn set_up(model: &Model, ops: &[Op]) {
    for op in ops {
        for region in resolve(model, op) {
            let _ = model.set_user_memory_region2(&region);
        }
    }
}

/// Everything that can be seen of a model.
fn visible(model: &Model) -> impl PartialEq + std::fmt::Debug + use<> {
    let slots = model.slots(0);
    let dirty: Vec<_> = (0..PAGES).map(|gfn| is_dirty(model, gfn)).collect();
    (slots, dirty)
}

/// Whether a guest page is dirty; `None` where nothing is logged.
fn is_dirty(model: &Model, gfn: u64) -> Option<bool> {
    let slot = model.slots(0).into_iter().find(|slot| covers(slot.mapping.range(), gfn))?;
    let mut words = [0];
    // Reading may clear: only a copy is read.
    model.fork().get_dirty_log(0, slot.id, &mut words).ok()?;
    Some(words[0] >> (gfn - slot.mapping.range().gpa() / PAGE) & 1 == 1)
}

fn covers(range: Range, gfn: u64) -> bool {
    range.contains(gfn * PAGE)
}

/// A page table of the small world, changed as the regions say: what the
/// layout must come to, without slots and trees.
#[derive(Debug, Clone, PartialEq)]
struct Naive(Vec<Option<(u32, u64)>>);

impl Naive {
    fn apply(&mut self, region: &Region) {
        for page in &mut self.0 {
            if page.is_some_and(|(id, _)| id == region.slot) {
                *page = None;
            }
        }
        for page in 0..region.memory_size / PAGE {
            let gfn = (region.guest_phys_addr / PAGE + page) as usize;
            assert_eq!(self.0[gfn], None, "accepted an overlap at page {gfn}");
            self.0[gfn] = Some((region.slot, region.userspace_addr + page * PAGE));
        }
    }

    /// Whether pages of another slot are in the way.
    fn overlaps(&self, region: &Region) -> bool {
        let first = (region.guest_phys_addr / PAGE) as usize;
        let pages = self.0.iter().skip(first).take((region.memory_size / PAGE) as usize);
        pages.flatten().any(|(id, _)| *id != region.slot)
    }

    fn hva(&self, gfn: usize) -> Option<u64> {
        self.0[gfn].map(|(_, hva)| hva)
    }
}

fn batch(model: &Model, flags: MemoryRegionsFlags, entries: &[Region]) -> (Option<Errno>, usize) {
    let mut regions = MemoryRegions::from_entries(0, flags, entries).unwrap();
    let outcome = model.set_user_memory_regions(&mut regions);
    (outcome.err(), regions.header().failed as usize)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn the_layout_is_what_the_regions_say(ops in vec(op(), 1..80)) {
        // What lies beyond the small world is beyond KVM's too.
        let model = model(DirtyTracking::Bitmap, (PAGES * PAGE).trailing_zeros());
        let mut naive = Naive(vec![None; PAGES as usize]);
        for op in &ops {
            for region in resolve(&model, op) {
                check_step(&model, &mut naive, region)?;
            }
        }
    }

    #[test]
    fn a_batch_is_its_entries_in_order(
        setup in vec(op(), 0..20),
        written in vec(0..PAGES, 0..8),
        ops in vec(op(), 1..20),
    ) {
        let model = model(DirtyTracking::Bitmap, 52);
        set_up(&model, &setup);
        for gfn in written {
            model.guest_write(0, gfn * PAGE, 1);
        }
        let before = visible(&model);
        let slots_before = model.slots(0);
        let (singles, entries, refused) = entries_until_refused(&model, &ops);

        let verdict = (refused, entries.len() - usize::from(refused.is_some()));
        let dry_run = batch(&model, MemoryRegionsFlags::DRY_RUN, &entries);
        prop_assert_eq!(dry_run, verdict);
        prop_assert_eq!(&before, &visible(&model));

        let cost = model.counts().grace_periods;
        prop_assert_eq!(batch(&model, MemoryRegionsFlags::empty(), &entries), verdict);
        let cost = model.counts().grace_periods - cost;
        if refused.is_some() {
            prop_assert_eq!(&before, &visible(&model));
            prop_assert_eq!(cost, 0);
        } else {
            prop_assert_eq!(model.slots(0), singles.slots(0));
            prop_assert_eq!(cost, expected_cost(&slots_before, &model));
        }
        // The bindings of the guest_memfd are those of the live slots.
        for slot in model.slots(0) {
            let delete = Region { slot: u32::from(slot.id), ..Default::default() };
            prop_assert_eq!(model.set_user_memory_region2(&delete), Ok(()));
        }
        let whole = Region {
            flags: MemFlags::GUEST_MEMFD.bits(),
            memory_size: MEMFD_PAGES * PAGE,
            guest_memfd: MEMFD,
            ..Default::default()
        };
        prop_assert_eq!(model.set_user_memory_region2(&whole), Ok(()));
    }

    #[test]
    fn a_batch_loses_no_dirty_page_and_invents_none(
        setup in vec(op(), 1..30),
        written in vec(0..PAGES, 1..24),
        ops in vec(op(), 1..16),
        manual in any::<bool>(),
    ) {
        let manual_protect = DirtyTracking::ManualProtect { initially_set: false };
        let model = model(if manual { manual_protect } else { DirtyTracking::Bitmap }, 52);
        set_up(&model, &setup);
        for gfn in written {
            model.guest_write(0, gfn * PAGE, 1);
        }
        let (_, entries, refused) = entries_until_refused(&model, &ops);
        let entries = &entries[..entries.len() - usize::from(refused.is_some())];
        let before = model.fork();
        if !entries.is_empty() {
            prop_assert_eq!(
                batch(&model, MemoryRegionsFlags::empty(), entries),
                (None, entries.len())
            );
        }
        let moves = entries.iter().any(|entry| moved(&before, entry));
        for gfn in 0..PAGES {
            let same = before.guest_at(0, gfn * PAGE) == model.guest_at(0, gfn * PAGE);
            let was = same && is_dirty(&before, gfn) == Some(true);
            let Some(is) = is_dirty(&model, gfn) else { continue };
            prop_assert!(is || !was, "page {} was lost by {:?}", gfn, entries);
            prop_assert!(was || !is || moves, "page {} was made up by {:?}", gfn, entries);
        }
    }
}

/// Grace periods of a batch that led from `before` to where `after` is.
fn expected_cost(before: &[Slot], after: &Model) -> u64 {
    let unlogged = |slot: Slot| {
        let flags = slot.mapping.flags() - MemFlags::LOG_DIRTY_PAGES;
        (slot.mapping.range(), slot.mapping.hva(), slot.mapping.guest_memfd(), flags)
    };
    let stays = |slot: &Slot| after.slot(0, slot.id).map(unlogged) == Some(unlogged(*slot));
    if *before == after.slots(0) {
        0
    } else if before.iter().all(stays) {
        1
    } else {
        2
    }
}

fn check_step(model: &Model, naive: &mut Naive, region: Region) -> Result<(), TestCaseError> {
    let before = visible(model);
    match model.set_user_memory_region2(&region) {
        Ok(()) => naive.apply(&region),
        Err(errno) => {
            prop_assert_eq!(before, visible(model), "{:?} was refused", region);
            let overlaps = naive.overlaps(&region);
            prop_assert!(errno != Errno::EEXIST || overlaps, "{:?}", region);
        }
    }
    for gfn in 0..PAGES {
        let found = match model.guest_at(0, gfn * PAGE) {
            GuestAccess::Ram { hva } => Some(hva),
            _ => None,
        };
        prop_assert_eq!(found, naive.hva(gfn as usize), "page {} after {:?}", gfn, region);
    }
    let mut end = 0;
    for slot in model.slots(0) {
        prop_assert!(slot.mapping.range().gpa() >= end, "{slot} overlaps the one before it");
        end = slot.mapping.range().end();
        prop_assert_eq!(model.slot(0, slot.id), Some(slot));
    }
    prop_assert!(end <= PAGES * PAGE);
    Ok(())
}

/// Whether `entry` may move a slot with its dirty pages, which then are where
/// the guest never wrote.
fn moved(before: &Model, entry: &Region) -> bool {
    before.slot(0, entry.slot as u16).is_some_and(|slot| {
        entry.memory_size != 0 && entry.guest_phys_addr != slot.mapping.range().gpa()
    })
}

/// As many slots as KVM has, and a million changes, in an affordable time.
#[test]
fn many_slots_and_changes() {
    let model = Model::new(Limits::x86());
    let slots = model_slots(&model);
    assert_eq!(model.slot_count(0), slots as usize);
    let changes = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
    let mut id = 1_u64;
    for _ in 0..changes / 2 {
        // A walk that visits the ids without order.
        id = id * 48_271 % 2_147_483_647;
        let slot = (id % slots) as u32;
        let delete = Region { slot, ..Default::default() };
        assert_eq!(model.set_user_memory_region2(&delete), Ok(()));
        assert_eq!(model.set_user_memory_region2(&spread(u64::from(slot))), Ok(()));
    }
    assert_eq!(model.counts().grace_periods, slots + changes / 2 * 3);
}

fn model_slots(model: &Model) -> u64 {
    let slots = u64::from(Limits::x86().slots);
    for slot in 0..slots {
        assert_eq!(model.set_user_memory_region2(&spread(slot)), Ok(()));
    }
    slots
}

fn spread(slot: u64) -> Region {
    Region {
        slot: slot as u32,
        guest_phys_addr: slot * 2 * PAGE,
        memory_size: PAGE,
        userspace_addr: 0x10_0000 + slot * PAGE,
        ..Default::default()
    }
}
