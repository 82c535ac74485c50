//! Regions: what a VMM asks for, and how it names what it got.

use std::fmt;

use kvm_memslots_shim::{Extent, GuestMemfd, Kind, Mapping, MemFlags, Range};

use crate::error::Described;

/// Names a region of one address space. Stays the same, whatever slots the
/// region is in, until the region is unmapped; never names another region
/// afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionId {
    pub(crate) space: u32,
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "region {}.{} of address space {}", self.index, self.generation, self.space)
    }
}

impl fmt::Debug for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl RegionId {
    /// The id as three numbers, for languages that keep it as such: which
    /// address space of this process, which region of it, which generation.
    #[must_use]
    pub const fn to_raw(self) -> (u32, u32, u32) {
        (self.space, self.index, self.generation)
    }

    /// The id that [`to_raw`](Self::to_raw) gave. Numbers that never were an id
    /// are refused where they are used.
    #[must_use]
    pub const fn from_raw(space: u32, index: u32, generation: u32) -> Self {
        Self { space, index, generation }
    }
}

/// A region to be mapped.
///
/// ```
/// use kvm_memslots::{MemFlags, RegionSpec};
///
/// let vga = RegionSpec::device(0xf000_0000, 0x100_0000, 0x7f00_0000_0000)
///     .label("vga framebuffer")
///     .log_dirty()
///     .alone();
/// assert_eq!(vga.flags(), MemFlags::LOG_DIRTY_PAGES);
/// ```
#[derive(Debug, Clone)]
pub struct RegionSpec {
    pub(crate) extent: Extent,
    pub(crate) deferrable: bool,
    pub(crate) label: Option<Box<str>>,
}

impl RegionSpec {
    fn new(kind: Kind, gpa: u64, size: u64, hva: u64) -> Self {
        let mapping = Mapping {
            // Not checked here: `Transaction::map` says what is wrong with it.
            range: Range::new(gpa, size),
            hva,
            guest_memfd: None,
            flags: MemFlags::empty(),
            kind,
        };
        Self { extent: Extent { mapping, alone: false }, deferrable: false, label: None }
    }

    /// System memory: `size` bytes at `gpa`, backed by the host memory at
    /// `hva`.
    #[must_use]
    pub fn ram(gpa: u64, size: u64, hva: u64) -> Self {
        Self::new(Kind::Ram, gpa, size, hva)
    }

    /// Read-only memory: guest writes exit as MMIO.
    #[must_use]
    pub fn rom(gpa: u64, size: u64, hva: u64) -> Self {
        Self::new(Kind::Rom, gpa, size, hva).read_only()
    }

    /// Device memory: a BAR backed by host memory.
    #[must_use]
    pub fn device(gpa: u64, size: u64, hva: u64) -> Self {
        Self::new(Kind::Device, gpa, size, hva)
    }

    /// With [`MemFlags::READONLY`].
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.extent.mapping.flags |= MemFlags::READONLY;
        self
    }

    /// With [`MemFlags::LOG_DIRTY_PAGES`].
    #[must_use]
    pub fn log_dirty(mut self) -> Self {
        self.extent.mapping.flags |= MemFlags::LOG_DIRTY_PAGES;
        self
    }

    /// With private memory from the `guest_memfd` `fd`, starting `offset` bytes
    /// into it. `fd` must name the same file for as long as the region lives.
    #[must_use]
    pub fn guest_memfd(mut self, fd: i32, offset: u64) -> Self {
        self.extent.mapping.guest_memfd = Some(GuestMemfd { fd, offset });
        self.extent.mapping.flags |= MemFlags::GUEST_MEMFD;
        self
    }

    /// The region will change alone (a framebuffer whose logging is toggled, a
    /// BAR that is remapped): it gets a slot of its own, so that its changes
    /// never take a neighbour's slot along.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.extent.alone = true;
        self
    }

    /// The guest's accesses exit as MMIO, as if the region were not mapped,
    /// until [`AddressSpace::set_trap`](crate::AddressSpace::set_trap) says
    /// otherwise: [`MemFlags::TRAP`], in a slot of its own.
    #[must_use]
    pub fn trapped(mut self) -> Self {
        self.extent.mapping.flags |= MemFlags::TRAP;
        self.alone()
    }

    /// The region need not be mapped at once: until its map is worth a slot,
    /// the VMM has the guest's accesses served from the same memory
    /// ([`deferred`](crate::deferred)).
    ///
    /// Never for memory that may be executed from: what can be served is loads
    /// and stores, while an instruction fetch from where no slot is ends the
    /// guest.
    #[must_use]
    pub fn deferrable(mut self) -> Self {
        self.deferrable = true;
        self
    }

    /// A name for errors and traces.
    #[must_use]
    pub fn label(mut self, label: impl Into<Box<str>>) -> Self {
        self.label = Some(label.into());
        self
    }

    pub(crate) fn described(&self) -> Box<Described> {
        Described::new(None, self.label.as_deref(), &self.extent.mapping)
    }

    /// The flags.
    #[must_use]
    pub const fn flags(&self) -> MemFlags {
        self.extent.mapping.flags
    }
}

/// A region as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region<'a> {
    /// Its name.
    pub id: RegionId,
    /// The guest addresses, in bytes.
    pub range: Range,
    /// The host virtual address behind `range.gpa`.
    pub hva: u64,
    /// Private memory, for guests that have it.
    pub guest_memfd: Option<GuestMemfd>,
    /// Its flags.
    pub flags: MemFlags,
    /// What it is to the VM.
    pub kind: Kind,
    /// Whether it keeps a slot of its own.
    pub alone: bool,
    /// Whether it need not be mapped at once.
    pub deferrable: bool,
    /// Whether it is not mapped yet: KVM has no slot for it.
    pub deferred: bool,
    /// The label it was mapped with.
    pub label: Option<&'a str>,
}

impl fmt::Debug for dyn HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hva, size) = self.range();
        write!(f, "{size:#x} bytes at HVA {hva:#x}")
    }
}

/// Host memory that stays mapped for as long as somebody holds it, so that it
/// can be mapped into a guest safely.
///
/// # Safety
/// For as long as the object lives, the memory that [`range`](Self::range)
/// names stays mapped, does not change its address, and is only accessed in
/// ways that expect others to read and write it at any time (volatile or
/// atomic accesses; no Rust references to it).
pub unsafe trait HostMemory: Send + Sync {
    /// The host virtual address and the length in bytes.
    fn range(&self) -> (u64, u64);
}
