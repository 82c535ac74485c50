//! A lock under which no signal handler runs.
//!
//! A VMM may call `ioctl` from a handler. Were that handler to interrupt a
//! thread that has the lock, it would wait for itself; so all signals wait for
//! the end of it, as they do for the system call that plain would be in. A
//! panic inside would leave the lock taken: nothing inside panics.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys;

const FREE: u32 = 0;
const TAKEN: u32 = 1;
/// Taken, and somebody sleeps.
const AWAITED: u32 = 2;

/// A `T`, for one thread at a time. A zero is one that is free.
pub(crate) struct Lock<T> {
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only by `with`, by one thread at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

/// Gives the lock, and the signals, back.
struct Taken<'a> {
    word: &'a AtomicU32,
    mask: u64,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.word.swap(FREE, Ordering::Release) == AWAITED {
            sys::wake(self.word);
        }
        sys::set_mask(self.mask);
    }
}

impl<T> Lock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { word: AtomicU32::new(FREE), value: UnsafeCell::new(value) }
    }

    /// Runs `what` with the value. Not from within another.
    pub(crate) fn with<R>(&self, what: impl FnOnce(&mut T) -> R) -> R {
        let _taken = self.take();
        // SAFETY: the lock is this thread's until `_taken` goes, also if `what`
        // panics.
        what(unsafe { &mut *self.value.get() })
    }

    /// The same, if nobody else has the value for longer than so many nanoseconds.
    pub(crate) fn with_soon<R>(&self, ns: u64, what: impl FnOnce(&mut T) -> R) -> Option<R> {
        let _taken = self.take_until(Some(sys::now().saturating_add(ns)))?;
        // SAFETY: as above.
        Some(what(unsafe { &mut *self.value.get() }))
    }

    fn take(&self) -> Taken<'_> {
        loop {
            if let Some(taken) = self.take_until(None) {
                return taken;
            }
        }
    }

    fn take_until(&self, end: Option<u64>) -> Option<Taken<'_>> {
        let mask = sys::set_mask(!0);
        let try_take =
            self.word.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed);
        if try_take.is_err() {
            while self.word.swap(AWAITED, Ordering::Acquire) != FREE {
                let left = end.map(|end| end.saturating_sub(sys::now()));
                if left == Some(0) {
                    sys::set_mask(mask);
                    return None;
                }
                sys::wait(&self.word, AWAITED, left);
            }
        }
        Some(Taken { word: &self.word, mask })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::thread;

    use super::*;

    #[test]
    fn one_thread_at_a_time() {
        let lock = Lock::new(0_u64);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5_000).for_each(|_| lock.with(|count| *count += 1)));
            }
        });
        assert_eq!(lock.with(|count| *count), 20_000);
    }

    /// Who can't wait for ever goes on without, and signals are let in again.
    #[test]
    fn who_waits_too_long_goes_without() {
        static LOCK: Lock<u32> = Lock::new(0);
        let mask = || {
            let mask = sys::set_mask(!0);
            sys::set_mask(mask);
            mask
        };
        let before = mask();
        LOCK.with(|_| {
            let other = thread::spawn(|| LOCK.with_soon(1_000_000, |count| *count += 1));
            assert_eq!(other.join().unwrap(), None);
        });
        assert_eq!(LOCK.with_soon(0, |count| *count += 1), Some(()));
        assert_eq!((LOCK.with(|count| *count), mask()), (1, before));
    }

    /// A signal that comes while the lock is held is handled after it.
    #[test]
    fn no_handler_runs_inside() {
        static LOCK: Lock<u32> = Lock::new(0);
        extern "C" fn handler(_: libc::c_int) {
            LOCK.with(|count| *count += 1);
        }
        let handler: extern "C" fn(libc::c_int) = handler;
        // SAFETY: the handler takes a lock that no handler interrupts.
        unsafe { libc::signal(libc::SIGUSR2, handler as libc::sighandler_t) };
        LOCK.with(|count| {
            // SAFETY: to this thread.
            unsafe { libc::raise(libc::SIGUSR2) };
            assert_eq!(*count, 0);
        });
        assert_eq!(LOCK.with(|count| *count), 1);
    }
}
