//! From live slots and wanted memory to an ordered plan. Pure: no I/O.
//!
//! The steps, one file each:
//!
//! 1. `cut`: what is larger than the largest slot is several extents.
//! 2. `keep`: a live slot that still says what is wanted stays. What costs
//!    nothing is found first: an unmap and a map that cancel are not seen at
//!    all, since only the outcome is looked at.
//! 3. `coalesce`: what no kept slot covers is cut out of the wanted extents
//!    and joined into as few new slots as the extents and KVM's rules allow.
//!    Slots that stay are not joined with new neighbours: that would be a delete
//!    and a create (three grace periods and a hole) where a create alone does.
//! 4. `fit`: only if ids run out, kept slots are given up to be joined,
//!    those first that free the most.
//! 5. `moves`: a delete and a create of the same host memory become a move.
//! 6. `order`: deletes, moves, flags, creates; ids of deleted slots first.
//! 7. `holes`: what a vCPU could notice if the changes are made one by one.

mod coalesce;
mod cut;
mod fit;
mod holes;
mod keep;
mod moves;
mod order;
mod outcome;
mod planner;
mod request;

pub use holes::Carry;
pub use outcome::Plan;
pub use planner::plan;
pub use request::{Extent, PlanError, Request};
