//! Whether a VM's start pays for its order.
//!
//! Since Linux 6.18 `kvm_io_bus_register_dev()` frees the bus that it replaces by
//! `call_srcu()`, which starts a normal grace period on `kvm->srcu`. A change of
//! memslots that comes before its end waits for it, although its own would be an
//! expedited one. That is seen here from outside: by what came before, and by
//! how long the calls took. Other reasons for slow calls are not told apart, so
//! what is said is said once.

use std::time::{Duration, Instant};

use kvm_memslots_shim::memory::Done;

/// Expedited grace periods take tens of microseconds, a normal one takes ticks
/// of 1 to 10 ms.
const SLOW: Duration = Duration::from_millis(1);
/// What each grace period of the set's own may take on top.
const EACH: Duration = Duration::from_micros(100);

/// A normal grace period is over by then, even at 100 ticks a second.
const IN_FLIGHT: Duration = Duration::from_millis(100);

/// What came before memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// `KVM_CREATE_IRQCHIP`, and who knows what else.
    Irqchip,
    /// `KVM_IOEVENTFD`.
    Ioeventfd,
}

/// A call that came too early, and what that cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Early {
    call: Call,
    took: Duration,
}

impl Early {
    /// Says so.
    pub(super) fn warn(self) {
        let took_us = self.took.as_micros() as u64;
        match self.call {
            Call::Irqchip => tracing::warn!(
                call = "KVM_CREATE_IRQCHIP",
                took_us,
                "KVM_CREATE_IRQCHIP came before the first memory, which had to wait for it: map \
                 memory first, then create irqchip and PIT (`memslots doctor` measures it, \
                 Builder::order_check switches this off)"
            ),
            Call::Ioeventfd => tracing::warn!(
                call = "KVM_IOEVENTFD",
                took_us,
                "ioeventfds of an earlier set of changes came before memory, which had to wait \
                 for them: map memory first, attach devices in one set, or leave ioeventfds to \
                 a later one with Device::defer_ioeventfds (Builder::order_check switches this \
                 off)"
            ),
        }
    }
}

/// Follows what a VM does at its start.
#[derive(Debug)]
pub(super) struct OrderCheck {
    /// Not switched off, and nothing was said yet.
    on: bool,
    /// There was an irqchip before the first memory.
    irqchip: bool,
    /// When ioeventfds came, if no memory has changed since.
    ioeventfds: Option<Instant>,
}

impl OrderCheck {
    pub(super) const fn new(on: bool, irqchip: bool) -> Self {
        Self { on, irqchip, ioeventfds: None }
    }

    /// Memslots have changed: what is to be said about that, once.
    pub(super) fn memory(&mut self, done: &Done) -> Option<Early> {
        // Mostly nothing came before, and nobody has to know what time it is.
        let waits = self.irqchip || self.ioeventfds.is_some();
        if self.on && waits && done.ioctls > 0 {
            self.memory_at(done, Instant::now())
        } else {
            None
        }
    }

    fn memory_at(&mut self, done: &Done, now: Instant) -> Option<Early> {
        let own = EACH.saturating_mul(u32::try_from(done.grace_periods).unwrap_or(u32::MAX));
        let started = now.checked_sub(done.elapsed).unwrap_or(now);
        let fresh = |at: Instant| started.saturating_duration_since(at) < IN_FLIGHT;
        let call = match (self.irqchip, self.ioeventfds) {
            (_, Some(at)) if fresh(at) => Some(Call::Ioeventfd),
            (true, _) => Some(Call::Irqchip),
            _ => None,
        };
        // Whatever was in flight is waited for.
        (self.irqchip, self.ioeventfds) = (false, None);
        let call = call.filter(|_| done.elapsed >= SLOW + own)?;
        self.on = false;
        Some(Early { call, took: done.elapsed })
    }

    /// Ioeventfds have come.
    pub(super) fn ioeventfds(&mut self) {
        if self.on {
            self.ioeventfds = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKS: Duration = Duration::from_millis(7);

    fn calls(grace_periods: u64, elapsed: Duration) -> Done {
        Done { ioctls: grace_periods, grace_periods, elapsed }
    }

    /// What is said when a set took `done`, that long after ioeventfds.
    fn after(check: &mut OrderCheck, done: &Done, ioeventfds: Option<Duration>) -> Option<Call> {
        let came = Instant::now();
        check.ioeventfds = ioeventfds.map(|_| came);
        let now = came + ioeventfds.unwrap_or_default() + done.elapsed;
        check.memory_at(done, now).map(|early| early.call)
    }

    #[test]
    fn memory_that_waits_behind_an_irqchip_is_said_once() {
        let mut check = OrderCheck::new(true, true);
        assert_eq!(after(&mut check, &calls(2, TICKS), None), Some(Call::Irqchip));
        assert!(!check.on);
    }

    #[test]
    fn only_the_first_memory_waits_for_the_irqchip() {
        let mut check = OrderCheck::new(true, true);
        assert_eq!(after(&mut check, &calls(1, Duration::from_micros(60)), None), None);
        assert_eq!(after(&mut check, &calls(1, TICKS), None), None);
    }

    #[test]
    fn memory_first_is_never_blamed_however_slow() {
        let mut check = OrderCheck::new(true, false);
        assert_eq!(after(&mut check, &calls(1, Duration::from_secs(1)), None), None);
        assert!(check.on);
    }

    #[test]
    fn ioeventfds_are_blamed_for_as_long_as_they_are_in_flight() {
        let recent = Some(Duration::from_millis(3));
        let long_ago = Some(IN_FLIGHT);
        let mut check = OrderCheck::new(true, false);
        assert_eq!(after(&mut check, &calls(1, TICKS), long_ago), None);
        assert_eq!(after(&mut check, &calls(1, TICKS), recent), Some(Call::Ioeventfd));
    }

    #[test]
    fn a_large_set_may_take_its_own_time() {
        let mut check = OrderCheck::new(true, true);
        assert_eq!(after(&mut check, &calls(9000, Duration::from_millis(200)), None), None);
    }

    #[test]
    fn what_is_switched_off_sees_nothing() {
        let mut check = OrderCheck::new(false, true);
        check.ioeventfds();
        assert_eq!((check.memory(&calls(1, TICKS)), check.ioeventfds), (None, None));
    }
}
