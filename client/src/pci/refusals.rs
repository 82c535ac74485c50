//! Parts of BARs that can't be where the guest has put them.

use std::collections::{BTreeMap, BTreeSet};

use kvm_memslots_shim::{Errno, Range, events};

use super::bells::{BarKey, Bells};
use super::claims::bell_range;
use super::error::PciError;
use super::places::{Item, Key, Place, keys_of};
use crate::RegionId;
use crate::error::{Error, ErrorKind};

/// By part: where, and why not.
#[derive(Debug, Default)]
pub(super) struct Refusals(BTreeMap<Key, (Range, PciError)>);

impl Refusals {
    pub(super) fn insert(&mut self, key: Key, range: Range, error: PciError) {
        self.0.insert(key, (range, error));
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.0.contains_key(key)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn forget(&mut self, key: &Key) {
        self.0.remove(key);
    }

    /// Those that there was no slot for may have one now, and what was in the way of
    /// others may have gone.
    pub(super) fn passing(&self) -> impl Iterator<Item = BarKey> {
        let passing = self.0.iter().filter(|(_, (_, why))| passes(why));
        passing.map(|((function, bar, _), _)| (*function, *bar))
    }

    /// Forgets of those BARs what may pass, and what is not where it was any more.
    pub(super) fn reconsider(
        &mut self,
        bars: &BTreeSet<BarKey>,
        places: &[(Key, Range, Place<'_>)],
    ) {
        let stays = |key: &Key, range| {
            let at = places.binary_search_by_key(key, |(key, ..)| *key);
            at.is_ok_and(|at| places[at].1 == range) || !bars.contains(&(key.0, key.1))
        };
        self.0.retain(|key, (range, why)| !passes(why) && stays(key, *range));
    }

    /// Of the parts of a BAR the first's.
    pub(super) fn first_of(&self, bar: BarKey) -> Option<&PciError> {
        self.0.range(keys_of(bar)).next().map(|(_, (_, error))| error)
    }
}

fn passes(why: &PciError) -> bool {
    match why {
        PciError::Vm(error) => matches!(error.kind(), ErrorKind::TooManySlots { .. }),
        PciError::Taken => true,
        _ => false,
    }
}

/// Whether one window is too many, or where nobody wants it, though the error does
/// not say which.
pub(super) fn is_about_one(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::TooManySlots { .. } | ErrorKind::Observer(_))
}

/// Which of the parts that were to come KVM refused, if that is the guest's
/// mistake.
pub(super) fn blamed(
    made: &[(Key, Range, RegionId)],
    ringing: &[(BarKey, Bells)],
    error: &Error,
) -> Option<(Key, Range)> {
    // What an address is refused with: beyond the last guest page EINVAL on
    // x86 and EFAULT on arm64, on top of something else EEXIST; a bus that is
    // full ENOSPC. That KVM is out of memory, say, is no mistake of the
    // guest's.
    let guests =
        matches!(error.errno(), Errno::EINVAL | Errno::EEXIST | Errno::EFAULT | Errno::ENOSPC);
    let bell = match error.kind() {
        ErrorKind::EventRefused { op, .. } if guests => match **op {
            events::Op::Assign(part) => Some(part),
            _ => None,
        },
        ErrorKind::EventTaken { what, .. } => Some(*what),
        _ => None,
    };
    let refused = guests && matches!(error.kind(), ErrorKind::Refused { .. });
    let region = error.region().filter(|_| refused).map(|region| region.id);
    let window = made.iter().find(|(_, _, id)| Some(*id) == region);
    let window = window.map(|(key, range, _)| (*key, *range));
    let bells = ringing.iter().flat_map(|((function, bar), bells)| {
        let of_bar = bells.places.iter();
        of_bar.map(move |(n, at)| ((*function, *bar, Item::Doorbell(*n)), at))
    });
    let mut bells = bells.filter(|(_, at)| Some((**at).into()) == bell);
    window.or_else(|| bells.next().and_then(|(key, at)| Some((key, bell_range(at.addr, at.len)?))))
}
