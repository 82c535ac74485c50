//! Keeping the measuring thread on one CPU.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread stays on one CPU until this is dropped; threads that it
/// started before are not affected.
///
/// A grace period is driven by a worker on the CPU of the thread that waits for
/// it (`srcu_funnel_gp_start()` queues the work locally), and takes two to four
/// times as long on one CPU as on another of the same machine. Where the
/// scheduler puts the thread would otherwise decide a comparison.
#[derive(Debug)]
pub struct Pinned {
    before: CpuSet,
}

impl Pinned {
    /// Pins the calling thread to the first CPU that it may use; `None` where
    /// that can't be done.
    #[must_use]
    pub fn to_first_cpu() -> Option<Self> {
        let this = Pid::from_raw(0);
        let before = sched_getaffinity(this).ok()?;
        let first = (0..CpuSet::count()).find(|cpu| before.is_set(*cpu) == Ok(true))?;
        let mut only = CpuSet::new();
        only.set(first).ok()?;
        sched_setaffinity(this, &only).ok()?;
        Some(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What was allowed before is allowed again.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn allowed() -> usize {
        let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
        (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true)).count()
    }

    #[test]
    fn a_thread_is_on_one_cpu_until_it_is_let_go() {
        let before = allowed();
        let pinned = Pinned::to_first_cpu().unwrap();
        assert_eq!(allowed(), 1);
        drop(pinned);
        assert_eq!(allowed(), before);
    }
}
