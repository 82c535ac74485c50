//! Panics of callbacks: kept until the state is settled.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// The first panic of a change. What others carry is leaked: to drop it may panic, too,
/// and two panics at once end the process.
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
        match &self.0 {
            None => self.0 = panic,
            Some(_) => std::mem::forget(panic),
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
    pub(crate) fn resume(mut self) {
        if let Some(panic) = self.0.take() {
            resume_unwind(panic);
        }
    }

    /// The same, when `value` has been dropped; gives it back if there was none.
    pub(crate) fn resume_or<T>(mut self, value: T) -> T {
        let Some(panic) = self.0.take() else { return value };
        self.drop_all(vec![value]);
        resume_unwind(panic)
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        std::mem::forget(self.0.take());
    }
}
