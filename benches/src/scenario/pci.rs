//! `pci` and `pci-doorbells`: a guest enables one device after the other, then uses
//! them.

use super::{Change, Draft, Scenario, Step, Workload, device};

const KIB: u64 = 1 << 10;

/// Where the guest puts the BARs: by size, device after device, without gaps,
/// as PCI cores do.
const WINDOW: u64 = 0xc000_0000;
const PREFETCHABLE: u64 = 1 << 37;

/// The 32-bit BAR and the 64-bit one of each device.
const SMALL: u64 = 16 * KIB;
const LARGE: u64 = 64 * KIB;

/// What the guest's windows and its config space have room for.
const MOST: usize = 4096;

/// Each device has two BARs. Host memory is one range for the first BARs of
/// all devices and one for the second ones, in the devices' order: where the
/// guest has them in that order, too, they can share slots.
pub(super) fn pci(workload: Workload, devices: usize) -> Scenario {
    let devices = devices.min(MOST);
    let count = devices as u64;
    let mut draft = Draft::default();
    let small = draft.host(count * SMALL);
    draft.host_gap();
    let large = draft.host(count * LARGE);
    let enable = |draft: &mut Draft, n: u64| {
        let bars = [
            device(WINDOW + n * SMALL, SMALL, small + n * SMALL),
            device(PREFETCHABLE + n * LARGE, LARGE, large + n * LARGE),
        ];
        let changes = bars.map(|bar| Change::Map(draft.name(), bar)).to_vec();
        Step { what: "a device is enabled", changes }
    };
    let mut steps: Vec<_> = (0..count).map(|n| enable(&mut draft, n)).collect();
    steps.push(Step { what: "the guest uses its devices", changes: Vec::new() });
    draft.finish(workload, devices, Vec::new(), steps)
}
