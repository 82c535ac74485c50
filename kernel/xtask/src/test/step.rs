//! What a check is.

use anyhow::Result;

use crate::log::{Log, Outcome};

/// A check.
pub(super) struct Step {
    pub(super) name: &'static str,
    /// What is checked.
    pub(super) what: &'static str,
    /// How long it takes roughly, the first time and where nothing is to build.
    pub(super) seconds: (u32, u32),
    /// Whether `--quick` leaves it out.
    pub(super) slow: bool,
    /// An error is a failed check.
    pub(super) run: fn(&mut Log) -> Result<Outcome>,
}
