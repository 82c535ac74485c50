//! The planner, from the outside.
#![allow(clippy::unwrap_used, missing_docs)]

mod cases;
mod properties;
mod room;
mod vm;
