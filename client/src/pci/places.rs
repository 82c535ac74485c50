//! Where the parts of BARs are to be.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use kvm_memslots_shim::Range;

use super::bells::BarKey;
use super::claims::bell_range;
use super::id::FunctionId;
use super::registers::Registers;
use super::spec::Window;
use crate::Span;
use crate::device::Ioeventfd;

/// What a BAR is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Item {
    Window(usize),
    Doorbell(usize),
}

/// A window or a doorbell: of which function, which of its BARs, which of those.
pub(super) type Key = (FunctionId, usize, Item);

/// The first and the last key of a BAR.
pub(super) const fn keys_of((function, bar): BarKey) -> RangeInclusive<Key> {
    (function, bar, Item::Window(0))..=(function, bar, Item::Doorbell(usize::MAX))
}

/// A window or a doorbell that is somewhere.
pub(super) enum Place<'s> {
    Window(&'s Window),
    Doorbell(usize, Ioeventfd),
}

/// The windows and doorbells of those `bars` that are somewhere, in the order in which
/// they count, which is that of their keys.
pub(super) fn places<'s>(
    functions: &'s BTreeMap<FunctionId, Registers>,
    bars: &BTreeSet<BarKey>,
) -> impl Iterator<Item = (Key, Range, Place<'s>)> {
    let placed = bars.iter().filter_map(|(id, bar)| {
        let (base, spec) = functions.get(id)?.placed(*bar)?;
        Some((*id, *bar, base, spec))
    });
    placed.flat_map(|(id, bar, base, spec)| {
        let windows = spec.windows.iter().enumerate().filter_map(move |(n, window)| {
            let Span { gpa, size } = window.span();
            // A BAR that would wrap is nowhere.
            let range = Range::new(base.checked_add(gpa)?, size)?;
            Some(((id, bar, Item::Window(n)), range, Place::Window(window)))
        });
        let bells = spec.bells.iter().enumerate().filter_map(move |(n, bell)| {
            let ioeventfd = bell.at(base)?;
            let range = bell_range(ioeventfd.addr, ioeventfd.len)?;
            Some(((id, bar, Item::Doorbell(n)), range, Place::Doorbell(n, ioeventfd)))
        });
        windows.chain(bells)
    })
}
