//! Whether a kernel has `KVM_SET_USER_MEMORY_REGIONS`, and whether its slots can
//! have `KVM_MEM_TRAP`.
//!
//! The capability alone is never believed: an out-of-tree number may mean
//! something else on another out-of-tree kernel. The probe makes two calls
//! that change nothing on a kernel that has the ioctl, and both must answer as
//! the ABI says. For the flag ([`probe_trap`]) they are made on a VM that is only
//! there to be asked.

mod trap;

pub use trap::{ProbeTrap, TrapMismatch, TrapSupport, probe_trap};

use core::ffi::c_int;
use core::fmt;

use crate::{KVM_CAP_USER_MEMORY_REGIONS, MemoryRegionsFlags, kvm_userspace_memory_regions};

/// What the probe asks of a VM. A trait, so that the decision can be tested
/// with kernels that lie.
pub trait ProbeVm {
    /// `ioctl(vm, KVM_CHECK_EXTENSION, cap)`; negative on error.
    fn check_extension(&mut self, cap: u32) -> c_int;

    /// `ioctl(vm, KVM_SET_USER_MEMORY_REGIONS, header)`, with no entries
    /// behind the header.
    ///
    /// # Errors
    /// The errno.
    fn set_user_memory_regions(
        &mut self,
        header: &mut kvm_userspace_memory_regions,
    ) -> Result<(), c_int>;
}

/// What the probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// The kernel does not claim the capability.
    Absent,
    /// The kernel has the ioctl and takes this many entries a call.
    Present {
        /// The largest `nr`.
        max_entries: u32,
    },
    /// The kernel claims the capability and does not answer as the ABI says:
    /// the number means something else there. To be treated as absent.
    Impostor {
        /// What `KVM_CHECK_EXTENSION` answered.
        claimed: u32,
        /// Which answer was wrong.
        mismatch: Mismatch,
    },
}

/// The answer that gave an impostor away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// An empty dry run must succeed; it failed with this errno.
    DryRunRefused {
        /// The errno.
        errno: c_int,
    },
    /// Unknown flags must be refused with `EINVAL`; this happened instead.
    BadFlagsAnswer {
        /// The errno, 0 for success.
        errno: c_int,
    },
    /// `failed` must be set to `nr`, and nothing else in the header touched.
    Header {
        /// The header that came back.
        returned: kvm_userspace_memory_regions,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DryRunRefused { errno } => {
                write!(f, "an empty dry run failed with errno {errno}, it must succeed")
            }
            Self::BadFlagsAnswer { errno } => {
                write!(f, "unknown flags were answered with errno {errno}, it must be EINVAL (22)")
            }
            Self::Header { returned } => {
                write!(f, "the header came back as {returned:?}, only `failed` may change, to nr")
            }
        }
    }
}

/// No kernel writes this to `failed` by chance.
const POISON: u32 = 0x5ca1_ab1e;

/// Probes a VM as the module says: one `KVM_CHECK_EXTENSION` where the
/// capability is absent, and two more calls where it is claimed.
pub fn probe(vm: &mut impl ProbeVm) -> Support {
    let Ok(claimed @ 1..) = u32::try_from(vm.check_extension(KVM_CAP_USER_MEMORY_REGIONS)) else {
        return Support::Absent;
    };
    match dry_run_answers(vm).and_then(|()| bad_flags_answer(vm)) {
        Ok(()) => Support::Present { max_entries: claimed },
        Err(mismatch) => Support::Impostor { claimed, mismatch },
    }
}

fn dry_run_answers(vm: &mut impl ProbeVm) -> Result<(), Mismatch> {
    let sent = header(MemoryRegionsFlags::DRY_RUN.bits());
    let mut returned = sent;
    vm.set_user_memory_regions(&mut returned).map_err(|errno| Mismatch::DryRunRefused { errno })?;
    check_header(sent, returned)
}

fn bad_flags_answer(vm: &mut impl ProbeVm) -> Result<(), Mismatch> {
    const EINVAL: c_int = nix::errno::Errno::EINVAL as c_int;
    let sent = header(!MemoryRegionsFlags::all().bits());
    let mut returned = sent;
    match vm.set_user_memory_regions(&mut returned) {
        Err(EINVAL) => check_header(sent, returned),
        Err(errno) => Err(Mismatch::BadFlagsAnswer { errno }),
        Ok(()) => Err(Mismatch::BadFlagsAnswer { errno: 0 }),
    }
}

fn header(flags: u32) -> kvm_userspace_memory_regions {
    kvm_userspace_memory_regions { flags, failed: POISON, ..Default::default() }
}

fn check_header(
    sent: kvm_userspace_memory_regions,
    returned: kvm_userspace_memory_regions,
) -> Result<(), Mismatch> {
    let expected = kvm_userspace_memory_regions { failed: sent.nr, ..sent };
    if returned == expected { Ok(()) } else { Err(Mismatch::Header { returned }) }
}
