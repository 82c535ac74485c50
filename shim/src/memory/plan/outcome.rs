//! What the planner gives out.

use super::holes::{self, Carry};
use crate::memory::op::{Cost, How, Op};
use crate::range::Range;

/// How to get from the live slots to the wanted memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The changes, in an order in which KVM accepts each one.
    pub ops: Vec<Op>,
    /// Guest pages that are mapped before and after, but not all the time
    /// between if the changes are made one by one. Sorted, disjoint.
    pub holes: Vec<Range>,
    /// Dirty bits that have to be saved if the changes are made one by one,
    /// grouped by slot.
    pub carries: Vec<Carry>,
    /// Slots that the plan leaves as they are.
    pub kept: usize,
    /// How many extents found a place in a created slot beside another one:
    /// calls that a slot for each would have cost in addition.
    pub merged: usize,
}

impl Plan {
    /// What the changes cost this way; `traps` as in [`How::grace_periods`].
    #[must_use]
    pub fn cost(&self, how: How, traps: &mut bool) -> Cost {
        Cost::of(&self.ops, how, traps)
    }

    /// The plan that takes this one back when it has been carried out.
    #[must_use]
    pub fn inverse(&self) -> Self {
        let ops: Vec<Op> = self.ops.iter().rev().map(Op::inverse).collect();
        let (holes, carries) = holes::find(&ops);
        Self { ops, holes, carries, kept: self.kept, merged: 0 }
    }
}
