//! Many regions of one kind: `sparse`, `singly`, `contiguous`,
//! `dirty-log`, `dirty-log-on`, `delete`.

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

/// As many steps as regions: what a VMM pays that has nothing to put together.
pub(super) fn singly(regions: usize) -> Scenario {
    let (draft, map) = mapped(regions, 2 * SIZE);
    let step = |change| Step { what: "one region", changes: vec![change] };
    let steps = map.changes.into_iter().map(step).collect();
    draft.finish(Workload::Singly, regions, Vec::new(), steps)
}

pub(super) fn contiguous(regions: usize) -> Scenario {
    let (draft, mut map) = mapped(regions, SIZE);
    for change in &mut map.changes {
        if let Change::Map(_, place) = change {
            *place = place.stays();
        }
    }
    draft.finish(Workload::Contiguous, regions, Vec::new(), vec![map])
}

/// A migration switches logging on for all memory before the first pass over
/// it, and off when it is done or has failed.
pub(super) fn dirty_log(regions: usize) -> Scenario {
    let mut scenario = dirty_log_on(regions);
    scenario.steps.push(log("logging off", regions, MemFlags::empty()));
    Scenario { workload: Workload::DirtyLog, ..scenario }
}

pub(super) fn dirty_log_on(regions: usize) -> Scenario {
    let (draft, map) = mapped(regions, 2 * SIZE);
    let on = log("logging on", regions, MemFlags::LOG_DIRTY_PAGES);
    draft.finish(Workload::DirtyLogOn, regions, vec![map], vec![on])
}

pub(super) fn delete(regions: usize) -> Scenario {
    let (draft, map) = mapped(regions, 2 * SIZE);
    let changes = (0..regions as u32).map(|n| Change::Unmap(Name(n))).collect();
    let unmap = Step { what: "all gone", changes };
    draft.finish(Workload::Delete, regions, vec![map], vec![unmap])
}

fn log(what: &'static str, regions: usize, flags: MemFlags) -> Step {
    let changes = (0..regions as u32).map(|n| Change::SetFlags(Name(n), flags)).collect();
    Step { what, changes }
}

fn mapped(regions: usize, stride: u64) -> (Draft, Step) {
    let mut draft = Draft::default();
    let region = |n: u64| -> Place { ram(n * stride, SIZE, draft.host(SIZE)) };
    let places: Vec<_> = (0..regions as u64).map(region).collect();
    let changes = places.into_iter().map(|place| Change::Map(draft.name(), place)).collect();
    (draft, Step { what: "all regions", changes })
}
