//! What the modelled VM and its host allow.

use crate::errno::Errno;
use crate::limits::Limits;
use crate::range::Range;

/// How the VM tracks dirty pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DirtyTracking {
    /// A bitmap a slot; `KVM_GET_DIRTY_LOG` clears what it reports.
    #[default]
    Bitmap,
    /// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`: a bitmap a slot, and only
    /// `KVM_CLEAR_DIRTY_LOG` clears.
    ManualProtect {
        /// `KVM_DIRTY_LOG_INITIALLY_SET`: every page of a slot is dirty when
        /// logging starts.
        initially_set: bool,
    },
    /// `KVM_CAP_DIRTY_LOG_RING` without the bitmap beside it: slots have no
    /// bitmaps, the dirty log ioctls answer `ENXIO`
    /// (`kvm_use_dirty_bitmap()`).
    Ring,
}

/// What the modelled VM and its host allow, in addition to [`Limits`].
///
/// The defaults are those of a fresh x86 VM (`KVM_CREATE_VM` with type 0) on
/// a host with 4-level paging and KVM without two-dimensional paging.
///
/// ```
/// use kvm_memslots_shim::Limits;
/// use kvm_memslots_shim::memory::model::{DirtyTracking, Model, ModelConfig};
///
/// let model = Model::with_config(
///     ModelConfig::new(Limits::x86())
///         .guest_physical_bits(40)
///         .dirty_tracking(DirtyTracking::ManualProtect { initially_set: true }),
/// );
/// assert_eq!(model.slot_count(0), 0);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelConfig {
    pub(super) limits: Limits,
    pub(super) guest_physical_bits: u32,
    pub(super) beyond: Errno,
    pub(super) bound: Errno,
    pub(super) hva_end: u64,
    pub(super) dirty: DirtyTracking,
    pub(super) internal: Vec<Range>,
}

impl ModelConfig {
    /// `kvm_mmu_max_gfn()` without two-dimensional paging: guest physical
    /// addresses have 52 bits. With it, they have as many as the host's.
    pub const GUEST_PHYSICAL_BITS: u32 = 52;

    /// `TASK_SIZE_MAX` with 4-level paging: `access_ok()` takes host ranges
    /// that end here or below.
    pub const HVA_END: u64 = (1 << 47) - 4096;

    /// The defaults, with these limits.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            guest_physical_bits: Self::GUEST_PHYSICAL_BITS,
            beyond: Errno::EINVAL,
            bound: Errno::EINVAL,
            hva_end: Self::HVA_END,
            dirty: DirtyTracking::Bitmap,
            internal: Vec::new(),
        }
    }

    /// Guest physical addresses have `bits` bits, at most 64; a slot that
    /// reaches beyond is refused (`kvm_mmu_max_gfn()`).
    #[must_use]
    pub fn guest_physical_bits(mut self, bits: u32) -> Self {
        self.guest_physical_bits = bits.min(64);
        self
    }

    /// What a slot that reaches beyond the guest physical addresses is refused
    /// with: `EINVAL` on x86, `EFAULT` on arm64
    /// (`kvm_arch_prepare_memory_region()`).
    #[must_use]
    pub fn beyond_errno(mut self, errno: Errno) -> Self {
        self.beyond = errno;
        self
    }

    /// What a range of a `guest_memfd` that a slot holds already is refused
    /// with: `EINVAL` on Linux 6.12, `EEXIST` on 7.2 (`kvm_gmem_bind()`).
    #[must_use]
    pub fn bound_errno(mut self, errno: Errno) -> Self {
        self.bound = errno;
        self
    }

    /// Host ranges end at `end` or below (`access_ok()`).
    #[must_use]
    pub fn hva_end(mut self, end: u64) -> Self {
        self.hva_end = end;
        self
    }

    /// How the VM tracks dirty pages.
    #[must_use]
    pub fn dirty_tracking(mut self, dirty: DirtyTracking) -> Self {
        self.dirty = dirty;
        self
    }

    /// KVM holds a slot of its own at `range`, in address space 0: the task
    /// state segment or the identity map of `KVM_SET_TSS_ADDR` and
    /// `KVM_SET_IDENTITY_MAP_ADDR`, the APIC access page. A guest sees nothing
    /// there; a slot that overlaps it is refused with `EEXIST`.
    #[must_use]
    pub fn internal_slot(mut self, range: Range) -> Self {
        self.internal.push(range);
        self
    }

    /// The first guest physical address that no slot can hold; `None` if there
    /// is none.
    pub(super) const fn gpa_end(&self) -> Option<u64> {
        1_u64.checked_shl(self.guest_physical_bits)
    }
}
