//! Mappings, slots and extents.

use std::fmt;

use kvm_memslots_uapi::{MemFlags, kvm_userspace_memory_region2};

/// A range of guest physical addresses, in bytes. Never wraps: `gpa + size`
/// fits a `u64`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    /// The first address.
    pub gpa: u64,
    /// Length in bytes.
    pub size: u64,
}

impl Range {
    /// The range of `size` bytes from `gpa`.
    #[must_use]
    pub const fn new(gpa: u64, size: u64) -> Self {
        Self { gpa, size }
    }

    /// The range from `gpa` up to, not including, `end`.
    #[must_use]
    pub const fn between(gpa: u64, end: u64) -> Self {
        Self { gpa, size: end - gpa }
    }

    /// The first address behind the range.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.gpa + self.size
    }

    /// Whether the two share an address.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.gpa < other.end() && other.gpa < self.end()
    }

    /// What the two share, if anything.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        let gpa = self.gpa.max(other.gpa);
        let end = self.end().min(other.end());
        (gpa < end).then(|| Self::between(gpa, end))
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One that wraps can still be named in an error.
        write!(f, "[{:#x}, {:#x})", self.gpa, self.gpa.wrapping_add(self.size))
    }
}

/// What the memory is to the VM. KVM does not know; mappings of different
/// kinds never share a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Kind {
    /// System memory.
    #[default]
    Ram,
    /// Firmware, option ROMs, flash in array mode.
    Rom,
    /// Device memory: a BAR backed by host memory.
    Device,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ram => "RAM",
            Self::Rom => "ROM",
            Self::Device => "device memory",
        })
    }
}

/// Private memory of a mapping: a `guest_memfd` and where in it the mapping
/// starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuestMemfd {
    /// The file descriptor, from `KVM_CREATE_GUEST_MEMFD` of the same VM. Two
    /// mappings are of the same file if they name the same descriptor.
    pub fd: i32,
    /// Bytes from the start of the file.
    pub offset: u64,
}

/// Which host memory stands behind which guest addresses, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The guest addresses.
    pub range: Range,
    /// The host virtual address behind `range.gpa`.
    pub hva: u64,
    /// Private memory, for guests that have it.
    pub guest_memfd: Option<GuestMemfd>,
    /// [`MemFlags::LOG_DIRTY_PAGES`], [`MemFlags::READONLY`] and
    /// [`MemFlags::TRAP`];
    /// [`MemFlags::GUEST_MEMFD`] is set exactly where `guest_memfd` is some.
    pub flags: MemFlags,
    /// What the memory is to the VM.
    pub kind: Kind,
}

impl Mapping {
    /// Plain RAM: `size` bytes at `gpa`, backed by the host memory at `hva`.
    #[must_use]
    pub const fn ram(gpa: u64, size: u64, hva: u64) -> Self {
        Self {
            range: Range::new(gpa, size),
            hva,
            guest_memfd: None,
            flags: MemFlags::empty(),
            kind: Kind::Ram,
        }
    }

    /// Whether a guest access to `gpa`, in both mappings, reaches the same
    /// host memory under the same flags and kind.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        self.flags == other.flags && self.same_memory_as(other)
    }

    /// [`agrees_with`](Self::agrees_with), whatever the flags.
    #[must_use]
    pub fn same_memory_as(&self, other: &Self) -> bool {
        let memfd = match (self.guest_memfd, other.guest_memfd) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                a.fd == b.fd
                    && a.offset.wrapping_sub(self.range.gpa)
                        == b.offset.wrapping_sub(other.range.gpa)
            }
            _ => false,
        };
        memfd && self.kind == other.kind && self.same_host_pages_as(other)
    }

    /// Whether the two put the same host addresses behind the guest addresses
    /// they share.
    #[must_use]
    pub const fn same_host_pages_as(&self, other: &Self) -> bool {
        self.hva.wrapping_sub(self.range.gpa) == other.hva.wrapping_sub(other.range.gpa)
    }

    /// Whether `next` carries on where `self` ends, so that one slot can hold
    /// both.
    #[must_use]
    pub fn continues_as(&self, next: &Self) -> bool {
        self.range.end() == next.range.gpa && self.agrees_with(next)
    }

    /// The part of the mapping that lies in `range`, if any.
    #[must_use]
    pub fn clipped_to(&self, range: Range) -> Option<Self> {
        let range = self.range.intersection(range)?;
        let skipped = range.gpa - self.range.gpa;
        Some(Self {
            range,
            hva: self.hva + skipped,
            guest_memfd: self
                .guest_memfd
                .map(|memfd| GuestMemfd { offset: memfd.offset + skipped, ..memfd }),
            ..*self
        })
    }

    /// The same memory, seen by the guest at another address.
    #[must_use]
    pub const fn moved_to(&self, gpa: u64) -> Self {
        Self { range: Range::new(gpa, self.range.size), ..*self }
    }

    /// Whether writes are logged.
    #[must_use]
    pub const fn is_logged(&self) -> bool {
        self.flags.contains(MemFlags::LOG_DIRTY_PAGES)
    }
}

/// A mapping that KVM has, under an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The id, in the address space at hand.
    pub id: u16,
    /// What it maps.
    pub mapping: Mapping,
}

impl Slot {
    /// The slot as KVM takes it; `as_id` goes into bits 16 to 31 of `slot`,
    /// where the single-region ioctls expect it.
    #[must_use]
    pub fn to_kvm(&self, as_id: u16) -> kvm_userspace_memory_region2 {
        let memfd = self.mapping.guest_memfd;
        kvm_userspace_memory_region2 {
            slot: u32::from(as_id) << 16 | u32::from(self.id),
            flags: self.mapping.flags.bits(),
            guest_phys_addr: self.mapping.range.gpa,
            memory_size: self.mapping.range.size,
            userspace_addr: self.mapping.hva,
            guest_memfd_offset: memfd.map_or(0, |memfd| memfd.offset),
            guest_memfd: memfd.map_or(0, |memfd| u32::from_ne_bytes(memfd.fd.to_ne_bytes())),
            ..Default::default()
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {} at GPA {}, HVA {:#x}", self.id, self.mapping.range, self.mapping.hva)
    }
}

/// A mapping that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// What is to be mapped.
    pub mapping: Mapping,
    /// It will change alone: it gets a slot that holds nothing else, and one
    /// only.
    pub alone: bool,
}
