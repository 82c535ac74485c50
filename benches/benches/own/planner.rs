//! The planner. Every time shown is that of one region: the whole plan's,
//! divided by the number of regions, so that what grows as n log n shows.
#![allow(missing_docs)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use kvm_memslots_shim::memory::{Extent, Request, plan};
use kvm_memslots_shim::{Kind, Limits, Mapping, MemFlags, Range, Slot, SlotIds};

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

/// Times plans of `live` to `wanted`, which take `ops` calls.
fn per_region(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    (live, ids): (&[Slot], &SlotIds),
    wanted: &[Extent],
    ops: usize,
) {
    let limits = Limits::x86();
    let request = Request { live, wanted, ids, limits: &limits, make_room: None };
    let checked = plan(&request).expect("a plan");
    assert_eq!(checked.ops.len(), ops, "{name}");
    let regions = wanted.len().max(live.len());
    group.bench_function(format!("{name}/{regions}"), |bencher| {
        bencher.iter_custom(|iterations| {
            let mut whole = Duration::ZERO;
            for _ in 0..iterations {
                let started = Instant::now();
                let plan = plan(black_box(&request));
                whole += started.elapsed();
                drop(black_box(plan));
            }
            Duration::from_secs_f64(whole.as_secs_f64() / regions as f64)
        });
    });
}

fn planner(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("planner, time a region");
    group.sample_size(20);
    let none = SlotIds::new(Limits::x86().slots);
    for count in SIZES {
        let wanted = sparse(count);
        per_region(&mut group, "map sparse", (&[], &none), &wanted, count as usize);
    }
    // What a VMM that adds its regions in no order gives.
    for count in SIZES {
        let mut wanted = sparse(count);
        wanted
            .sort_by_key(|extent| extent.mapping.range().gpa().wrapping_mul(0x9e37_79b9_7f4a_7c15));
        per_region(&mut group, "map sparse, shuffled", (&[], &none), &wanted, count as usize);
    }
    for count in SIZES {
        let wanted = sparse(count);
        let (live, ids) = live(&wanted);
        per_region(&mut group, "unchanged", (&live, &ids), &wanted, 0);
        per_region(&mut group, "log dirty", (&live, &ids), &logged(&wanted), count as usize);
        per_region(&mut group, "unmap", (&live, &ids), &[], count as usize);
    }
    for count in [1_000, 32_764, 1_000_000] {
        let wanted = contiguous(count);
        per_region(&mut group, "map contiguous", (&[], &none), &wanted, 1);
    }
    group.finish();
}

criterion_group!(benches, planner);
criterion_main!(benches);
