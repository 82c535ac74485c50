//! Many regions of one kind: `sparse`, `contiguous`, `dirty-log`.

use kvm_memslots::MemFlags;

use super::{Change, Draft, Name, Place, Scenario, Step, Workload, ram};

/// Bytes a region.
const SIZE: u64 = 64 << 10;

/// As much guest address space between the regions as they take: none shares a
/// slot with another.
pub(super) fn sparse(regions: usize) -> Scenario {
    let (draft, map) = mapped(regions, 2 * SIZE);
    draft.finish(Workload::Sparse, regions, Vec::new(), vec![map])
}

pub(super) fn contiguous(regions: usize) -> Scenario {
    let (draft, map) = mapped(regions, SIZE);
    draft.finish(Workload::Contiguous, regions, Vec::new(), vec![map])
}

/// A migration switches logging on for all memory before the first pass over
/// it, and off when it is done or has failed.
pub(super) fn dirty_log(regions: usize) -> Scenario {
    let (draft, map) = mapped(regions, 2 * SIZE);
    let all = |what, flags| Step {
        what,
        changes: (0..regions as u32).map(|n| Change::SetFlags(Name(n), flags)).collect(),
    };
    let steps =
        vec![all("logging on", MemFlags::LOG_DIRTY_PAGES), all("logging off", MemFlags::empty())];
    draft.finish(Workload::DirtyLog, regions, vec![map], steps)
}

fn mapped(regions: usize, stride: u64) -> (Draft, Step) {
    let mut draft = Draft::default();
    let region = |n: u64| -> Place { ram(n * stride, SIZE, draft.host(SIZE)) };
    let places: Vec<_> = (0..regions as u64).map(region).collect();
    let changes = places.into_iter().map(|place| Change::Map(draft.name(), place)).collect();
    (draft, Step { what: "all regions", changes })
}
