//! What the guest writes, and the dirty logs that have it.

use std::collections::{BTreeMap, BTreeSet};

use kvm_memslots::{DirtyBitmap, MemFlags, RegionId, Report, Vm};

use super::expected::Expected;
use super::world::{World, unless_refused};
use crate::common::PAGE;
use crate::common::numbers::Numbers;

/// Some pages of each region, with a slot or served.
pub(super) fn writes(n: &mut Numbers, world: &World, now: &mut Expected) {
    for (id, region) in &mut now.regions {
        for _ in 0..n.below(3) {
            let page = n.below(region.pages);
            let gpa = (region.page + page) * PAGE;
            if region.flags.intersects(MemFlags::READONLY | MemFlags::TRAP) {
                continue;
            }
            if world.vm.region(*id).unwrap().deferred {
                let deferred = world.vm.deferred(region.space).unwrap();
                let served = deferred.write(gpa + 8, &[1; 8], |_, _| panic!("{id} is no device"));
                assert_eq!(served.bytes, 8);
                if served.due && n.chance(2) {
                    let _ = world.may_fail(n, |vm| unless_refused(vm.promote_due()));
                    world.repair();
                }
            } else {
                assert!(!world.memory.guest_write(region.space, gpa, 8).is_empty());
            }
            if region.is_logged() {
                region.owed.insert(page);
            }
        }
    }
}

fn assert_has(owed: &BTreeSet<u64>, dirty: Option<&DirtyBitmap>, id: RegionId) {
    let lost = |page: &&u64| !dirty.is_some_and(|dirty| dirty.is_dirty(**page));
    let lost: Vec<_> = owed.iter().filter(lost).collect();
    assert!(lost.is_empty(), "pages {lost:?} of {id} are lost");
}

/// Reads logs of some regions, or of all. What can't be read is not lost.
pub(super) fn reads(n: &mut Numbers, world: &World, now: &mut Expected) {
    for (id, region) in now.regions.iter_mut().filter(|(_, region)| region.is_logged()) {
        if !n.chance(4) {
            continue;
        }
        let Some(dirty) = world.may_fail(n, |vm| vm.dirty_log(*id)) else { continue };
        assert_has(&region.owed, Some(&dirty), *id);
        if !world.manual {
            region.owed.clear();
        } else if n.chance(2) {
            let half = region.pages.div_ceil(2);
            let mut part = DirtyBitmap::new(half);
            dirty.iter().filter(|page| *page < half).for_each(|page| part.set(page, 1));
            let _ = world.may_fail(n, |vm| vm.clear_dirty_log(*id, 0, &part));
            region.owed = region.owed.split_off(&half);
        }
    }
    if n.chance(8) {
        let Some(logs) = world.may_fail(n, Vm::dirty_logs) else { return };
        let logs = BTreeMap::from_iter(logs);
        for (id, region) in &mut now.regions {
            assert_has(&region.owed, logs.get(id), *id);
            if !world.manual {
                region.owed.clear();
            }
        }
    }
}

/// The last pages of all that went are in the report.
pub(super) fn check_last(report: &Report, gone: &[(RegionId, BTreeSet<u64>)]) {
    for (id, owed) in gone {
        let last = report.last_dirty.iter().find(|(region, _)| region.id == *id);
        assert_has(owed, last.map(|(_, dirty)| dirty), *id);
    }
}
