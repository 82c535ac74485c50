//! Signals of a vector that wait while it is masked.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::event::Event;

/// Nobody signals: events are held.
const MASKED: u64 = 1;
/// An event is held.
const PENDING: u64 = 2;
/// One thread is about to write to the eventfd.
const SIGNALLER: u64 = 4;

/// The eventfd of a vector which this process alone signals, through
/// [`signal`](Self::signal), and which holds back while the vector is masked.
///
/// KVM then keeps the irqfd of a masked vector
/// ([`Device::triggered_vector`](crate::device::Device::triggered_vector)):
/// masking and unmasking make no call and wait for no grace period. Taking an
/// irqfd away and bringing it back are two calls and a grace period of a
/// kernel's worker (`irqfd_shutdown()`), which the first of them waits for.
///
/// It is masked until a device that has it is attached with a message, and when
/// that device is detached.
pub struct Trigger {
    event: Event,
    state: AtomicU64,
}

impl Trigger {
    /// For this eventfd, which nobody else signals.
    #[must_use]
    pub fn new(event: impl AsRawFd + Send + Sync + 'static) -> Self {
        Self { event: Event::new(event), state: AtomicU64::new(MASKED) }
    }

    /// Raises the interrupt, now or when the vector is unmasked: once, however
    /// often it is signalled meanwhile. From any thread.
    ///
    /// # Errors
    /// What `write` said: the descriptor is no eventfd, or not open.
    pub fn signal(&self) -> io::Result<()> {
        let step = |state| {
            let masked = state & MASKED != 0;
            Some(if masked { state | PENDING } else { state + SIGNALLER })
        };
        let updated = self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, step);
        if updated.is_ok_and(|state| state & MASKED != 0) {
            return Ok(());
        }
        let result = self.write();
        self.state.fetch_sub(SIGNALLER, Ordering::Release);
        result
    }

    /// Whether an event is held: the vector's bit in the array of pending bits of
    /// MSI-X.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.state.load(Ordering::Acquire) & PENDING != 0
    }

    /// Whether events are held.
    #[must_use]
    pub fn is_masked(&self) -> bool {
        self.state.load(Ordering::Acquire) & MASKED != 0
    }

    /// Holds events from now on. When it returns, whoever had begun to signal is
    /// done.
    pub(crate) fn mask(&self) {
        self.state.fetch_or(MASKED, Ordering::AcqRel);
        while self.state.load(Ordering::Acquire) >= SIGNALLER {
            std::thread::yield_now();
        }
    }

    /// Lets events through, one that is held first.
    pub(crate) fn unmask(&self) {
        let before = self.state.fetch_and(!(MASKED | PENDING), Ordering::AcqRel);
        if before & PENDING != 0 {
            // A descriptor that is none was refused when it was assigned.
            _ = self.write();
        }
    }

    fn write(&self) -> io::Result<()> {
        let one = 1_u64.to_ne_bytes();
        loop {
            // SAFETY: 8 bytes of this function are read.
            let written = unsafe { libc::write(self.as_raw_fd(), one.as_ptr().cast(), one.len()) };
            if written >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                // The counter is full: events wait already.
                io::ErrorKind::WouldBlock => return Ok(()),
                _ => return Err(error),
            }
        }
    }
}

impl AsRawFd for Trigger {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

impl fmt::Debug for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trigger")
            .field("event", &self.event)
            .field("masked", &self.is_masked())
            .field("pending", &self.is_pending())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn eventfd() -> OwnedFd {
        // SAFETY: takes numbers only.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        assert!(fd >= 0);
        // SAFETY: the descriptor is new, and nobody else's.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    fn count(file: &mut File) -> u64 {
        let mut bytes = [0; 8];
        file.read_exact(&mut bytes).map_or(0, |()| u64::from_ne_bytes(bytes))
    }

    #[test]
    fn events_wait_while_it_is_masked() {
        let fd = eventfd();
        let mut file = File::from(fd.try_clone().expect("a descriptor"));
        let trigger = Trigger::new(fd);
        for _ in 0..3 {
            trigger.signal().expect("held");
        }
        assert!(trigger.is_masked() && trigger.is_pending());
        assert_eq!(count(&mut file), 0);
        trigger.unmask();
        assert_eq!((count(&mut file), trigger.is_pending()), (1, false));
        trigger.signal().expect("an eventfd");
        assert_eq!(count(&mut file), 1);
        trigger.mask();
        trigger.unmask();
        assert_eq!(count(&mut file), 0, "nothing was held");
        let none = Trigger::new(-1);
        none.unmask();
        assert_eq!(none.signal().expect_err("no descriptor").raw_os_error(), Some(libc::EBADF));
    }

    /// After `mask` nobody writes; and what was signalled last comes through in
    /// the end.
    #[test]
    fn nothing_comes_through_a_mask_and_nothing_is_lost() {
        let fd = eventfd();
        let mut file = File::from(fd.try_clone().expect("a descriptor"));
        let trigger = Arc::new(Trigger::new(fd));
        let stop = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (trigger, stop) = (Arc::clone(&trigger), Arc::clone(&stop));
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        trigger.signal().expect("an eventfd");
                    }
                    // The last word is an event.
                    trigger.signal().expect("an eventfd");
                })
            })
            .collect();
        for _ in 0..2000 {
            trigger.unmask();
            trigger.mask();
            count(&mut file);
            assert_eq!(count(&mut file), 0, "signalled while masked");
        }
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("a signaller");
        }
        assert!(trigger.is_pending());
        trigger.unmask();
        assert_eq!(count(&mut file), 1);
    }
}
