//! Panics of callbacks: kept until the state is settled.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// The first panic of a change.
#[derive(Default)]
pub(crate) struct Panics(Option<Box<dyn Any + Send>>);

impl Panics {
    /// Calls `f`; nothing if it panicked.
    ///
    /// What `f` touches of this crate is consistent at every point at which it
    /// calls out: that is why this may assert unwind safety.
    pub(crate) fn catch<T>(&mut self, f: impl FnOnce() -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(f)) {
            Ok(value) => Some(value),
            Err(panic) => {
                self.keep(Some(panic));
                None
            }
        }
    }

    /// Keeps a panic that somebody else caught.
    pub(crate) fn keep(&mut self, panic: Option<Box<dyn Any + Send>>) {
        if self.0.is_none() {
            self.0 = panic;
        }
    }

    /// Drops `values` one by one: that one of them panics does not keep the
    /// others.
    pub(crate) fn drop_all<T>(&mut self, values: Vec<T>) {
        match values.len() {
            0 => {}
            1 => _ = self.catch(|| drop(values)),
            _ => values.into_iter().for_each(|value| _ = self.catch(|| drop(value))),
        }
    }

    /// Goes on with the first panic, if there was one.
    pub(crate) fn resume(self) {
        if let Some(panic) = self.0 {
            resume_unwind(panic);
        }
    }
}
