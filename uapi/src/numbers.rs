//! The ioctl and capability numbers, and why they have the values they have.

use core::ffi::c_ulong;
use core::mem::size_of;

use crate::kvm_userspace_memory_regions;

/// The type byte of every KVM ioctl (`KVMIO` in `linux/kvm.h`).
pub const KVMIO: u8 = 0xae;

/// The sequence number of `KVM_SET_USER_MEMORY_REGIONS` within [`KVMIO`].
///
/// Upstream hands out numbers upwards: 0xd5 (`KVM_PRE_FAULT_MEMORY`, 6.11) is
/// where 6.12 stands, and the device ioctls sit at 0xe0 to 0xe3. 0xf9 is out
/// of reach of both for as long as an out-of-tree patch can hope to live. Size
/// and direction are encoded beside it, so that a later ioctl with the same
/// sequence number would still be a different request.
pub const KVM_SET_USER_MEMORY_REGIONS_NR: u8 = 0xf9;

/// `KVM_SET_USER_MEMORY_REGIONS`, `_IOWR(KVMIO, 0xf9, struct
/// kvm_userspace_memory_regions)`: a VM ioctl.
///
/// The size encoded is that of the header (64 bytes), as for every KVM ioctl
/// with a flexible array.
pub const KVM_SET_USER_MEMORY_REGIONS: c_ulong = nix::request_code_readwrite!(
    KVMIO,
    KVM_SET_USER_MEMORY_REGIONS_NR,
    size_of::<kvm_userspace_memory_regions>()
) as c_ulong;

/// `KVM_CAP_USER_MEMORY_REGIONS`: asked of a VM fd with `KVM_CHECK_EXTENSION`,
/// it gives the largest `nr` accepted, 0 where the ioctl is absent.
///
/// ASCII `MSLT`. Upstream counts capabilities upwards from 0 and stood below
/// 250 in 2025. Out-of-tree numbers taken just above have collided before:
/// `ChromeOS` took 236 and 239, upstream later gave both another meaning, and
/// crosvm carries a workaround. A number that upstream never reaches avoids
/// the collision with upstream, not one with another out-of-tree patch; hence
/// [`probe`](crate::probe).
pub const KVM_CAP_USER_MEMORY_REGIONS: u32 = 0x4d53_4c54;
