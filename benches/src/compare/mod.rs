//! The one way in which ways of doing something are compared: their runs in
//! turn, their calls and grace periods counted in runs of their own, medians, and
//! ratios that know their noise.

mod ratio;
mod row;
mod session;
mod stats;
mod watch;

pub use ratio::Ratio;
pub use row::{CountedBy, Row};
pub use session::{Pools, Session, Shape, Stop, Taken};
pub use stats::{median, percentile};
pub use watch::{Lap, Watch};

/// A way of doing something.
pub trait Way: Copy + PartialEq {
    /// Its name, as on the command line where it can be asked for.
    fn name(self) -> String;
}

impl<W: clap::ValueEnum + Copy + PartialEq> Way for W {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// The ways that were asked for, each once and in their own order; all if none
/// was.
#[must_use]
pub fn ways<W: clap::ValueEnum + Copy + Ord>(asked: &[W]) -> Vec<W> {
    let mut ways = if asked.is_empty() { W::value_variants() } else { asked }.to_vec();
    ways.sort_unstable();
    ways.dedup();
    ways
}

/// Busy vCPUs beside a comparison, in words.
#[must_use]
pub fn beside(vcpus: usize, busy: crate::rig::Busy) -> String {
    match vcpus {
        0 => "no vCPU".to_owned(),
        1 => format!("1 busy vCPU ({})", busy.name()),
        vcpus => format!("{vcpus} busy vCPUs ({})", busy.name()),
    }
}
