//! vCPUs that keep the guest busy, and the gate that pauses them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;
use kvm_memslots::{GateError, VcpuGate};

use super::code::{DOORBELL_GPA, Program, mailbox};
use super::platform::Platform;
use super::probe::Prober;
use super::thread::VcpuThread;
use crate::guest::{GuestError, OWN_GPA, Work};
use crate::host::{LARGE_PAGE, Pages, SMALL_PAGE};

/// How long a vCPU may make no progress before it is looked after.
const NUDGE_EVERY: Duration = Duration::from_millis(100);

/// vCPUs that keep the guest busy, each on a thread of its own, until they are
/// stopped or dropped.
///
/// As a [`VcpuGate`] it pauses all of them: each is kicked out of `KVM_RUN` by
/// a signal, and `pause` returns when the last one is out.
#[derive(Debug)]
pub struct BusyVcpus {
    // Before the platform, whose memory they run in.
    threads: Mutex<Vec<VcpuThread>>,
    platform: Arc<Platform>,
}

impl BusyVcpus {
    /// Gives `vm` the vCPUs 0 to `count` and, under the id `slot`, the guest
    /// code's own slot at [`OWN_GPA`], and starts `work` on each.
    ///
    /// # Errors
    /// [`GuestError`]: KVM refused, `EEXIST` where a vCPU, the slot id or the
    /// addresses are taken.
    pub fn start(vm: &VmFd, slot: u16, count: usize, work: Work) -> Result<Self, GuestError> {
        let (_, bytes, pages) = program(work);
        let platform = Arc::new(Platform::install(vm, slot, count, bytes, pages)?);
        Self::on(vm, platform, count, work)
    }

    /// The same, and one vCPU more that does the accesses it is given.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn with_prober(
        vm: &VmFd,
        slot: u16,
        count: usize,
        work: Work,
    ) -> Result<(Self, Prober), GuestError> {
        let (_, bytes, pages) = program(work);
        let platform = Arc::new(Platform::install(vm, slot, count + 1, bytes, pages)?);
        let prober = Prober::on(vm, Arc::clone(&platform), count)?;
        Ok((Self::on(vm, platform, count, work)?, prober))
    }

    fn on(
        vm: &VmFd,
        platform: Arc<Platform>,
        count: usize,
        work: Work,
    ) -> Result<Self, GuestError> {
        let (program, ..) = program(work);
        let busy = Self { threads: Mutex::default(), platform };
        for index in 0..count {
            busy.post_range(index, work);
            let vcpu = Platform::vcpu(vm, index, program)?;
            let (area, size) = busy.platform.area(index);
            let platform = Arc::clone(&busy.platform);
            let discard = move || {
                if size == 0 {
                    return Ok(());
                }
                platform.memory().discard(area, size).map_err(GuestError::host("MADV_DONTNEED"))
            };
            busy.threads().push(VcpuThread::spawn(index, vcpu, DOORBELL_GPA, discard)?);
        }
        Ok(busy)
    }

    fn post_range(&self, index: usize, work: Work) {
        let (area, size) = self.platform.area(index);
        let (gpa, bytes, stride) = match work {
            Work::Spin | Work::FaultIn { pages: Pages::Small, .. } => {
                (OWN_GPA + area, size, SMALL_PAGE)
            }
            Work::FaultIn { pages: Pages::Huge, .. } => (OWN_GPA + area, size, LARGE_PAGE),
            Work::Touch { gpa, bytes } => (gpa, bytes, SMALL_PAGE),
        };
        let mailbox = Platform::mailbox(index);
        let memory = self.platform.memory();
        memory.write(mailbox + mailbox::RANGE, gpa);
        memory.write(mailbox + mailbox::END, gpa + bytes);
        memory.write(mailbox + mailbox::STRIDE, stride);
    }

    /// Waits until each vCPU has done something since this call: from then on
    /// they are known to be inside the guest.
    ///
    /// # Errors
    /// [`GuestError::Late`] after `timeout`; how a guest died, if one did.
    pub fn wait_for_progress(&self, timeout: Duration) -> Result<(), GuestError> {
        let before = self.progress();
        let deadline = Instant::now() + timeout;
        let mut nudge = Instant::now() + NUDGE_EVERY;
        loop {
            self.check()?;
            let stuck = before.iter().zip(self.progress()).position(|(old, new)| *old == new);
            match stuck {
                None => return Ok(()),
                Some(index) if Instant::now() >= deadline => {
                    return Err(GuestError::Late {
                        index,
                        what: "made no progress",
                        waited: timeout,
                    });
                }
                Some(index) => {
                    if Instant::now() >= nudge {
                        nudge += NUDGE_EVERY;
                        self.threads()[index].nudge();
                    }
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        }
    }

    /// How far each vCPU has come: turns of its loop, or pages touched.
    #[must_use]
    pub fn progress(&self) -> Vec<u64> {
        let place = |index| Platform::mailbox(index) + mailbox::PROGRESS;
        let count = self.threads().len();
        (0..count).map(|index| self.platform.memory().read(place(index))).collect()
    }

    /// Whether all guests are still alive.
    ///
    /// # Errors
    /// How the first one died.
    pub fn check(&self) -> Result<(), GuestError> {
        self.threads().iter().try_for_each(VcpuThread::check)
    }

    /// Ends the guests and their threads. Called again, it says the same.
    ///
    /// # Errors
    /// How the first one ended, if it was before it was told to.
    pub fn stop(&self) -> Result<(), GuestError> {
        let ends: Vec<_> = self.threads().iter_mut().map(VcpuThread::stop).collect();
        ends.into_iter().collect()
    }

    fn threads(&self) -> MutexGuard<'_, Vec<VcpuThread>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What does `work`, and the work area that it needs.
fn program(work: Work) -> (Program, u64, Pages) {
    match work {
        Work::Spin => (Program::Spin, 0, Pages::Small),
        Work::FaultIn { bytes, pages } => (Program::FaultIn, bytes.max(1), pages),
        Work::Touch { .. } => (Program::FaultIn, 0, Pages::Small),
    }
}

impl VcpuGate for BusyVcpus {
    fn pause(&self) -> Result<(), GateError> {
        let threads = self.threads();
        threads.iter().for_each(VcpuThread::ask_to_pause);
        let outside = threads.iter().try_for_each(VcpuThread::wait_until_outside);
        outside.map_err(|error| {
            threads.iter().for_each(VcpuThread::resume);
            GateError::new(error)
        })
    }

    fn resume(&self) {
        self.threads().iter().for_each(VcpuThread::resume);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A vCPU thread that is busy with an exit enters again when it is done
    /// with it, so `pause` has to wait for it.
    #[test]
    fn pause_waits_for_a_thread_that_handles_an_exit() {
        let test = "pause_waits_for_a_thread_that_handles_an_exit";
        let Some(vm) = crate::tests::vm_or_skip(test) else { return };
        let platform = Platform::install(&vm, 0, 1, LARGE_PAGE, Pages::Huge).expect("a platform");
        let busy = BusyVcpus { threads: Mutex::default(), platform: Arc::new(platform) };
        busy.post_range(0, Work::FaultIn { bytes: LARGE_PAGE, pages: Pages::Huge });
        let vcpu = Platform::vcpu(&vm, 0, Program::FaultIn).expect("a vCPU");
        let handling = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&handling);
        let slow = move || {
            theirs.store(true, Ordering::SeqCst);
            let started = Instant::now();
            // Kicks cut a sleep short.
            while started.elapsed() < Duration::from_millis(30) {
                std::thread::sleep(Duration::from_millis(1));
            }
            theirs.store(false, Ordering::SeqCst);
            Ok(())
        };
        busy.threads().push(VcpuThread::spawn(0, vcpu, DOORBELL_GPA, slow).expect("a thread"));
        for _ in 0..5 {
            let deadline = Instant::now() + Duration::from_mins(2);
            while !handling.load(Ordering::SeqCst) {
                assert!(Instant::now() < deadline, "{:?}", busy.check());
                std::thread::yield_now();
            }
            busy.pause().expect("a pause");
            assert!(!handling.load(Ordering::SeqCst));
            busy.resume();
        }
        busy.stop().expect("an orderly end");
    }
}
