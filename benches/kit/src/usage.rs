//! What a thread has used of its machine.

use nix::sys::resource::{UsageWho, getrusage};
use nix::time::{ClockId, clock_gettime};

/// What the calling thread has used since it began, or between two moments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Page faults, those that read from a disk among them.
    pub faults: u64,
    /// Nanoseconds on a CPU, in the kernel and out of it.
    pub cpu_ns: u64,
}

impl Usage {
    /// Of the calling thread; what the kernel does not say is 0.
    #[must_use]
    pub fn of_thread() -> Self {
        let number = |number: i64| u64::try_from(number).unwrap_or(0);
        let faults = getrusage(UsageWho::RUSAGE_THREAD)
            .map_or(0, |usage| usage.minor_page_faults() + usage.major_page_faults());
        let cpu = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
            .map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec());
        Self { faults: number(faults), cpu_ns: number(cpu) }
    }

    /// What came since then.
    #[must_use]
    pub const fn since(self, before: Self) -> Self {
        Self {
            faults: self.faults.saturating_sub(before.faults),
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_memory_is_faulted_in_and_takes_time() {
        let before = Usage::of_thread();
        let pages = vec![1_u8; 4 << 20];
        std::hint::black_box(&pages);
        let used = Usage::of_thread().since(before);
        assert!(used.faults > 0 && used.cpu_ns > 0, "{used:?}");
    }
}
