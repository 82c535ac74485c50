//! The planner. Every time shown is that of one region: the whole plan's,
//! divided by the number of regions, so that what grows as n log n shows.

use std::hint::black_box;
use std::time::{Duration, Instant};

use kvm_memslots_shim::memory::{Extent, Request, plan};
use kvm_memslots_shim::{Kind, Limits, Mapping, MemFlags, Range, Slot, SlotIds};

use crate::{Timed, compare};

const SIZE: u64 = 64 << 10;
const HVA: u64 = 0x7000_0000_0000;

/// The slot ids of KVM on x86, and two sizes before that.
const SIZES: [u64; 3] = [1_000, 8_000, 32_764];

fn regions(count: u64, stride: u64) -> Vec<Extent> {
    let region = |n| {
        let range = Range::new(n * stride, SIZE)?;
        let mapping = Mapping::new(range, HVA + n * SIZE, Kind::Ram)?;
        Some(Extent::of(mapping, false, true))
    };
    (0..count).filter_map(region).collect()
}

fn sparse(count: u64) -> Vec<Extent> {
    regions(count, 2 * SIZE)
}

fn contiguous(count: u64) -> Vec<Extent> {
    regions(count, SIZE)
}

fn live(wanted: &[Extent]) -> (Vec<Slot>, SlotIds) {
    let mut ids = SlotIds::new(Limits::x86().slots);
    let slots: Vec<_> =
        wanted.iter().zip(0..).map(|(extent, id)| Slot { id, mapping: extent.mapping }).collect();
    assert!(slots.iter().all(|slot| ids.take(slot.id)));
    (slots, ids)
}

fn logged(wanted: &[Extent]) -> Vec<Extent> {
    let flags = MemFlags::LOG_DIRTY_PAGES;
    let with = |extent: &Extent| Extent { mapping: extent.mapping.with_flags(flags), ..*extent };
    wanted.iter().map(with).collect()
}

/// Plans of `live` to `wanted`, which take `ops` calls.
fn per_region<'a>(
    limits: &'a Limits,
    (live, ids): (&'a [Slot], &'a SlotIds),
    wanted: &'a [Extent],
    ops: usize,
) -> Timed<'a> {
    let request = Request { live, wanted, ids, limits, make_room: None };
    let checked = plan(&request).expect("a plan");
    assert_eq!(checked.ops.len(), ops);
    let regions = wanted.len().max(live.len());
    let timed = move |times| {
        let mut whole = Duration::ZERO;
        for _ in 0..times {
            let started = Instant::now();
            let plan = plan(black_box(&request));
            whole += started.elapsed();
            drop(black_box(plan));
        }
        whole / regions as u32
    };
    Timed(format!("{regions} regions"), Box::new(timed))
}

/// What there is, and what may be wanted of it.
struct Case {
    live: (Vec<Slot>, SlotIds),
    wanted: Vec<Extent>,
    /// What a VMM that adds its regions in no order gives.
    shuffled: Vec<Extent>,
    logged: Vec<Extent>,
}

impl Case {
    fn new(count: u64) -> Self {
        let wanted = sparse(count);
        let mut shuffled = wanted.clone();
        shuffled
            .sort_by_key(|extent| extent.mapping.range().gpa().wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { live: live(&wanted), shuffled, logged: logged(&wanted), wanted }
    }

    fn live(&self) -> (&[Slot], &SlotIds) {
        (&self.live.0, &self.live.1)
    }
}

pub(crate) fn all() {
    let (limits, ids) = (Limits::x86(), SlotIds::new(Limits::x86().slots));
    let none: (&[Slot], _) = (&[], &ids);
    let (cases, next) = (SIZES.map(Case::new), [1_000, 32_764, 1_000_000].map(contiguous));
    let say = |what, ways| compare(&format!("planner, time a region: {what}"), ways);
    let all = |of: fn(&Case) -> &Vec<Extent>| {
        let way = |case| per_region(&limits, none, of(case), case.wanted.len());
        cases.iter().map(way).collect()
    };
    say("map sparse", all(|case| &case.wanted));
    say("map sparse, shuffled", all(|case| &case.shuffled));
    let from = |to: fn(&Case) -> &[Extent], unchanged| {
        let ops = |case: &Case| if unchanged { 0 } else { case.wanted.len() };
        let timed = cases.iter().map(|case| per_region(&limits, case.live(), to(case), ops(case)));
        timed.collect()
    };
    say("unchanged", from(|case| &case.wanted, true));
    say("log dirty", from(|case| &case.logged, false));
    say("unmap", from(|_| &[], false));
    say("map contiguous", next.iter().map(|next| per_region(&limits, none, next, 1)).collect());
}
