//! Extents that no slot can hold.

use std::borrow::Cow;

use super::request::{Extent, PlanError};
use crate::limits::Limits;
use crate::range::Range;

/// `wanted`, with each extent that is too large for a slot cut into several.
/// There can't be more than `capacity` slots.
pub(super) fn to_size<'a>(
    wanted: Cow<'a, [Extent]>,
    limits: &Limits,
    capacity: u32,
) -> Result<Cow<'a, [Extent]>, PlanError> {
    let limit = limits.slot_bytes().max(1);
    let too_large = |extent: &Extent| extent.mapping.range().size() > limit;
    if !wanted.iter().any(too_large) {
        return Ok(wanted);
    }
    // Before there are as many extents in memory.
    let least = wanted.iter().filter(|extent| too_large(extent));
    let needed = least.map(|extent| extent.mapping.range().size().div_ceil(limit)).sum();
    if needed > u64::from(capacity) {
        return Err(PlanError::TooManySlots { needed, available: capacity });
    }
    let piece = limits.piece_bytes().max(1);
    let mut cut = Vec::with_capacity(wanted.len() + needed as usize);
    for extent in wanted.iter() {
        let range = extent.mapping.range();
        let size = if too_large(extent) { piece } else { range.size() };
        let mut from = range.gpa();
        while let Some(rest) = Range::between(from, range.end()) {
            let end = from.saturating_add(size).min(rest.end());
            let part = Range::between(from, end).and_then(|part| extent.mapping.clipped_to(part));
            cut.extend(part.map(|mapping| Extent { mapping, ..*extent }));
            from = end;
        }
    }
    Ok(Cow::Owned(cut))
}
