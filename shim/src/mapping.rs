//! Mappings and slots.

use std::fmt;

use kvm_memslots_uapi::MemFlags;

use crate::range::Range;

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

/// Which host memory stands behind which guest addresses, and how. No address
/// in it wraps: guest, host, and offset into a `guest_memfd`.
///
/// ```
/// use kvm_memslots_shim::{Kind, Mapping, MemFlags, Range};
///
/// let range = Range::new(0x10_0000, 0x4000).ok_or("empty, or wraps")?;
/// let ram = Mapping::new(range, 0x7f00_0000_0000, Kind::Ram).ok_or("wraps")?;
/// assert!(ram.with_flags(MemFlags::LOG_DIRTY_PAGES).is_logged());
/// assert_eq!(Mapping::new(range, u64::MAX, Kind::Ram), None);
/// # Ok::<(), &str>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mapping {
    range: Range,
    hva: u64,
    /// Both 0 unless `flags` has `GUEST_MEMFD`.
    memfd_offset: u64,
    memfd: i32,
    /// [`MemFlags`]; userspace has 16 bits of them.
    flags: u16,
    kind: Kind,
}

impl Mapping {
    /// The host memory at `hva` behind `range`, without flags; `None` if its
    /// host addresses wrap.
    #[must_use]
    pub const fn new(range: Range, hva: u64, kind: Kind) -> Option<Self> {
        if hva.checked_add(range.size()).is_none() {
            return None;
        }
        Some(Self { range, hva, memfd_offset: 0, memfd: 0, flags: 0, kind })
    }

    /// All that a mapping is; `None` if any of its addresses wraps.
    #[must_use]
    pub const fn from_parts(
        range: Range,
        hva: u64,
        kind: Kind,
        flags: MemFlags,
        memfd: Option<GuestMemfd>,
    ) -> Option<Self> {
        match (Self::new(range, hva, kind), memfd) {
            (Some(plain), None) => Some(plain.with_flags(flags)),
            (Some(plain), Some(memfd)) => plain.with_flags(flags).with_guest_memfd(memfd),
            (None, _) => None,
        }
    }

    /// The same, with these flags. [`MemFlags::GUEST_MEMFD`] in them has no
    /// say: [`with_guest_memfd`](Self::with_guest_memfd) sets it.
    #[must_use]
    pub const fn with_flags(self, flags: MemFlags) -> Self {
        let memfd = MemFlags::GUEST_MEMFD.bits() as u16;
        Self { flags: flags.bits() as u16 & !memfd | self.flags & memfd, ..self }
    }

    /// The same, as memory of another kind.
    #[must_use]
    pub const fn with_kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// The same with private memory, and [`MemFlags::GUEST_MEMFD`]; `None` if
    /// offsets into the file wrap.
    #[must_use]
    pub const fn with_guest_memfd(self, memfd: GuestMemfd) -> Option<Self> {
        if memfd.offset.checked_add(self.range.size()).is_none() {
            return None;
        }
        let flags = self.flags | MemFlags::GUEST_MEMFD.bits() as u16;
        Some(Self { memfd_offset: memfd.offset, memfd: memfd.fd, flags, ..self })
    }

    /// The guest addresses.
    #[must_use]
    pub const fn range(&self) -> Range {
        self.range
    }

    /// The host virtual address behind the first guest address.
    #[must_use]
    pub const fn hva(&self) -> u64 {
        self.hva
    }

    /// [`MemFlags::GUEST_MEMFD`] is set exactly where
    /// [`guest_memfd`](Self::guest_memfd) is some.
    #[must_use]
    pub const fn flags(&self) -> MemFlags {
        MemFlags::from_bits_retain(self.flags as u32)
    }

    /// What the memory is to the VM.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Private memory, for guests that have it.
    #[must_use]
    pub const fn guest_memfd(&self) -> Option<GuestMemfd> {
        if self.flags().contains(MemFlags::GUEST_MEMFD) {
            Some(GuestMemfd { fd: self.memfd, offset: self.memfd_offset })
        } else {
            None
        }
    }

    /// Whether writes are logged.
    #[must_use]
    pub const fn is_logged(&self) -> bool {
        self.flags().contains(MemFlags::LOG_DIRTY_PAGES)
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
        let memfd = match (self.guest_memfd(), other.guest_memfd()) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                a.fd == b.fd
                    && a.offset.wrapping_sub(self.range.gpa())
                        == b.offset.wrapping_sub(other.range.gpa())
            }
            _ => false,
        };
        memfd && self.kind == other.kind && self.same_host_pages_as(other)
    }

    /// Whether the two put the same host addresses behind the guest addresses
    /// they share.
    #[must_use]
    pub const fn same_host_pages_as(&self, other: &Self) -> bool {
        self.hva.wrapping_sub(self.range.gpa()) == other.hva.wrapping_sub(other.range.gpa())
    }

    /// Whether `next` carries on where `self` ends, so that one slot can hold
    /// both.
    #[must_use]
    pub fn continues_as(&self, next: &Self) -> bool {
        self.range.end() == next.range.gpa() && self.agrees_with(next)
    }

    /// Both as one, where `next` [continues](Self::continues_as) `self`.
    #[must_use]
    pub fn joined(&self, next: &Self) -> Option<Self> {
        if !self.continues_as(next) {
            return None;
        }
        Range::between(self.range.gpa(), next.range.end()).map(|range| Self { range, ..*self })
    }

    /// The part of the mapping that lies in `range`, if any.
    #[must_use]
    pub fn clipped_to(&self, range: Range) -> Option<Self> {
        let range = self.range.intersection(range)?;
        let skipped = range.gpa() - self.range.gpa();
        let memfd_offset = self.guest_memfd().map_or(0, |memfd| memfd.offset + skipped);
        Some(Self { range, hva: self.hva + skipped, memfd_offset, ..*self })
    }

    /// The same memory, seen by the guest at another address; `None` if its
    /// guest addresses would wrap.
    #[must_use]
    pub fn moved_to(&self, gpa: u64) -> Option<Self> {
        Range::new(gpa, self.range.size()).map(|range| Self { range, ..*self })
    }
}

// With the flag and the file together.
#[allow(clippy::missing_fields_in_debug)]
impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("Mapping");
        f.field("range", &self.range).field("hva", &format_args!("{:#x}", self.hva));
        if let Some(memfd) = self.guest_memfd() {
            f.field("guest_memfd", &memfd);
        }
        f.field("flags", &self.flags()).field("kind", &self.kind).finish()
    }
}

/// A mapping that KVM has, under an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The id, in the address space at hand.
    pub id: u16,
    /// What it maps.
    pub mapping: Mapping,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mapping { range, hva, .. } = self.mapping;
        write!(f, "slot {} at GPA {range}, HVA {hva:#x}", self.id)
    }
}
