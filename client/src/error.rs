//! What can be wrong, said so that it can be mended.

use std::fmt;

use kvm_memslots_shim::backend::{Errno, OpenError};
use kvm_memslots_shim::exec::GateError;
use kvm_memslots_shim::uapi::probe::Mismatch;
use kvm_memslots_shim::{Kind, Mapping, MemFlags, Range, Slot};
use thiserror::Error;

use crate::RegionId;

/// A region, as an error names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its id, if it has one.
    pub id: Option<RegionId>,
    /// Its label, if it has one.
    pub label: Option<Box<str>>,
    /// What it is.
    pub kind: Kind,
    /// Its first guest address.
    pub gpa: u64,
    /// Its size in bytes. `gpa + size` may wrap: that may be what is wrong.
    pub size: u64,
    /// The host virtual address behind `gpa`.
    pub hva: u64,
}

impl Described {
    pub(crate) fn new(id: Option<RegionId>, label: Option<&str>, mapping: &Mapping) -> Box<Self> {
        Box::new(Self {
            id,
            label: label.map(Into::into),
            kind: mapping.kind,
            gpa: mapping.range.gpa,
            size: mapping.range.size,
            hva: mapping.hva,
        })
    }
}

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(label) = &self.label {
            write!(f, " \"{label}\"")?;
        }
        if let Some(id) = self.id {
            write!(f, " ({id})")?;
        }
        write!(f, " at GPA {:#x}, size {:#x}, HVA {:#x}", self.gpa, self.size, self.hva)
    }
}

/// Which number of a region is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The guest physical address.
    Gpa,
    /// The host virtual address.
    Hva,
    /// The size.
    Size,
    /// The offset into the `guest_memfd`.
    MemfdOffset,
    /// Where to split.
    SplitOffset,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gpa => "GPA",
            Self::Hva => "HVA",
            Self::Size => "size",
            Self::MemfdOffset => "guest_memfd offset",
            Self::SplitOffset => "split offset",
        })
    }
}

/// Why something was not done. In every case but [`Error::Stuck`] the layout
/// is what it was.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The file descriptor can't be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The VM has fewer address spaces.
    #[error(
        "address space {asked} was asked for, this VM has {available} (KVM_CAP_MULTI_ADDRESS_SPACE)"
    )]
    NoSuchAddressSpace {
        /// The id asked for.
        asked: u16,
        /// How many there are.
        available: u16,
    },
    /// The batch executor was asked for and can't be had.
    #[error("this kernel has no KVM_SET_USER_MEMORY_REGIONS; use Executor::Auto to do without")]
    NoBatchIoctl,

    /// The batch executor was asked for, and the kernel claims the capability
    /// but does not answer as the ABI says: the number means something else
    /// there.
    #[error(
        "this kernel claims KVM_CAP_USER_MEMORY_REGIONS ({claimed} entries) but has another ioctl \
         there: {mismatch}; use Executor::Auto to do without"
    )]
    ImpostorBatchIoctl {
        /// What the capability claims.
        claimed: u32,
        /// The answer that gave it away.
        mismatch: Mismatch,
    },

    /// A region of no bytes.
    #[error("{region}: the size is 0; to remove a region, unmap it")]
    Empty {
        /// The region.
        region: Box<Described>,
    },
    /// An address or a size that is not a multiple of the page size.
    #[error("{region}: {part} {value:#x} is not a multiple of the page size, {page_size:#x}")]
    Unaligned {
        /// The region.
        region: Box<Described>,
        /// Which number.
        part: Part,
        /// Its value.
        value: u64,
        /// Bytes a page.
        page_size: u64,
    },
    /// `address + size` does not fit 64 bits.
    #[error("{region}: {part} plus size wraps around the 64-bit address space")]
    Wraps {
        /// The region.
        region: Box<Described>,
        /// Which address.
        part: Part,
    },
    /// Larger than KVM's largest slot.
    #[error("{region}: KVM's largest slot is {limit:#x} bytes; map it as several regions")]
    TooLarge {
        /// The region.
        region: Box<Described>,
        /// The limit in bytes.
        limit: u64,
    },
    /// The guest addresses are taken.
    #[error("{region} overlaps {other}; unmap or shrink that first, in the same transaction")]
    Overlap {
        /// The region that was to be mapped or to grow.
        region: Box<Described>,
        /// The region that is there.
        other: Box<Described>,
    },
    /// The host addresses are not inside the memory that is to keep them alive.
    #[error("{region}: the host memory given with it is {size:#x} bytes at HVA {hva:#x}")]
    OutsideHostMemory {
        /// The region.
        region: Box<Described>,
        /// Where the memory starts.
        hva: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// KVM here has no read-only slots.
    #[error("{region}: this KVM has no read-only memslots (KVM_CAP_READONLY_MEM)")]
    ReadOnlyUnsupported {
        /// The region.
        region: Box<Described>,
    },
    /// KVM here has no `guest_memfd`.
    #[error("{region}: this KVM has no guest_memfd memslots (KVM_CAP_GUEST_MEMFD)")]
    GuestMemfdUnsupported {
        /// The region.
        region: Box<Described>,
    },
    /// KVM does not allow these flags on a region with a `guest_memfd`.
    #[error(
        "{region}: KVM allows no dirty logging, read-only or trapping on a guest_memfd region, asked for {flags:?}"
    )]
    GuestMemfdFlags {
        /// The region.
        region: Box<Described>,
        /// The flags that are not allowed.
        flags: MemFlags,
    },
    /// `set_flags` with something other than dirty logging and read-only.
    #[error("{region}: only LOG_DIRTY_PAGES and READONLY can be set, asked for {flags:?}")]
    FlagsNotSettable {
        /// The region.
        region: Box<Described>,
        /// The flags asked for.
        flags: MemFlags,
    },
    /// KVM here has no trap flag.
    #[error(
        "{region}: this KVM's slots can't trap (KVM_CAP_MEM_TRAP); unmap the region instead, or \
         let RomDevice choose"
    )]
    TrapUnsupported {
        /// The region.
        region: Box<Described>,
    },
    /// A trap flag for a region that shares its slot.
    #[error(
        "{region}: only a region with a slot of its own can trap; map it with RegionSpec::alone"
    )]
    NotAlone {
        /// The region.
        region: Box<Described>,
    },
    /// A region whose accesses nobody can serve from host memory.
    #[error("{region} can't be deferrable: {why}")]
    NotDeferrable {
        /// The region.
        region: Box<Described>,
        /// What is in the way.
        why: &'static str,
    },
    /// `shrink` to something larger.
    #[error("{region}: shrinking to {size:#x} bytes would grow it; use resize")]
    NotSmaller {
        /// The region.
        region: Box<Described>,
        /// The size asked for, in bytes.
        size: u64,
    },
    /// A split that leaves nothing on one side.
    #[error("{region}: can't be split at offset {offset:#x}, only between 0 and its size")]
    SplitOutside {
        /// The region.
        region: Box<Described>,
        /// The offset in bytes.
        offset: u64,
    },

    /// This id was never given out here.
    #[error("{id} does not exist; this is address space {space}")]
    UnknownRegion {
        /// The id.
        id: RegionId,
        /// The address space asked.
        space: u32,
    },
    /// The region was unmapped, or its transaction was not committed.
    #[error("{id} is not mapped any more")]
    StaleRegion {
        /// The id.
        id: RegionId,
    },
    /// The id is of another address space.
    #[error("{id} was used on address space {space}; ids are valid on their own only")]
    ForeignRegion {
        /// The id.
        id: RegionId,
        /// The address space asked.
        space: u32,
    },
    /// The region's writes are not logged.
    #[error("{region}: dirty logging is off; set LOG_DIRTY_PAGES and commit first")]
    NotLogged {
        /// The region.
        region: Box<Described>,
    },
    /// A dirty bitmap of another size than the region.
    #[error("{region}: the bitmap is of {pages} pages, the region of {expected}")]
    BitmapSize {
        /// The region.
        region: Box<Described>,
        /// Pages in the bitmap.
        pages: u64,
        /// Pages in the region.
        expected: u64,
    },

    /// There are not enough slots, also after merging all that can be.
    #[error("{needed} memslots are needed, {available} are available")]
    TooManySlots {
        /// Slots the address space would have.
        needed: u64,
        /// Slots it can have: KVM's limit less the reserved ids.
        available: u32,
    },
    /// A slot id that was to be reserved is in use.
    #[error("slot {id} can't be reserved: this address space uses it")]
    SlotInUse {
        /// The id.
        id: u16,
    },
    /// Without the batch ioctl, guest pages that stay mapped would be unmapped
    /// for a moment, and nobody said how to keep vCPUs from noticing.
    #[error(
        "GPA {range} would be unmapped for a moment ({count} such ranges), {}; supply a gate \
         that pauses vCPUs (HolePolicy::Gate), or say that none runs (HolePolicy::NoVcpuRuns)",
        of(.region.as_deref())
    )]
    Hole {
        /// The first range.
        range: Range,
        /// How many ranges there are.
        count: usize,
        /// The region there.
        region: Option<Box<Described>>,
    },
    /// The gate could not pause the vCPUs.
    #[error(transparent)]
    Gate(GateError),
    /// KVM refused a call; everything before it was undone.
    #[error(
        "KVM refused to change GPA {range}, {}: {errno}{}; the layout is what it was",
        of(.region.as_deref()),
        advice(*.errno)
    )]
    Refused {
        /// The guest addresses of the slot that was refused.
        range: Range,
        /// A region there.
        region: Option<Box<Described>>,
        /// KVM's errno.
        errno: Errno,
    },
    /// KVM refused a call of which it blamed no part; everything before it was
    /// undone.
    #[error("KVM refused a memslot call: {errno}{}; the layout is what it was", advice(*.errno))]
    RefusedWhole {
        /// KVM's errno.
        errno: Errno,
    },
    /// KVM refused a call, and then to undo one of those before it. The regions
    /// are those from before; `live` are the slots that really are there of
    /// those the commit was about. The next commit, also an empty one, tries to
    /// put it right.
    #[error(
        "KVM refused a memslot call ({errno}) and then to undo those before it ({undo_errno}); \
         {} slots of this commit are live; commit again to repair the layout",
        .live.len()
    )]
    Stuck {
        /// KVM's errno for the call.
        errno: Errno,
        /// KVM's errno for the undo.
        undo_errno: Errno,
        /// What is really live.
        live: Vec<Slot>,
    },
    /// The dirty log could not be read or cleared. Nothing is lost: what was
    /// read before is reported by the next call.
    #[error("the dirty log of {slot}: {errno}{}", dirty_advice(*.errno))]
    DirtyLog {
        /// The slot.
        slot: Slot,
        /// KVM's errno.
        errno: Errno,
    },
    /// The shim found something that this crate should not have asked for.
    #[error("please report this: {0}")]
    Internal(String),
}

fn of(region: Option<&Described>) -> String {
    region.map_or_else(|| String::from("no region of this address space"), ToString::to_string)
}

/// What an errno of `KVM_SET_USER_MEMORY_REGION` means to the one who asked.
fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::EEXIST => {
            ": a memslot that this address space does not know is there; slots that the VMM makes \
             itself must not overlap its regions, and their ids must be reserved \
             (Builder::reserve_slots)"
        }
        Errno::EINVAL => {
            ": an address beyond what this VM can have (guest physical address bits, user \
             addresses), or a slot id in use behind the library's back"
        }
        Errno::ENOMEM => ": out of kernel memory, or over the cgroup's limit",
        Errno::EINTR => ": signals kept interrupting it",
        Errno::EIO => ": the VM belongs to another process, or is dead",
        Errno::EBADF => ": the guest_memfd is not an open file",
        _ => "",
    }
}

fn dirty_advice(errno: Errno) -> &'static str {
    match errno {
        Errno::ENXIO => ": this VM has a dirty ring, which replaces the bitmap",
        Errno::ENOENT => ": KVM does not log this slot; was it changed behind the library's back?",
        _ => "",
    }
}
