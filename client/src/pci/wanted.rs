//! What is to be where, as the registers say.

use std::collections::BTreeMap;

use kvm_memslots_shim::Range;

use super::bells::BarKey;
use super::claims::Claims;
use super::error::PciError;
use super::places::{Key, Place};
use super::refusals::Refusals;
use super::shelf::Shelf;
use super::spec::Window;
use crate::device::Ioeventfd;
use crate::window::WindowPart;
use crate::{RegionId, Vm};

/// What is to be.
#[derive(Default)]
pub(super) struct Wanted<'s> {
    pub(super) claims: Claims<BarKey>,
    /// By key.
    pub(super) windows: Vec<(Key, Range, &'s Window)>,
    pub(super) parts: BTreeMap<Key, WindowPart>,
    pub(super) bells: BTreeMap<BarKey, Vec<(usize, Ioeventfd)>>,
    /// What can't be.
    pub(super) refused: Vec<(Key, Range, PciError)>,
    /// What something else is in the way of.
    pub(super) taken: Vec<(Key, Range)>,
}

impl<'s> Wanted<'s> {
    /// What is to be mapped at these `places`, as they alone say, and what KVM refused
    /// there before. `ours` are the regions of their BARs.
    pub(super) fn of(
        places: &[(Key, Range, Place<'s>)],
        ours: &[(Key, RegionId)],
        refusals: &Refusals,
        shelf: &Shelf,
        vm: &Vm,
    ) -> Self {
        let mut ours: Vec<RegionId> = ours.iter().map(|(_, id)| *id).collect();
        ours.sort_unstable();
        let ours = |id| ours.binary_search(&id).is_ok();
        let mut wanted = Self::default();
        for (key, range, place) in places {
            let (key, range) = (*key, *range);
            if refusals.has(&key) {
                continue;
            }
            match *place {
                Place::Window(spec) => {
                    if let Some(at) = shelf.find(vm, spec.as_id, range) {
                        if wanted.claims.claim(range, None) {
                            match shelf.part(key, spec, at) {
                                Ok(part) => _ = wanted.parts.insert(key, part),
                                Err(why) => wanted.refused.push((key, range, why)),
                            }
                        } else {
                            wanted.taken.push((key, range));
                        }
                    } else if shelf.has_all {
                        wanted.refused.push((key, range, PciError::NoSlot));
                    } else if !vm.is_taken(spec.as_id, range, ours)
                        && wanted.claims.claim(range, None)
                    {
                        wanted.windows.push((key, range, spec));
                    } else {
                        wanted.taken.push((key, range));
                    }
                }
                Place::Doorbell(..) if shelf.find(vm, 0, range).is_some() => {
                    wanted.refused.push((key, range, PciError::InMemory));
                }
                Place::Doorbell(n, ioeventfd) => {
                    let bar = (key.0, key.1);
                    if !vm.is_taken(0, range, ours) && wanted.claims.claim(range, Some(bar)) {
                        wanted.bells.entry(bar).or_default().push((n, ioeventfd));
                    } else {
                        wanted.taken.push((key, range));
                    }
                }
            }
        }
        wanted
    }
}
