//! Whether the kernel has `KVM_MEM_TRAP`.
//!
//! The capability alone is never believed, as its number may mean something else
//! on another kernel. A scratch VM must take a slot with the flag, and refuse one
//! with the flag and an unknown one.

use std::ffi::{c_int, c_ulong};

use crate::decide::region::{Region, TRAP};

/// `KVM_CAP_MEM_TRAP`: ASCII `MSTP`.
pub(crate) const KVM_CAP_MEM_TRAP: c_ulong = 0x4d53_5450;

/// A flag that means nothing.
const UNKNOWN: u32 = 1 << 14;

/// What the probe asks.
pub(crate) trait Probed {
    /// `KVM_CHECK_EXTENSION` of the VM; negative on error.
    fn check_extension(&self, cap: c_ulong) -> c_int;

    /// Gives a scratch VM a slot with these flags.
    ///
    /// # Errors
    /// The errno.
    fn scratch_slot(&self, region: &Region) -> Result<(), c_int>;
}

/// Whether it has, and whether it says so without having it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Support {
    Absent,
    Present,
    Impostor,
}

/// Asks. On kernels that don't claim to have it, that is one call.
pub(crate) fn probe(kvm: &impl Probed, hva: u64, page: u64) -> Support {
    if u32::try_from(kvm.check_extension(KVM_CAP_MEM_TRAP)) != Ok(TRAP) {
        return Support::Absent;
    }
    let region = Region { slot: 0, flags: TRAP, gpa: 0, size: page, hva };
    let other = Region { slot: 1, flags: TRAP | UNKNOWN, gpa: page, size: page, hva };
    let known = kvm.scratch_slot(&region).is_ok();
    if known && kvm.scratch_slot(&other) == Err(libc::EINVAL) {
        Support::Present
    } else {
        Support::Impostor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Kernel {
        claims: c_int,
        known: u32,
    }

    impl Probed for Kernel {
        fn check_extension(&self, cap: c_ulong) -> c_int {
            if cap == KVM_CAP_MEM_TRAP { self.claims } else { 0 }
        }

        fn scratch_slot(&self, region: &Region) -> Result<(), c_int> {
            if region.flags & !self.known == 0 { Ok(()) } else { Err(libc::EINVAL) }
        }
    }

    #[test]
    fn kernels_that_have_it_that_do_not_and_that_lie() {
        let probe = |claims, known| probe(&Kernel { claims, known }, 0x1000, 0x1000);
        assert_eq!(probe(0x8000, 0x8003), Support::Present);
        assert_eq!(probe(0, 0x8003), Support::Absent);
        assert_eq!(probe(-1, 0x8003), Support::Absent);
        assert_eq!(probe(1, 0x8003), Support::Absent);
        assert_eq!(probe(0x8000, 3), Support::Impostor);
        assert_eq!(probe(0x8000, u32::MAX), Support::Impostor);
    }
}
