//! `resize`: the memory of a virtio-mem device.

use super::{Change, Draft, Name, Scenario, Step, Workload, ram};

/// What virtio-mem plugs and unplugs at least: a large page.
const BLOCK: u64 = 2 << 20;

const GPA: u64 = 1 << 36;

/// Requests of the guest in one cycle, a step each.
pub const REQUESTS_PER_CYCLE: usize = 8;

/// Blocks that are there between two cycles.
const BASE: u64 = 4;

/// The most blocks in a cycle.
const MOST: u64 = 16;

/// One region that a guest grows and shrinks a request at a time. A block in
/// its midst goes and comes back; in the end everything is as it was.
pub(super) fn resize(requests: usize) -> Scenario {
    let cycles = (requests / REQUESTS_PER_CYCLE).max(1);
    let mut draft = Draft::default();
    let host = draft.host(MOST * BLOCK);
    let memory = draft.name();
    let map = Change::Map(memory, ram(GPA, BASE * BLOCK, host));
    let setup = vec![Step { what: "plug 4 blocks", changes: vec![map] }];
    let steps = (0..cycles).flat_map(|_| cycle(&mut draft, memory, host)).collect();
    draft.finish(Workload::Resize, cycles * REQUESTS_PER_CYCLE, setup, steps)
}

fn cycle(draft: &mut Draft, memory: Name, host: u64) -> [Step; REQUESTS_PER_CYCLE] {
    let to =
        |what, blocks: u64| Step { what, changes: vec![Change::Resize(memory, blocks * BLOCK)] };
    let (hole, above, again) = (draft.name(), draft.name(), draft.name());
    [
        to("grow to 8 blocks", 8),
        to("grow to 12 blocks", 12),
        to("grow to 16 blocks", 16),
        to("shrink to 12 blocks", 12),
        to("shrink to 10 blocks", 10),
        Step {
            what: "punch block 5",
            changes: vec![
                Change::Split { name: memory, offset: 5 * BLOCK, rest: hole },
                Change::Split { name: hole, offset: BLOCK, rest: above },
                Change::Unmap(hole),
            ],
        },
        Step {
            what: "plug block 5 again",
            changes: vec![Change::Map(again, ram(GPA + 5 * BLOCK, BLOCK, host + 5 * BLOCK))],
        },
        Step {
            what: "shrink to 4 blocks",
            changes: vec![
                Change::Unmap(above),
                Change::Unmap(again),
                Change::Resize(memory, BASE * BLOCK),
            ],
        },
    ]
}
