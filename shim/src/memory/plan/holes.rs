//! What a vCPU could notice, and which dirty bits would be lost, if the
//! changes are made one by one.

use crate::mapping::Slot;
use crate::memory::op::Op;
use crate::range::Range;

/// Dirty bits that a delete would lose: these pages stay mapped to the same
/// host pages, in slots that are logged before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carry {
    /// The slot that goes.
    pub slot: Slot,
    /// The pages that stay, in bytes.
    pub range: Range,
}

/// The holes and the carries of `ops`, as [`Plan`](super::outcome::Plan) has them.
pub(super) fn find(ops: &[Op]) -> (Vec<Range>, Vec<Carry>) {
    if !ops.iter().any(Op::invalidates) {
        return (Vec::new(), Vec::new());
    }
    let mut leaving: Vec<(Slot, bool)> = ops
        .iter()
        .filter(|op| op.invalidates())
        .filter_map(|op| Some((op.before()?, matches!(op, Op::Delete(_)))))
        .collect();
    let mut coming: Vec<Slot> = ops
        .iter()
        .filter(|op| matches!(op, Op::Create(_) | Op::Move { .. }))
        .filter_map(Op::after)
        .collect();
    let mut holes: Vec<Range> = Vec::new();
    let mut carries = Vec::new();
    if leaving.is_empty() || coming.is_empty() {
        return (holes, carries);
    }
    leaving.sort_unstable_by_key(|(slot, _)| slot.mapping.range());
    coming.sort_unstable_by_key(|slot| slot.mapping.range());

    let mut from = 0;
    for (old, deleted) in &leaving {
        let range = old.mapping.range();
        from +=
            coming[from..].iter().take_while(|s| s.mapping.range().end() <= range.gpa()).count();
        for new in coming[from..].iter().take_while(|s| s.mapping.range().gpa() < range.end()) {
            let Some(shared) = range.intersection(new.mapping.range()) else { continue };
            let last = holes.last_mut().filter(|last| last.end() == shared.gpa());
            match last.and_then(|last| Some((Range::between(last.gpa(), shared.end())?, last))) {
                Some((both, last)) => *last = both,
                None => holes.push(shared),
            }
            let logged = old.mapping.is_logged() && new.mapping.is_logged();
            if *deleted && logged && old.mapping.same_host_pages_as(&new.mapping) {
                carries.push(Carry { slot: *old, range: shared });
            }
        }
    }
    (holes, carries)
}
