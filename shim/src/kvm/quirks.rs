//! What KVM does for VMMs of old, and can be told to leave.

use kvm_bindings::{KVM_CAP_DISABLE_QUIRKS2, kvm_enable_cap};

use super::requests::KVM_ENABLE_CAP;
use super::vm::Kvm;
use crate::errno::Errno;

/// `KVM_X86_QUIRK_SLOT_ZAP_ALL` (`asm/kvm.h`): to delete or move a slot drops the
/// page tables of the whole guest, not only those of the slot.
pub const QUIRK_SLOT_ZAP_ALL: u64 = 1 << 7;

impl Kvm {
    /// The quirks that can be disabled (`KVM_CHECK_EXTENSION` of
    /// `KVM_CAP_DISABLE_QUIRKS2`), a bit for each; 0 where there is no such
    /// capability.
    #[must_use]
    pub fn quirks(&self) -> u64 {
        let answer = self.calls.check_extension(KVM_CAP_DISABLE_QUIRKS2);
        answer.ok().and_then(|quirks| u64::try_from(quirks).ok()).unwrap_or(0)
    }

    /// Disables quirks (`KVM_CAP_DISABLE_QUIRKS2`).
    ///
    /// Before Linux 6.15 that is the set of those that are disabled from then on;
    /// later kernels add to it. KVM does not say which are.
    ///
    /// # Errors
    /// `EINVAL` for bits that [`quirks`](Self::quirks) does not have.
    pub fn disable_quirks(&self, quirks: u64) -> Result<(), Errno> {
        let cap = kvm_enable_cap {
            cap: KVM_CAP_DISABLE_QUIRKS2,
            args: [quirks, 0, 0, 0],
            ..Default::default()
        };
        // SAFETY: the `args` of this capability are numbers.
        unsafe { self.calls.tell(KVM_ENABLE_CAP, &raw const cap) }
    }
}
