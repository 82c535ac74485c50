//! Time, or grace periods: never both, as to count is to trace.

use std::time::{Duration, Instant};

use kvm_memslots_kit::grace::GraceCounter;
use kvm_memslots_kit::pin::Pinned;

/// What a run does its work under.
#[derive(Debug)]
pub enum Watch<'c> {
    /// It is timed; on one CPU if `pin`.
    Time {
        /// Which takes the scheduler out of the comparison.
        pin: bool,
    },
    /// Its grace periods are counted.
    Count(&'c mut GraceCounter),
}

/// What was found of a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lap {
    /// How long it took.
    pub wall: Duration,
    /// Grace periods, where those were counted.
    pub counted: Option<u64>,
    /// Whether it was kept on one CPU.
    pub pinned: bool,
}

impl Lap {
    /// Of what was timed elsewhere.
    #[must_use]
    pub const fn of_nanos(ns: u64) -> Self {
        Self { wall: Duration::from_nanos(ns), counted: None, pinned: false }
    }
}

impl Watch<'_> {
    /// Whether time counts.
    #[must_use]
    pub const fn times(&self) -> bool {
        matches!(self, Self::Time { .. })
    }

    /// Does a piece of the run's work, on the thread that the run is on.
    pub fn lap<T>(&mut self, work: impl FnOnce() -> T) -> (T, Lap) {
        match self {
            Self::Time { pin } => {
                // vCPUs run already, wherever they like.
                let pinned = pin.then(Pinned::to_first_cpu).flatten();
                let start = Instant::now();
                let done = work();
                let wall = start.elapsed();
                (done, Lap { wall, counted: None, pinned: pinned.is_some() })
            }
            Self::Count(counter) => {
                let (done, counted) = counter.count(work);
                (done, Lap { counted: counted.ok(), ..Lap::default() })
            }
        }
    }
}
