//! `hotplug`: a device comes and goes.

use super::{Change, Draft, Place, Scenario, Step, Workload, device, rom};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// BARs of the device.
pub const BARS: usize = 6;

/// The memory window of the bridge that the device is behind, and the one for
/// 64-bit prefetchable BARs.
const WINDOW: u64 = 0xe000_0000;
const PREFETCHABLE: u64 = 1 << 37;

/// The device's BARs, as the guest's PCI core lays them out: by falling size,
/// which leaves no gaps.
///
/// - Four BARs of registers and queues in the bridge's window, backed by one
///   memfd of the device in the same order: contiguous in guest and host.
/// - A 64-bit prefetchable BAR, device memory in a window and a mapping of its
///   own.
/// - The expansion ROM: it follows the four in the guest, but it is read-only
///   and comes from a file.
fn bars(draft: &mut Draft) -> [Place; BARS] {
    let big = device(PREFETCHABLE, 256 * MIB, draft.host(256 * MIB));
    draft.host_gap();
    let mut gpa = WINDOW;
    let mut next = |draft: &mut Draft, size| {
        gpa += size;
        device(gpa - size, size, draft.host(size))
    };
    let registers = [4 * MIB, MIB, 64 * KIB, 16 * KIB].map(|size| next(draft, size));
    draft.host_gap();
    let expansion = rom(gpa, 64 * KIB, draft.host(64 * KIB));
    let [a, b, c, d] = registers;
    // They come and go together.
    [big, a, b, c, d, expansion].map(Place::stays)
}

pub(super) fn hotplug(regions: usize) -> Scenario {
    let cycles = (regions / BARS).max(1);
    let mut draft = Draft::default();
    let bars = bars(&mut draft);
    let mut steps = Vec::with_capacity(2 * cycles);
    for _ in 0..cycles {
        let named = bars.map(|bar| (draft.name(), bar));
        let plug = named.iter().map(|(name, bar)| Change::Map(*name, *bar)).collect();
        let unplug = named.iter().map(|(name, _)| Change::Unmap(*name)).collect();
        steps.push(Step { what: "plug", changes: plug });
        steps.push(Step { what: "unplug", changes: unplug });
    }
    draft.finish(Workload::Hotplug, cycles * BARS, Vec::new(), steps)
}
