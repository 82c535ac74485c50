//! What runs meanwhile.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use kvm_ioctls::VmFd;

use crate::rig::{Busy, START};
use kvm_memslots_kit::guest::{BusyVcpus, GuestError, Work};
use kvm_memslots_kit::host::{HostMemory, Pages, SMALL_PAGE};
use kvm_memslots_kit::raw::set_slot;
use kvm_memslots_kit::userfault::Userfault;

/// Slots of the guest's own: its code, and the memory that it sleeps in.
pub(super) const OWN_SLOTS: std::ops::RangeInclusive<u16> = 507..=508;

/// Where the guest sleeps: below its code, above the blobs.
const SLEEP_GPA: u64 = 0x60_0000_0000;

/// How many pages it sleeps in, by turns.
const SLEEP_PAGES: u64 = 2;

/// What there is to say where blobs have no memory.
pub(super) const BLOBS: &str = "the blobs' memory";

/// What runs meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// Busy vCPUs.
    Busy {
        /// How many.
        vcpus: usize,
    },
    /// One vCPU whose page faults sleep.
    Sleeping {
        /// For how long each.
        ms: u64,
    },
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy { vcpus } => write!(f, "{vcpus} busy"),
            Self::Sleeping { ms } => write!(f, "1, faults sleep {ms} ms"),
        }
    }
}

/// It, running.
pub(super) struct Running {
    // In this order: no vCPU runs when its memory goes.
    vcpus: Option<BusyVcpus>,
    _faults: Option<Userfault>,
    _memory: Option<Arc<HostMemory>>,
}

impl Running {
    pub(super) fn start(vm: &VmFd, guest: Guest, busy: Busy) -> Result<Self> {
        let own = *OWN_SLOTS.end();
        let (count, work, memory) = match guest {
            Guest::Busy { vcpus } => (vcpus, busy.work(), None),
            Guest::Sleeping { .. } => {
                let memory = sleeping_memory(vm)?;
                let work = Work::Touch { gpa: SLEEP_GPA, bytes: memory.size() };
                (1, work, Some(memory))
            }
        };
        let faults = match (guest, &memory) {
            (Guest::Sleeping { ms }, Some(memory)) => Some(sleep(memory, ms)?),
            _ => None,
        };
        let start = || BusyVcpus::start(vm, own, count, work);
        let vcpus = (count > 0).then(start).transpose()?;
        let running = Self { vcpus, _faults: faults, _memory: memory };
        running.wait()?;
        Ok(running)
    }

    /// Until all vCPUs are inside the guest.
    fn wait(&self) -> Result<(), GuestError> {
        self.vcpus.as_ref().map_or(Ok(()), |vcpus| vcpus.wait_for_progress(START))
    }

    /// How far all vCPUs have come.
    fn progress(&self) -> u64 {
        self.vcpus.iter().flat_map(BusyVcpus::progress).sum()
    }

    /// Progress a second while nothing changes.
    pub(super) fn pace(&self) -> f64 {
        let (start, before) = (Instant::now(), self.progress());
        std::thread::sleep(Duration::from_millis(300));
        (self.progress() - before) as f64 / start.elapsed().as_secs_f64()
    }

    /// Does `work`; progress a second meanwhile.
    pub(super) fn paced<T>(&self, work: impl FnOnce() -> T) -> (T, f64) {
        let (start, before) = (Instant::now(), self.progress());
        let done = work();
        (done, (self.progress() - before) as f64 / start.elapsed().as_secs_f64())
    }

    pub(super) fn stop(self) -> Result<(), GuestError> {
        self.vcpus.as_ref().map_or(Ok(()), BusyVcpus::stop)
    }
}

/// Memory in a slot, none of which was touched.
fn sleeping_memory(vm: &VmFd) -> Result<Arc<HostMemory>> {
    let memory = HostMemory::reserve(SLEEP_PAGES * SMALL_PAGE, Pages::Small).context(BLOBS)?;
    let slot = u32::from(*OWN_SLOTS.start());
    // SAFETY: the memory outlives the vCPUs, and holds nothing.
    unsafe { set_slot(vm, slot, SLEEP_GPA, memory.size(), memory.hva()) }
        .context("KVM_SET_USER_MEMORY_REGION for the memory to sleep in")?;
    Ok(Arc::new(memory))
}

/// The vCPU sleeps at each page, and again at the next turn.
fn sleep(memory: &Arc<HostMemory>, ms: u64) -> Result<Userfault> {
    let before = move |memory: &HostMemory, at: u64| {
        std::thread::sleep(Duration::from_millis(ms));
        let others = (0..SLEEP_PAGES).map(|page| page * SMALL_PAGE).filter(|page| *page != at);
        // That fails for no page that is mapped.
        others.for_each(|page| _ = memory.discard(page, SMALL_PAGE));
    };
    Userfault::start(Arc::clone(memory), before)
        .map_err(|error| anyhow!("userfaultfd: {error}; --sleep 0 does without"))
}
