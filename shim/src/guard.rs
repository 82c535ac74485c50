//! Calls of a backend's, which may panic.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a panic carries.
pub(crate) type Panic = Box<dyn Any + Send>;

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
