//! Flags of one entry and of the whole batch.

use bitflags::bitflags;

bitflags! {
    /// Flags of one memslot (`KVM_MEM_*` in `linux/kvm.h`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
    pub struct MemFlags: u32 {
        /// `KVM_MEM_LOG_DIRTY_PAGES`: track writes, a bit a page.
        const LOG_DIRTY_PAGES = kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
        /// `KVM_MEM_READONLY`: guest writes exit as MMIO.
        const READONLY = kvm_bindings::KVM_MEM_READONLY;
        /// `KVM_MEM_GUEST_MEMFD`: private memory comes from a `guest_memfd`.
        const GUEST_MEMFD = kvm_bindings::KVM_MEM_GUEST_MEMFD;
        /// `KVM_MEM_TRAP`: the slot stays, and to vCPUs it is as if it were
        /// not there. The last bit that userspace may set: KVM keeps bits 16
        /// to 31 to itself.
        const TRAP = 1 << 15;
    }
}

bitflags! {
    /// Flags of a whole batch (`KVM_MEMORY_REGIONS_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct MemoryRegionsFlags: u32 {
        /// `KVM_MEMORY_REGIONS_DRY_RUN`: validate, change nothing. The only
        /// flag with which `nr` may be 0.
        const DRY_RUN = 1 << 0;
    }
}
