//! Parts of BARs that can't be where the guest has put them.

use std::collections::HashMap;

use kvm_memslots_shim::{Errno, Range, events};

use super::bells::{BarKey, Bells, bell_range};
use super::error::PciError;
use super::places::{Item, Key};
use crate::RegionId;
use crate::error::{Error, ErrorKind};

/// By part: where, and why not.
#[derive(Debug, Default)]
pub(super) struct Refusals(HashMap<Key, (Range, PciError)>);

impl Refusals {
    pub(super) fn insert(&mut self, key: Key, range: Range, error: PciError) {
        self.0.insert(key, (range, error));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
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
    pub(super) fn forget_passing(&mut self) {
        let passes = |why: &PciError| match why {
            PciError::Vm(error) => matches!(error.kind(), ErrorKind::TooManySlots { .. }),
            PciError::Taken => true,
            _ => false,
        };
        self.0.retain(|_, (_, why)| !passes(why));
    }

    /// A part that is somewhere else by now may be there.
    pub(super) fn keep_where(&mut self, places: &HashMap<Key, Range>) {
        self.0.retain(|key, (range, _)| places.get(key) == Some(range));
    }

    /// Of the parts of a BAR the first's.
    pub(super) fn first_of(&self, bar: BarKey) -> Option<&PciError> {
        let mine = self.0.iter().filter(|((function, b, _), _)| (*function, *b) == bar);
        mine.min_by_key(|(key, _)| **key).map(|(_, (_, error))| error)
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
    window.or_else(|| bells.next().and_then(|(key, at)| Some((key, bell_range(at)?))))
}
