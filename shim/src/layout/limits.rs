//! What a VM's KVM allows.

/// What a VM's KVM allows, as its capabilities say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
// One for each capability, none of which says anything about another.
#[allow(clippy::struct_excessive_bools)]
pub struct Limits {
    /// Slot ids run from 0 to `slots - 1` in each address space
    /// (`KVM_CAP_NR_MEMSLOTS`).
    pub slots: u32,
    /// Address spaces (`KVM_CAP_MULTI_ADDRESS_SPACE`): 2 on x86 with SMM, else
    /// 1.
    pub address_spaces: u16,
    /// Bytes a page: the granule of GPA, HVA and size.
    pub page_size: u64,
    /// The largest slot, in pages (`KVM_MEM_MAX_NR_PAGES`).
    pub slot_pages: u64,
    /// Whether slots can be read-only (`KVM_CAP_READONLY_MEM`).
    pub readonly: bool,
    /// Whether there is `KVM_SET_USER_MEMORY_REGION2` (`KVM_CAP_USER_MEMORY2`).
    pub region2: bool,
    /// Whether slots can have a `guest_memfd` (`KVM_CAP_GUEST_MEMFD`).
    pub guest_memfd: bool,
    /// The most entries of one batch ioctl; `None` where the kernel lacks it.
    pub batch: Option<u32>,
    /// Whether slots can have [`MemFlags::TRAP`](crate::MemFlags::TRAP).
    pub trap: bool,
}

impl Limits {
    /// `KVM_MEM_MAX_NR_PAGES` in `kvm_main.c`: the dirty log counts pages in an
    /// `int`.
    pub const SLOT_PAGES: u64 = (1 << 31) - 1;

    /// What KVM on x86 allows without SMM, guest memfd, batch ioctl and trap flag:
    /// `KVM_USER_MEM_SLOTS` is `SHRT_MAX` less three internal slots.
    #[must_use]
    pub const fn x86() -> Self {
        Self {
            slots: 32_764,
            address_spaces: 1,
            page_size: 4096,
            slot_pages: Self::SLOT_PAGES,
            readonly: true,
            region2: true,
            guest_memfd: false,
            batch: None,
            trap: false,
        }
    }

    /// The same, with `slots` slot ids.
    #[must_use]
    pub const fn with_slots(self, slots: u32) -> Self {
        Self { slots, ..self }
    }

    /// The same, with a batch ioctl that takes `entries`.
    #[must_use]
    pub const fn with_batch(self, entries: u32) -> Self {
        Self { batch: Some(entries), ..self }
    }

    /// The same, with slots that can trap.
    #[must_use]
    pub const fn with_trap(self) -> Self {
        Self { trap: true, ..self }
    }

    /// The largest slot, in bytes.
    #[must_use]
    pub const fn slot_bytes(&self) -> u64 {
        self.slot_pages * self.page_size
    }
}
