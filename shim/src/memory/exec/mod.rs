//! Carries a plan out, and undoes it if a call fails. Decides nothing.

mod dirty;
mod error;
mod run;
mod steps;
mod undo;

pub use dirty::SavedDirty;
pub use error::{Failed, Why};
pub use run::{Done, check, execute, execute_one};
