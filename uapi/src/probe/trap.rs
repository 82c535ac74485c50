//! Whether slots can have `KVM_MEM_TRAP`.

use core::ffi::c_int;
use core::fmt;

use crate::{KVM_CAP_MEM_TRAP, MemFlags};

/// What the probe asks. A trait, so that the decision can be tested with
/// kernels that lie.
pub trait ProbeTrap {
    /// `ioctl(vm, KVM_CHECK_EXTENSION, cap)`; negative on error.
    fn check_extension(&mut self, cap: u32) -> c_int;

    /// Makes a slot with these flags on a scratch VM, one that has no vCPU and
    /// goes when the probe is done, by `KVM_SET_USER_MEMORY_REGION`: first one
    /// that may succeed, then one that must not.
    ///
    /// # Errors
    /// [`TrapMismatch::Refused`] with the errno, [`TrapMismatch::NoScratchVm`].
    fn make_slot(&mut self, flags: u32) -> Result<(), TrapMismatch>;
}

/// What the probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrapSupport {
    /// The kernel does not claim the capability.
    Absent,
    /// Slots can have the flag.
    Present,
    /// The kernel claims the capability and does not answer as the ABI says,
    /// or could not be asked. To be treated as absent.
    Impostor {
        /// What `KVM_CHECK_EXTENSION` answered.
        claimed: u32,
        /// Which answer was wrong.
        mismatch: TrapMismatch,
    },
}

/// The answer that gave an impostor away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrapMismatch {
    /// The capability's answer must be `KVM_MEM_TRAP`, 0x8000.
    Answer,
    /// A slot with the flag must be made; it was refused with this errno.
    Refused {
        /// The errno.
        errno: c_int,
    },
    /// A slot with the flag and another that nobody knows must be refused with
    /// `EINVAL`; this happened instead.
    BadFlagsAnswer {
        /// The errno, 0 for success.
        errno: c_int,
    },
    /// There is no scratch VM to ask: `/dev/kvm` can't be opened any more, or
    /// gives none.
    NoScratchVm {
        /// The errno.
        errno: c_int,
    },
}

impl fmt::Display for TrapMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer => f.write_str("KVM_CAP_MEM_TRAP must be answered with 0x8000 or 0"),
            Self::Refused { errno } => {
                write!(f, "a slot with KVM_MEM_TRAP was refused with errno {errno}")
            }
            Self::BadFlagsAnswer { errno } => write!(
                f,
                "a slot with KVM_MEM_TRAP and an unknown flag was answered with errno {errno}, \
                 it must be EINVAL (22)"
            ),
            Self::NoScratchVm { errno } => {
                write!(f, "/dev/kvm gave no VM to ask about KVM_MEM_TRAP: errno {errno}")
            }
        }
    }
}

/// Bit 14: the last that upstream would give out before [`MemFlags::TRAP`].
const UNKNOWN: u32 = 1 << 14;

/// Probes as the module says: one `KVM_CHECK_EXTENSION` where the capability is
/// absent, and two slots of a scratch VM where it is claimed.
pub fn probe_trap(vm: &mut impl ProbeTrap) -> TrapSupport {
    let Ok(claimed @ 1..) = u32::try_from(vm.check_extension(KVM_CAP_MEM_TRAP)) else {
        return TrapSupport::Absent;
    };
    match answers(vm, claimed) {
        Ok(()) => TrapSupport::Present,
        Err(mismatch) => TrapSupport::Impostor { claimed, mismatch },
    }
}

fn answers(vm: &mut impl ProbeTrap, claimed: u32) -> Result<(), TrapMismatch> {
    const EINVAL: c_int = nix::errno::Errno::EINVAL as c_int;
    if claimed != MemFlags::TRAP.bits() {
        return Err(TrapMismatch::Answer);
    }
    vm.make_slot(claimed)?;
    match vm.make_slot(claimed | UNKNOWN) {
        Err(TrapMismatch::Refused { errno: EINVAL }) => Ok(()),
        Err(TrapMismatch::Refused { errno }) => Err(TrapMismatch::BadFlagsAnswer { errno }),
        Ok(()) => Err(TrapMismatch::BadFlagsAnswer { errno: 0 }),
        Err(other) => Err(other),
    }
}
