//! Regions: what a VMM asks for, and how it names what it got.

use std::sync::Arc;

use kvm_memslots_shim::{GuestMemfd, Kind, MemFlags, Range};

use crate::backing::{Access, Backing, FileRange};
use crate::id::id;

id! {
    /// Names a region, of whatever VM it is mapped in. Stays the same, whatever
    /// slots the region is in and wherever it moves, until it is unmapped; never
    /// names another one.
    RegionId, "region"
}

impl RegionId {
    /// A name that no region has yet, for one that is to be mapped.
    #[must_use]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self::next()
    }
}

/// Guest addresses as somebody asks for them, in bytes: checked when a change is
/// applied, so that the error can say which change it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first address.
    pub gpa: u64,
    /// How many bytes.
    pub size: u64,
}

/// `size` bytes at guest address `gpa`.
#[must_use]
pub const fn at(gpa: u64, size: u64) -> Span {
    Span { gpa, size }
}

impl From<std::ops::Range<u64>> for Span {
    /// A range that ends before it starts becomes one that wraps.
    fn from(range: std::ops::Range<u64>) -> Self {
        at(range.start, range.end.wrapping_sub(range.start))
    }
}

impl From<Range> for Span {
    fn from(range: Range) -> Self {
        at(range.gpa(), range.size())
    }
}

/// A region to be mapped.
///
/// ```
/// use kvm_memslots::{Access, Backing, RegionSpec, at};
///
/// # let (hva, size) = (0x7f00_0000_0000, 0x100_0000);
/// // SAFETY: nothing is mapped in this example.
/// let memory = unsafe { Backing::borrowed(hva, size, Access::ReadWrite) };
/// let vga = RegionSpec::device(at(0xf000_0000, size), memory).log_dirty().label("vga");
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct RegionSpec {
    pub(crate) span: Span,
    pub(crate) backing: Backing,
    pub(crate) kind: Kind,
    pub(crate) flags: MemFlags,
    pub(crate) as_id: u16,
    pub(crate) alone: bool,
    pub(crate) permanent: bool,
    pub(crate) deferrable: bool,
    pub(crate) tag: Option<u64>,
    pub(crate) label: Option<Arc<str>>,
}

impl RegionSpec {
    fn new(kind: Kind, span: Span, backing: Backing) -> Self {
        let flags =
            if backing.guest_memfd.is_some() { MemFlags::GUEST_MEMFD } else { MemFlags::empty() };
        Self {
            span,
            backing,
            kind,
            flags,
            as_id: 0,
            alone: false,
            permanent: false,
            deferrable: false,
            tag: None,
            label: None,
        }
    }

    /// System memory at these guest addresses, backed by the first bytes of
    /// `backing`. Read-only where the backing is.
    pub fn ram(span: impl Into<Span>, backing: Backing) -> Self {
        let read_only = backing.access == Access::Read;
        let spec = Self::new(Kind::Ram, span.into(), backing);
        if read_only { spec.read_only() } else { spec }
    }

    /// Read-only memory: guest writes exit as MMIO.
    pub fn rom(span: impl Into<Span>, backing: Backing) -> Self {
        Self::new(Kind::Rom, span.into(), backing).read_only()
    }

    /// Device memory: a BAR backed by host memory. Read-only where the backing
    /// is.
    pub fn device(span: impl Into<Span>, backing: Backing) -> Self {
        Self { kind: Kind::Device, ..Self::ram(span, backing) }
    }

    /// `size` bytes of it, from `offset` on.
    pub(crate) fn part(&self, offset: u64, size: u64) -> Self {
        let gpa = self.span.gpa.saturating_add(offset);
        Self { span: Span { gpa, size }, backing: self.backing.from(offset), ..self.clone() }
    }

    /// In this address space of the VM: 0 unless said otherwise, 1 for SMM on
    /// x86.
    pub fn address_space(mut self, as_id: u16) -> Self {
        self.as_id = as_id;
        self
    }

    /// With [`MemFlags::READONLY`].
    pub fn read_only(mut self) -> Self {
        self.flags |= MemFlags::READONLY;
        self
    }

    /// With [`MemFlags::LOG_DIRTY_PAGES`].
    pub fn log_dirty(mut self) -> Self {
        self.flags |= MemFlags::LOG_DIRTY_PAGES;
        self
    }

    /// The region stays as it is for as long as the VM lives, or changes only
    /// together with its neighbours: on a kernel without the batch ioctl it may
    /// share a slot with other permanent regions that carry on in guest and
    /// host.
    ///
    /// Changing one of several that share a slot replaces the slot, which goes
    /// by the [hole policy](crate::HolePolicy).
    pub fn permanent(mut self) -> Self {
        self.permanent = true;
        self
    }

    /// The region will change alone (a framebuffer whose logging is toggled): it
    /// gets a slot of its own also where sharing one is free, so that its
    /// changes never replace a neighbour's.
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// The guest's accesses exit as MMIO, as if the region were not mapped, until
    /// [`Changes::set_trap`](crate::Changes::set_trap) says otherwise:
    /// [`MemFlags::TRAP`], in a slot of its own.
    pub fn trapped(mut self) -> Self {
        self.flags |= MemFlags::TRAP;
        self.alone()
    }

    /// The region need not be mapped at once: until its map is worth a slot, the
    /// VMM has the guest's accesses served from the same memory
    /// ([`deferred`](crate::deferred)).
    ///
    /// Where the kernel lacks what serves memory that may fault
    /// (`CONFIG_CROSS_MEMORY_ATTACH`), only a backing that
    /// [never faults](Backing::never_faults) waits; others get their slot at once.
    /// What is also logged is at most as large as a slot can be.
    ///
    /// Never for memory that may be executed from: what can be served is loads
    /// and stores, while an instruction fetch from where no slot is ends the
    /// guest.
    pub fn deferrable(mut self) -> Self {
        self.deferrable = true;
        self
    }

    /// The VMM's own name for it, which other regions may have, too.
    pub fn tag(mut self, tag: u64) -> Self {
        self.tag = Some(tag);
        self
    }

    /// A name for errors and traces.
    pub fn label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Where it is to be.
    #[must_use]
    pub const fn span(&self) -> Span {
        self.span
    }

    /// Its host memory.
    #[must_use]
    pub const fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Its flags.
    #[must_use]
    pub const fn flags(&self) -> MemFlags {
        self.flags
    }
}

/// A region as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
// One for each thing that a `RegionSpec` can ask for.
#[allow(clippy::struct_excessive_bools)]
pub struct Region {
    /// Its name.
    pub id: RegionId,
    /// The address space of the VM.
    pub as_id: u16,
    /// The guest addresses, in bytes.
    pub range: Range,
    /// The host virtual address behind `range.gpa()`.
    pub hva: u64,
    /// Private memory, for guests that have it.
    pub guest_memfd: Option<GuestMemfd>,
    /// Where in a file the memory is, where the VMM said so.
    pub file: Option<FileRange>,
    /// Its flags.
    pub flags: MemFlags,
    /// What it is to the VM.
    pub kind: Kind,
    /// Whether it keeps a slot of its own.
    pub alone: bool,
    /// Whether it may share a slot with other permanent ones.
    pub permanent: bool,
    /// Whether it need not be mapped at once.
    pub deferrable: bool,
    /// Whether it is not mapped yet: KVM has no slot for it.
    pub deferred: bool,
    /// The VMM's own name.
    pub tag: Option<u64>,
    /// The label it was mapped with.
    pub label: Option<Arc<str>>,
}
