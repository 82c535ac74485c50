//! The ioctl and capability numbers, and why they have the values they have.

use core::ffi::c_ulong;
use core::mem::size_of;

use crate::kvm_userspace_memory_regions;

/// The type byte of every KVM ioctl (`KVMIO` in `linux/kvm.h`).
pub const KVMIO: u8 = 0xae;

/// The sequence number of `KVM_SET_USER_MEMORY_REGIONS` within [`KVMIO`].
///
/// `ioctl-number.rst` gives KVM 0x40 to 0xff. Upstream hands them out upwards:
/// below the device ioctls, which sit at 0xe0 to 0xe3, the highest is 0xd5
/// (`KVM_PRE_FAULT_MEMORY`) in 6.12 and still in 7.2. 0xf9 is beyond both. Size
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

/// `KVM_CAP_MEM_TRAP`: asked of a VM fd with `KVM_CHECK_EXTENSION`, it gives
/// [`MemFlags::TRAP`](crate::MemFlags::TRAP) itself where slots can have that
/// flag, 0 where not.
///
/// ASCII `MSTP`, out of upstream's range as
/// [`KVM_CAP_USER_MEMORY_REGIONS`] is, and believed as little:
/// [`probe_trap`](crate::probe::probe_trap).
pub const KVM_CAP_MEM_TRAP: u32 = 0x4d53_5450;

/// `KVM_CAP_MEM_READONLY_FLIP`: asked of a VM fd with `KVM_CHECK_EXTENSION`, it
/// gives [`MemFlags::READONLY`](crate::MemFlags::READONLY) itself where that flag of
/// a live slot can be made changeable, 0 where not.
///
/// `KVM_ENABLE_CAP` with that flag in `args[0]`, before the first vCPU is
/// created, makes it so. ASCII `MSRO`, out of upstream's range as
/// [`KVM_CAP_USER_MEMORY_REGIONS`] is.
pub const KVM_CAP_MEM_READONLY_FLIP: u32 = 0x4d53_524f;

/// `KVM_CAP_USER_MEMORY_REGIONS`: asked of a VM fd with `KVM_CHECK_EXTENSION`,
/// it gives the largest `nr` accepted, 0 where the ioctl is absent.
///
/// ASCII `MSLT`. Upstream counts capabilities upwards, one by one: the last is
/// 238 in 6.12 and 249 in 7.2. Out-of-tree numbers taken just above collide:
/// the `ChromeOS` 6.6 kernel used 236 for a capability of its own, upstream
/// gave 236 to `KVM_CAP_PRE_FAULT_MEMORY`, and crosvm's replacement, 239, became
/// `KVM_CAP_ARM_WRITABLE_IMP_ID_REGS` (crosvm's `kvm_sys/bindgen.sh` has both,
/// with a warning). A number that upstream never reaches avoids the collision
/// with upstream, not one with another out-of-tree patch; hence
/// [`probe`](crate::probe).
pub const KVM_CAP_USER_MEMORY_REGIONS: u32 = 0x4d53_4c54;
