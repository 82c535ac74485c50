//! The doorbells of BARs: a device for those of each BAR.

use std::collections::{BTreeMap, BTreeSet};

use super::id::FunctionId;
use super::registers::Registers;
use crate::device::{Device, DeviceId, Doorbell, Ioeventfd};
use crate::{Changes, Vm};

/// A BAR: of which function, and which; the expansion ROM is the highest.
pub(super) type BarKey = (FunctionId, usize);

/// The doorbells of a BAR that are assigned.
#[derive(Debug)]
pub(super) struct Bells {
    device: DeviceId,
    pub(super) places: Vec<(usize, Ioeventfd)>,
}

/// Takes the doorbells of those `bars` away that are to be others.
pub(super) fn silence(
    bars: &BTreeSet<BarKey>,
    all: &BTreeMap<BarKey, Bells>,
    vm: &Vm,
    wanted: &BTreeMap<BarKey, Vec<(usize, Ioeventfd)>>,
    stays: impl Fn(&BarKey, &[(usize, Ioeventfd)]) -> bool,
    changes: &mut Changes,
) -> BTreeSet<BarKey> {
    let mut silent = BTreeSet::new();
    for (bar, bells) in bars.iter().filter_map(|bar| all.get_key_value(bar)) {
        // Somebody else may have detached them.
        let there = vm.device_regions(bells.device).is_ok();
        let right = match wanted.get(bar) {
            Some(places) => *places == bells.places,
            None => stays(bar, &bells.places),
        };
        if there && right {
            continue;
        }
        if there {
            changes.detach(bells.device);
        }
        silent.insert(*bar);
    }
    silent
}

/// Brings the doorbells of BARs that have none, or not these.
pub(super) fn ring(
    all: &BTreeMap<BarKey, Bells>,
    functions: &BTreeMap<FunctionId, Registers>,
    defers: bool,
    wanted: BTreeMap<BarKey, Vec<(usize, Ioeventfd)>>,
    silent: &BTreeSet<BarKey>,
    changes: &mut Changes,
) -> Vec<(BarKey, Bells)> {
    let mut ringing = Vec::new();
    for (bar, places) in wanted {
        if all.contains_key(&bar) && !silent.contains(&bar) {
            continue;
        }
        let device = Device::new(format!("the doorbells of {}", bar.0));
        let device = if defers { device.defer_ioeventfds() } else { device };
        let events = functions.get(&bar.0).map(|function| function.bells(bar.1));
        let mut events = events.into_iter().flatten();
        let device = places.iter().fold(device, |device, (n, at)| {
            let bell = Doorbell::at(at.bus, at.addr).len(at.len);
            let bell = at.datamatch.map_or(bell, |value| bell.value(value));
            match events.find(|(there, _)| there == n) {
                Some((_, event)) => device.ioeventfd(bell, event.clone()),
                None => device,
            }
        });
        let device = changes.attach(device);
        ringing.push((bar, Bells { device, places }));
    }
    ringing
}
