//! The steps, one after the other.

use std::borrow::Cow;

use super::coalesce::{self, Rule};
use super::request::{PlanError, Request};
use super::{cut, fit, holes, keep, moves, order, outcome::Plan};
use crate::range::Range;

/// Plans how to get from `request.live` to `request.wanted`, in O(n log n)
/// (O(n) where both are sorted and nothing is moved).
///
/// The number of changes is at most one for each live slot that can't stay
/// plus one for each extent, or part of one, that no kept slot covers.
///
/// ```
/// use kvm_memslots_shim::memory::{Extent, How, Op, Request, plan};
/// use kvm_memslots_shim::{Kind, Limits, Mapping, Range, Slot, SlotIds};
///
/// let ram = |gpa, size| Mapping::new(Range::new(gpa, size)?, 0x7f00_0000_0000 + gpa, Kind::Ram);
/// let [low, high, both] = [(0, 0x1000), (0x1000, 0x1000), (0, 0x2000)]
///     .map(|(gpa, size)| ram(gpa, size).expect("neither empty nor at the end"));
/// // Two regions, contiguous in guest and host: one slot.
/// let wanted = [low, high].map(|mapping| Extent::of(mapping, false, true));
/// let (limits, live) = (&Limits::x86(), &[]);
/// let ids = &SlotIds::new(limits.slots);
/// let plan = plan(&Request { live, wanted: &wanted, ids, limits, make_room: None })?;
/// assert_eq!(plan.ops, [Op::Create(Slot { id: 0, mapping: both })]);
/// assert_eq!(plan.cost(How::PerRegion, &mut false).grace_periods, 1);
/// # Ok::<(), kvm_memslots_shim::memory::PlanError>(())
/// ```
///
/// # Errors
/// [`PlanError`].
pub fn plan(request: &Request<'_>) -> Result<Plan, PlanError> {
    let Request { ids, limits, .. } = request;
    let live = sorted(request.live, |slot| slot.mapping.range())?;
    let wanted = sorted(request.wanted, |extent| extent.mapping.range())?;
    let wanted = cut::to_size(wanted, limits, ids.capacity())?;

    let mut rule = Rule { limit: limits.slot_bytes(), all: false };
    let mut fates = keep::fates(&live, &wanted);
    let mut pieces = coalesce::pieces(&live, &fates, &wanted, rule);
    // What live slots outside of the request leave for it.
    let others = u64::from(ids.in_use()).saturating_sub(live.len() as u64);
    let room = u64::from(ids.capacity()).saturating_sub(others) as usize;
    if fit::slots(&fates, &pieces) > room {
        if let Some(spare) = request.make_room {
            rule.all = true;
            pieces = coalesce::pieces(&live, &fates, &wanted, rule);
            if fit::slots(&fates, &pieces) > room {
                let goal = room.saturating_sub(spare as usize);
                while let excess @ 1.. = fit::slots(&fates, &pieces).saturating_sub(goal) {
                    if !fit::give_up_kept(&live, &mut fates, &pieces, &wanted, rule, excess) {
                        break;
                    }
                    pieces = coalesce::pieces(&live, &fates, &wanted, rule);
                }
            }
        }
        let slots = fit::slots(&fates, &pieces);
        if slots > room {
            let needed = others + slots as u64;
            return Err(PlanError::TooManySlots { needed, available: ids.capacity() });
        }
    }
    let kept = fates.iter().filter(|fate| !matches!(fate, keep::Fate::Goes)).count();
    let merged = pieces.iter().map(|piece| piece.parts - 1).sum();

    let moves = moves::find(&live, &fates, &pieces);
    let ops = order::ops(&live, &fates, &pieces, moves, ids);
    let (holes, carries) = holes::find(&ops);
    Ok(Plan { ops, holes, carries, kept, merged })
}

/// `items` in ascending order of GPA, copied only if they are not.
fn sorted<T: Copy>(items: &[T], range: impl Fn(&T) -> Range) -> Result<Cow<'_, [T]>, PlanError> {
    let items = if items.is_sorted_by_key(|item| range(item).gpa()) {
        Cow::Borrowed(items)
    } else {
        let mut items = items.to_vec();
        items.sort_unstable_by_key(|item| range(item).gpa());
        Cow::Owned(items)
    };
    let neighbours = items.windows(2).map(|pair| (range(&pair[0]), range(&pair[1])));
    for (first, second) in neighbours {
        if first.end() > second.gpa() {
            return Err(PlanError::Overlap { first, second });
        }
    }
    Ok(items)
}
