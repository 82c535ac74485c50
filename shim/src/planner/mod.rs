//! From live slots and wanted memory to an ordered plan. Pure: no I/O.

mod plan;

pub use plan::{Carry, Cost, Op, Plan};
