//! Trying a method on a scratch VM, where the right count is known.

use std::fmt;
use std::io;
use std::time::Duration;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use super::GraceCounter;
use crate::guest::{BusyVcpus, GuestError, Work};
use crate::host::{HostMemory, LARGE_PAGE, Pages, SMALL_PAGE};

/// Each kind of change is made this often, each time with a count of its own.
const ROUNDS: u64 = 8;

/// The slot of the busy vCPU.
const OWN_SLOT: u16 = 1;

/// What a method counted on the scratch VMs, in the order in which the changes
/// were made: create 1, flags 1, move 2, delete 2.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Calibration {
    /// With no vCPU.
    pub idle: Vec<u64>,
    /// With a vCPU that faults memory in; empty where there is no guest code.
    pub busy: Vec<u64>,
}

impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} changes of an idle VM", self.idle.len())?;
        if !self.busy.is_empty() {
            write!(f, " and {} with a busy vCPU", self.busy.len())?;
        }
        f.write_str(" counted exactly")
    }
}

/// Why a method is not used.
#[derive(Debug)]
#[non_exhaustive]
pub enum Misfit {
    /// The kernel does not permit it, or does not have it.
    Refused(io::Error),
    /// The scratch VM could not be made or changed.
    Scratch(io::Error),
    /// The scratch VM's guest code did not run.
    Guest(GuestError),
    /// It counts wrong.
    Miscounts {
        /// The change.
        change: &'static str,
        /// The grace periods that it waits for.
        expected: u64,
        /// The grace periods that were counted.
        counted: u64,
        /// Whether a vCPU was busy.
        busy: bool,
    },
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => write!(f, "{error}"),
            Self::Scratch(error) => write!(f, "scratch VM: {error}"),
            Self::Guest(error) => write!(f, "scratch VM: {error}"),
            Self::Miscounts { change, expected, counted, busy } => {
                let vcpu = if *busy { "busy" } else { "idle" };
                write!(f, "{vcpu} VM: counts {counted} for a {change}, which waits for {expected}")
            }
        }
    }
}

impl std::error::Error for Misfit {}

/// Counts known changes with `counter`, which is enabled.
pub(super) fn calibrate(
    counter: &mut GraceCounter,
    new_vm: &impl Fn() -> io::Result<VmFd>,
) -> Result<Calibration, Misfit> {
    let idle = known_changes(counter, &new_vm().map_err(Misfit::Scratch)?, false)?;
    let vm = new_vm().map_err(Misfit::Scratch)?;
    let work = Work::FaultIn { bytes: LARGE_PAGE, pages: Pages::Small };
    let busy = match BusyVcpus::start(&vm, OWN_SLOT, 1, work) {
        Err(GuestError::Unsupported) => Vec::new(),
        started => {
            let vcpus = started.map_err(Misfit::Guest)?;
            vcpus.wait_for_progress(Duration::from_mins(1)).map_err(Misfit::Guest)?;
            let counts = known_changes(counter, &vm, true)?;
            vcpus.stop().map_err(Misfit::Guest)?;
            counts
        }
    };
    Ok(Calibration { idle, busy })
}

/// A slot comes, is logged, moves and goes, several times over.
fn known_changes(counter: &mut GraceCounter, vm: &VmFd, busy: bool) -> Result<Vec<u64>, Misfit> {
    let memory = HostMemory::reserve(SMALL_PAGE, Pages::Small)
        .map_err(|errno| Misfit::Scratch(errno.into()))?;
    let here = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: SMALL_PAGE,
        userspace_addr: memory.hva(),
    };
    let there = kvm_userspace_memory_region { guest_phys_addr: SMALL_PAGE, ..here };
    let logged = kvm_userspace_memory_region { flags: KVM_MEM_LOG_DIRTY_PAGES, ..here };
    let gone = kvm_userspace_memory_region { memory_size: 0, ..there };
    let changes = [
        ("create", here, 1),
        ("change of flags", logged, 1),
        ("change of flags", here, 1),
        ("move", there, 2),
        ("delete", gone, 2),
    ];
    let mut counts = Vec::new();
    for _ in 0..ROUNDS {
        for (change, region, expected) in changes {
            // SAFETY: the memory outlives the slot, which the last of the
            // changes deletes, and no guest accesses it.
            let set = || unsafe { vm.set_user_memory_region(region) };
            let (set, counted) = counter.count_enabled(set);
            let counted = counted.map_err(Misfit::Refused)?;
            set.map_err(|error| Misfit::Scratch(error.into()))?;
            if counted != expected {
                return Err(Misfit::Miscounts { change, expected, counted, busy });
            }
            counts.push(counted);
        }
    }
    Ok(counts)
}
