//! `KVM_IRQFD_FLAG_NO_IRQBYPASS`: an irqfd that is never signalled by a physical
//! device, and therefore does without the host-wide irqbypass mutex.

use core::ffi::c_int;

use nix::errno::Errno;

/// Bit of `kvm_irqfd.flags`: no bypass producer (VFIO, vDPA) will ever belong
/// to this eventfd. Without effect together with `KVM_IRQFD_FLAG_DEASSIGN`.
pub const KVM_IRQFD_FLAG_NO_IRQBYPASS: u32 = 1 << 15;

/// `KVM_CAP_IRQFD_NO_IRQBYPASS`, ASCII `MSNB`: asked of a VM fd with
/// `KVM_CHECK_EXTENSION`, it gives [`KVM_IRQFD_FLAG_NO_IRQBYPASS`], 0 where the
/// flag is absent. Far out of upstream's sequence, as
/// [`KVM_CAP_USER_MEMORY_REGIONS`](crate::KVM_CAP_USER_MEMORY_REGIONS) is.
pub const KVM_CAP_IRQFD_NO_IRQBYPASS: u32 = 0x4d53_4e42;

/// `KVM_IRQFD_FLAG_DEASSIGN`.
const DEASSIGN: u32 = 1 << 0;
/// No kernel knows this one.
const UNKNOWN: u32 = 1 << 30;

/// What the probe asks of a VM. A trait, so that the decision can be tested
/// with kernels that lie.
pub trait ProbeIrqfd {
    /// `ioctl(vm, KVM_CHECK_EXTENSION, cap)`; negative on error.
    fn check_extension(&mut self, cap: u32) -> c_int;

    /// `ioctl(vm, KVM_IRQFD, { fd, gsi: 0, flags })` with an eventfd that no
    /// irqfd uses: as `flags` has `KVM_IRQFD_FLAG_DEASSIGN`, there is nothing
    /// that it could take away.
    ///
    /// # Errors
    /// The errno.
    fn irqfd(&mut self, flags: u32) -> Result<(), c_int>;
}

/// What the probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoIrqBypass {
    /// The kernel does not claim the capability.
    Absent,
    /// The kernel takes the flag.
    Present,
    /// The kernel claims something and does not answer as the ABI says. To be
    /// treated as absent.
    Impostor {
        /// What `KVM_CHECK_EXTENSION` answered.
        claimed: c_int,
        /// The errno of the call with the flag, 0 for success, which it must
        /// be.
        with_flag: c_int,
        /// The errno of the call with an unknown flag beside it, which must be
        /// `EINVAL`.
        with_unknown: c_int,
    },
}

/// Finds out whether a kernel takes [`KVM_IRQFD_FLAG_NO_IRQBYPASS`]: one
/// `KVM_CHECK_EXTENSION`, and where that claims it two calls that change
/// nothing. The capability is not believed alone.
///
/// `KVM_IRQFD` checks its flags before everything else, and a deassignment
/// needs no interrupt controller, so this works on any VM at any time.
pub fn probe_no_irqbypass(vm: &mut impl ProbeIrqfd) -> NoIrqBypass {
    let claimed = vm.check_extension(KVM_CAP_IRQFD_NO_IRQBYPASS);
    if claimed <= 0 {
        return NoIrqBypass::Absent;
    }
    let mut ask = |flags| vm.irqfd(flags).map_or_else(|errno| errno, |()| 0);
    let with_flag = ask(DEASSIGN | KVM_IRQFD_FLAG_NO_IRQBYPASS);
    let with_unknown = ask(DEASSIGN | KVM_IRQFD_FLAG_NO_IRQBYPASS | UNKNOWN);
    let as_said = u32::try_from(claimed) == Ok(KVM_IRQFD_FLAG_NO_IRQBYPASS)
        && with_flag == 0
        && with_unknown == Errno::EINVAL as c_int;
    if as_said {
        NoIrqBypass::Present
    } else {
        NoIrqBypass::Impostor { claimed, with_flag, with_unknown }
    }
}
