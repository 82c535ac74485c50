//! From live slots and wanted memory to an ordered plan. Pure: no I/O.
//!
//! The steps, one file each:
//!
//! 1. `keep`: a live slot that still says what is wanted stays. What costs
//!    nothing is found first: an unmap and a map that cancel are not seen at
//!    all, since only the outcome is looked at.
//! 2. `coalesce`: what no kept slot covers is cut out of the wanted extents
//!    and joined into as few new slots as KVM's rules allow. Slots that stay
//!    are not joined with new neighbours: that would be a delete and a create
//!    (three grace periods and a hole) where a create alone does.
//! 3. `fit`: only if ids run out, kept slots are given up to be joined,
//!    those first that free the most.
//! 4. `moves`: a delete and a create of the same host memory become a move.
//! 5. `order`: deletes, moves, flags, creates; ids of deleted slots first.
//! 6. `holes`: what a vCPU could notice if the changes are made one by one.

mod coalesce;
mod fit;
mod holes;
mod keep;
mod moves;
mod order;
mod plan;

pub use plan::{Carry, Cost, Op, Plan};

use std::borrow::Cow;

use thiserror::Error;

use crate::{Extent, Limits, Range, Slot, SlotIds};

/// What is, what is wanted, and what is allowed.
///
/// `live` and `wanted` may be a part of the address space, as long as no slot
/// outside of `live` overlaps an extent of `wanted`. Order does not matter; in
/// ascending order of GPA nothing needs to be sorted.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Slots that KVM has.
    pub live: &'a [Slot],
    /// What is to be mapped where those slots are, and beside them.
    pub wanted: &'a [Extent],
    /// All ids of the address space, those of `live` among them.
    pub ids: &'a SlotIds,
    /// What KVM allows.
    pub limits: &'a Limits,
}

/// Why there is no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Two extents, or two slots, overlap.
    #[error("GPA {first} and GPA {second} overlap")]
    Overlap {
        /// The one with the lower address.
        first: Range,
        /// The other.
        second: Range,
    },
    /// An extent is larger than KVM's largest slot.
    #[error("GPA {range} is {} bytes, KVM's largest slot is {limit} bytes", range.size)]
    TooLarge {
        /// The extent.
        range: Range,
        /// The limit in bytes.
        limit: u64,
    },
    /// There are not enough slot ids, also after joining all that can be.
    #[error("{needed} slots are needed, {available} are available")]
    TooManySlots {
        /// How many slots the address space would have.
        needed: u64,
        /// How many it can have: KVM's limit less the reserved ids.
        available: u32,
    },
}

/// Plans how to get from `request.live` to `request.wanted`, in O(n log n)
/// (O(n) where both are sorted and nothing is moved).
///
/// The number of changes is at most one for each live slot that can't stay
/// plus one for each extent, or part of one, that no kept slot covers.
///
/// ```
/// use kvm_memslots_shim::planner::{Op, Request, plan};
/// use kvm_memslots_shim::{Extent, Limits, Mapping, Slot, SlotIds};
///
/// let limits = Limits::x86();
/// let ids = SlotIds::new(limits.slots);
/// // Two regions, contiguous in guest and host: one slot.
/// let wanted = [0, 1].map(|n| Extent {
///     mapping: Mapping::ram(n * 0x10_0000, 0x10_0000, 0x7f00_0000_0000 + n * 0x10_0000),
///     alone: false,
/// });
/// let plan = plan(&Request { live: &[], wanted: &wanted, ids: &ids, limits: &limits })?;
/// let both = Slot { id: 0, mapping: Mapping::ram(0, 0x20_0000, 0x7f00_0000_0000) };
/// assert_eq!(plan.ops, [Op::Create(both)]);
/// assert_eq!(plan.cost_per_region().grace_periods, 1);
/// # Ok::<(), kvm_memslots_shim::PlanError>(())
/// ```
///
/// # Errors
/// [`PlanError`].
pub fn plan(request: &Request<'_>) -> Result<Plan, PlanError> {
    let live = sorted(request.live, |slot| slot.mapping.range)?;
    let wanted = sorted(request.wanted, |extent| extent.mapping.range)?;
    let limit = request.limits.slot_bytes();
    if let Some(extent) = wanted.iter().find(|extent| extent.mapping.range.size > limit) {
        return Err(PlanError::TooLarge { range: extent.mapping.range, limit });
    }

    let mut fates = keep::fates(&live, &wanted);
    let mut pieces = coalesce::pieces(&live, &fates, &wanted, limit);
    // What live slots outside of the request leave for it.
    let others = u64::from(request.ids.in_use()).saturating_sub(live.len() as u64);
    let room = u64::from(request.ids.capacity()).saturating_sub(others);
    while (fit::slots(&fates, &pieces) as u64) > room {
        let excess = fit::slots(&fates, &pieces) - room as usize;
        if !fit::give_up_kept(&live, &mut fates, &pieces, &wanted, limit, excess) {
            return Err(PlanError::TooManySlots {
                needed: others + fit::slots(&fates, &pieces) as u64,
                available: request.ids.capacity(),
            });
        }
        pieces = coalesce::pieces(&live, &fates, &wanted, limit);
    }
    let kept = fates.iter().filter(|fate| !matches!(fate, keep::Fate::Goes)).count();
    let merged = pieces.iter().map(|piece| piece.parts - 1).sum();

    let moves = moves::find(&live, &fates, &pieces);
    let ops = order::ops(&live, &fates, &pieces, moves, request.ids);
    let (holes, carries) = holes::find(&ops);
    Ok(Plan { ops, holes, carries, kept, merged })
}

/// `items` in ascending order of GPA, copied only if they are not.
fn sorted<T: Copy>(items: &[T], range: impl Fn(&T) -> Range) -> Result<Cow<'_, [T]>, PlanError> {
    let items = if items.is_sorted_by_key(|item| range(item).gpa) {
        Cow::Borrowed(items)
    } else {
        let mut items = items.to_vec();
        items.sort_unstable_by_key(|item| range(item).gpa);
        Cow::Owned(items)
    };
    let neighbours = items.windows(2).map(|pair| (range(&pair[0]), range(&pair[1])));
    for (first, second) in neighbours {
        if first.end() > second.gpa {
            return Err(PlanError::Overlap { first, second });
        }
    }
    Ok(items)
}
