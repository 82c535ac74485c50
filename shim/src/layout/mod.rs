//! What planner, executors and backends speak about.

mod ids;
mod limits;
mod mapping;

pub use ids::SlotIds;
pub use limits::Limits;
pub use mapping::{Extent, GuestMemfd, Kind, Mapping, Range, Slot};
