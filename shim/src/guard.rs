//! Calls of a backend's, which may panic.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a panic carries.
pub(crate) type Panic = Box<dyn Any + Send>;

/// Calls that were not all carried out: of memory or of events, by what `W` says.
#[derive(Debug)]
pub struct Failed<W> {
    /// Why, and what is live.
    pub why: W,
    /// What a backend that panicked said, the first time: for the caller to go
    /// on with (`resume_unwind`) when its own state is settled.
    pub panic: Option<Panic>,
}

impl<W: fmt::Display> fmt::Display for Failed<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let panicked = if self.panic.is_some() { "; a call panicked" } else { "" };
        write!(f, "{}{panicked}", self.why)
    }
}

impl<W: Error> Error for Failed<W> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.why.source()
    }
}

/// Calls a backend. One that panics can't leave anything half done that
/// somebody looks at: whatever it was asked is then of unknown outcome.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(call))
}

/// Keeps the first panic. Another is not even dropped: that may panic as well.
pub(crate) fn keep_first(first: &mut Option<Panic>, panic: Option<Panic>) {
    match first {
        None => *first = panic,
        Some(_) => std::mem::forget(panic),
    }
}
