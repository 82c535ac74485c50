//! `boot`: the memory of a PC.

use super::{Change, Draft, Place, Scenario, Step, Workload, device, ram, rom};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const DEVICES: u64 = 32;
/// A 64-bit BAR, a 32-bit BAR, an expansion ROM.
const BARS: u64 = 3;
const ROMS: u64 = 3;
/// Conventional memory below the VGA window.
const LOW_RAM: u64 = 640 * KIB;
const RAM_FROM: u64 = MIB;
/// The PCI hole: 32-bit BARs, the APICs, the firmware.
const HOLE: u64 = 3 * GIB;
const HOLE_END: u64 = 4 * GIB;
/// All of the VM's RAM from 1 MiB on, in as many chunks as asked for.
const RAM: u64 = 16 * GIB;
const CHUNK_GRANULE: u64 = 64 * KIB;
/// Where 64-bit BARs go: behind any RAM.
const HIGH_BARS: u64 = 256 * GIB;

/// RAM in chunks (memory blocks, DIMMs, NUMA nodes) that follow each other in
/// host memory, and the ROMs, at once, before the guest starts; then the
/// devices one by one, as the firmware enables memory decoding in each.
pub(super) fn boot(regions: usize) -> Scenario {
    let fixed = 1 + ROMS + DEVICES * BARS;
    let chunks = (regions as u64).saturating_sub(fixed).clamp(2, RAM / CHUNK_GRANULE);
    let mut draft = Draft::default();
    let mut steps = vec![machine(&mut draft, chunks)];
    steps.extend((0..DEVICES).map(|slot| plug(&mut draft, slot)));
    let regions = draft.names as usize;
    draft.finish(Workload::Boot, regions, Vec::new(), steps)
}

fn machine(draft: &mut Draft, chunks: u64) -> Step {
    let mut places = vec![ram(0, LOW_RAM, draft.host(LOW_RAM))];
    // Legacy addresses have host memory too, only that the guest can't see it
    // as RAM.
    draft.host(RAM_FROM - LOW_RAM);
    places.extend(ram_chunks(draft, chunks));
    draft.host_gap();
    let firmware = draft.host(4 * MIB);
    places.push(rom(HOLE_END - 4 * MIB, 4 * MIB, firmware));
    // The last 128 KiB once more, where real mode finds them.
    places.push(rom(MIB - 128 * KIB, 128 * KIB, firmware + 4 * MIB - 128 * KIB));
    draft.host_gap();
    places.push(rom(0xc_0000, 64 * KIB, draft.host(64 * KIB)));
    let places = places.into_iter().map(Place::stays);
    let changes = places.map(|place| Change::Map(draft.name(), place)).collect();
    Step { what: "RAM and ROMs", changes }
}

/// `chunks` chunks, at least one on each side of the PCI hole; none straddles
/// it.
fn ram_chunks(draft: &mut Draft, chunks: u64) -> Vec<Place> {
    let below = HOLE - RAM_FROM;
    let chunks_below = (chunks * below / RAM).clamp(1, chunks - 1);
    let mut places = Vec::new();
    for (count, from, size) in
        [(chunks_below, RAM_FROM, below), (chunks - chunks_below, HOLE_END, RAM - below)]
    {
        let chunk = (size / count / CHUNK_GRANULE).max(1) * CHUNK_GRANULE;
        places.extend((0..count).map(|n| ram(from + n * chunk, chunk, draft.host(chunk))));
    }
    places
}

fn plug(draft: &mut Draft, slot: u64) -> Step {
    let mut place = |kind: fn(u64, u64, u64) -> Place, gpa, size| {
        // Each BAR is an `mmap` of its own, as with VFIO.
        draft.host_gap();
        let place = kind(gpa, size, draft.host(size));
        Change::Map(draft.name(), place)
    };
    let changes = vec![
        place(device, HIGH_BARS + slot * 16 * MIB, 16 * MIB),
        place(device, HOLE + slot * MIB, MIB),
        place(rom, HOLE + DEVICES * MIB + slot * 64 * KIB, 64 * KIB),
    ];
    Step { what: "a device's BARs", changes }
}
