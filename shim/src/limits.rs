//! What a VM's KVM allows.

/// What a VM's KVM allows of its memslots, as its capabilities say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
// One for each capability, none of which says anything about another.
#[allow(clippy::struct_excessive_bools)]
#[non_exhaustive]
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

    /// The same, with so many address spaces.
    #[must_use]
    pub const fn with_address_spaces(self, address_spaces: u16) -> Self {
        Self { address_spaces, ..self }
    }

    /// The same, with pages of so many bytes.
    #[must_use]
    pub const fn with_page_size(self, page_size: u64) -> Self {
        Self { page_size, ..self }
    }

    /// The same, with slots of at most `slot_pages` pages.
    #[must_use]
    pub const fn with_slot_pages(self, slot_pages: u64) -> Self {
        Self { slot_pages, ..self }
    }

    /// The same, with or without read-only slots.
    #[must_use]
    pub const fn with_readonly(self, readonly: bool) -> Self {
        Self { readonly, ..self }
    }

    /// The same, with slots that can have a `guest_memfd`.
    #[must_use]
    pub const fn with_guest_memfd(self) -> Self {
        Self { guest_memfd: true, ..self }
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
        self.slot_pages.saturating_mul(self.page_size)
    }

    /// What an extent that is larger than [`slot_bytes`](Self::slot_bytes) is
    /// cut into: whole GiB where a slot can have that many, so that huge pages
    /// are cut nowhere.
    #[must_use]
    pub const fn piece_bytes(&self) -> u64 {
        const GIB: u64 = 1 << 30;
        let limit = self.slot_bytes();
        if limit >= GIB { limit & !(GIB - 1) } else { limit }
    }
}

/// What a VM's KVM allows of its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventLimits {
    /// GSIs run from 0 to `routes - 1`, and a table has at most this many
    /// routes (`KVM_CAP_IRQ_ROUTING`).
    pub routes: u32,
    /// Whether `KVM_IRQFD_FLAG_NO_IRQBYPASS` can be used.
    pub no_irqbypass: bool,
    /// Whether an MSI route can name its device (`KVM_CAP_MSI_DEVID`).
    pub devid: bool,
    /// Coalesced zones.
    pub zones: ZoneLimits,
}

impl EventLimits {
    /// What KVM on x86 allows, before `KVM_IRQFD_FLAG_NO_IRQBYPASS`.
    #[must_use]
    pub const fn x86() -> Self {
        Self { routes: 4096, no_irqbypass: false, devid: false, zones: ZoneLimits::x86() }
    }
}

/// What a VM's KVM allows of coalesced zones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ZoneLimits {
    /// The page of a vCPU's `mmap` that is the ring; `None` where there are no
    /// zones (`KVM_CAP_COALESCED_MMIO`).
    pub ring_page: Option<u32>,
    /// Whether there are zones of ports (`KVM_CAP_COALESCED_PIO`).
    pub pio: bool,
}

impl ZoneLimits {
    /// What x86 allows: the ring is behind `kvm_run` and the page of ports
    /// (`KVM_COALESCED_MMIO_PAGE_OFFSET`).
    #[must_use]
    pub const fn x86() -> Self {
        Self { ring_page: Some(2), pio: true }
    }
}
