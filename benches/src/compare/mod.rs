//! The one way in which ways of doing something are compared: their runs in
//! turn, their calls and grace periods counted in runs of their own, medians, and
//! ratios that know their noise.

mod ratio;
mod row;
mod session;
mod stats;
mod watch;

pub use crate::way::{Way, ways};
pub use ratio::Ratio;
pub use row::{CountedBy, Row};
pub use session::{Pools, Session, Shape, Stop, Taken};
pub use stats::{median, percentile};
pub use watch::{Lap, Watch};

/// Busy vCPUs beside a comparison, in words.
#[must_use]
pub fn beside(vcpus: usize, busy: crate::rig::Busy) -> String {
    match vcpus {
        0 => "no vCPU".to_owned(),
        1 => format!("1 busy vCPU ({busy})"),
        vcpus => format!("{vcpus} busy vCPUs ({busy})"),
    }
}
