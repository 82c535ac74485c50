//! The kinds of errors, and how each is said.

use std::sync::Arc;

use kvm_memslots_shim::events::{self, State};
use kvm_memslots_shim::memory::{Op, advice};
use kvm_memslots_shim::uapi::probe::Mismatch;
use kvm_memslots_shim::{Errno, MemFlags, OpenError, Range, Slot};
use thiserror::Error as ThisError;

use super::advice::{count, event_advice, hole_advice, slots_advice};
use super::described::{Described, Part};
use crate::RegionId;
use crate::device::{DeviceId, DevicePart};
use crate::gate::GateError;
use crate::window::WindowError;

/// What is wrong: with a region where the error [names one](super::Error::region).
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file descriptor can't be used.
    #[error(transparent)]
    Open(OpenError),
    /// Another [`Vm`](crate::Vm) of this process has this VM.
    #[error("this process has a Vm on this VM already; share that one (Arc<Vm>)")]
    AlreadyOpen,
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
    /// A backend of the VMM's own says limits that nothing fits.
    #[error(
        "the backend's limits can't be: pages of {page_size:#x} bytes, which has to be a power of \
         two, slots of up to {slot_pages} pages, which has to be at least one, and \
         {address_spaces} address spaces, of which 255 are the most"
    )]
    BackendLimits {
        /// Bytes a page.
        page_size: u64,
        /// Pages of the largest slot.
        slot_pages: u64,
        /// How many address spaces.
        address_spaces: u16,
    },
    /// Called from a callback that runs inside of a change.
    #[error(
        "called from a callback of a change that this thread is applying; do it when that is done"
    )]
    Reentrant,
    /// The process was forked since the VM was opened: the VM is the parent's.
    #[error("this process is a fork of the one that opened the VM, whose memory it can't change")]
    Forked,

    /// A region of no bytes.
    #[error("the size is 0; to remove a region, unmap it")]
    Empty,
    /// An address or a size that is not a multiple of the page size.
    #[error("{part} {value:#x} is not a multiple of the page size, {page_size:#x}")]
    Unaligned {
        /// Which number.
        part: Part,
        /// Its value.
        value: u64,
        /// Bytes a page.
        page_size: u64,
    },
    /// This address, with the size, does not fit 64 bits.
    #[error("{0} plus size wraps around the 64-bit address space")]
    Wraps(Part),
    /// The guest addresses are this region's.
    #[error("overlaps {0}; unmap or shrink that first, in the same set of changes")]
    Overlap(Box<Described>),
    /// The region is larger than its backing.
    #[error("its backing is {len:#x} bytes at HVA {hva:#x}")]
    OutsideBacking {
        /// Where the backing starts.
        hva: u64,
        /// Its size in bytes.
        len: u64,
    },
    /// A writable region of memory that the guest may only read.
    #[error("its backing is read-only (Access::Read), so the region has to be")]
    ReadOnlyBacking,
    /// KVM here has no read-only slots.
    #[error("this KVM has no read-only memslots (KVM_CAP_READONLY_MEM)")]
    ReadOnlyUnsupported,
    /// KVM here has no `guest_memfd`.
    #[error("this KVM has no guest_memfd memslots (KVM_CAP_GUEST_MEMFD)")]
    GuestMemfdUnsupported,
    /// KVM does not allow these flags on a region with a `guest_memfd`.
    #[error(
        "KVM allows no dirty logging, read-only or trapping on a guest_memfd region, \
         asked for {0:?}"
    )]
    GuestMemfdFlags(MemFlags),
    /// KVM here has no trap flag.
    #[error(
        "this KVM's slots can't trap (KVM_CAP_MEM_TRAP, tried only where \
         Builder::allow_scratch_vm was called); unmap the region instead, or let RomDevice choose"
    )]
    TrapUnsupported,
    /// A trap flag for a region that may share its slot.
    #[error("only a region with a slot of its own can trap; map it alone()")]
    NotAlone,
    /// A region whose accesses nobody can serve from host memory, and why.
    #[error("can't be deferrable: {0}")]
    NotDeferrable(&'static str),
    /// A split at this offset, in bytes, leaves nothing on one side.
    #[error("can't be split at offset {0:#x}, only between 0 and its size")]
    SplitOutside(u64),
    /// No region of this VM has this name.
    #[error(
        "{0} is not mapped in this VM: it was unmapped, the changes that map it were not applied, \
         or it is another VM's"
    )]
    UnknownRegion(RegionId),
    /// A region or a device with this name is there: the changes were applied
    /// before.
    #[error("{0} is there already: were these changes applied before?")]
    Twice(Box<str>),
    /// No device of this VM has this name.
    #[error(
        "{id:?} is not attached to this VM: it was detached, the changes that attach it were not \
         applied, or it is another VM's"
    )]
    UnknownDevice {
        /// The id.
        id: DeviceId,
    },
    /// The region's writes are not logged.
    #[error("dirty logging is off; switch it on first (Changes::set_log_dirty)")]
    NotLogged,
    /// There is no memory for as many bits as the region has pages: so many bytes.
    #[error(
        "no memory for its dirty log, {0} bytes; ask for parts of it \
         (Vm::dirty_log_of), and switch logging off before it is moved"
    )]
    NoMemory(u64),
    /// Pages that the region does not have.
    #[error("pages {first} to {end} were asked for, it has {pages}")]
    NoSuchPages {
        /// The first page asked for.
        first: u64,
        /// The one behind the last.
        end: u64,
        /// How many the region has.
        pages: u64,
    },

    /// There are not enough slots, also after merging all that can be.
    #[error(
        "{needed} memslots are needed in address space {as_id}, {available} are available{}",
        slots_advice(*.may_join)
    )]
    TooManySlots {
        /// The address space.
        as_id: u16,
        /// Slots it would have.
        needed: u64,
        /// Slots it can have: KVM's limit less the reserved ids.
        available: u32,
        /// Whether slots that are there could be joined with others to make
        /// room.
        may_join: bool,
    },
    /// A slot id that was to be reserved is in use.
    #[error("slot {id} of address space {as_id} can't be reserved: it is in use")]
    SlotInUse {
        /// The address space.
        as_id: u16,
        /// The id.
        id: u16,
    },
    /// Guest pages that stay mapped would be unmapped for a moment, and the hole
    /// policy does not allow that.
    #[error(
        "GPA {range} would be unmapped for a moment ({count} such ranges); {}",
        hole_advice(*.named)
    )]
    Hole {
        /// The first range.
        range: Range,
        /// How many ranges there are.
        count: usize,
        /// Whether that is a region which the changes name.
        named: bool,
    },
    /// The gate could not pause the vCPUs.
    #[error(transparent)]
    Gate(GateError),
    /// An observer refused.
    #[error("an observer of the layout refused: {0}")]
    Observer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// KVM refused a memslot call; everything before it was undone. Where several
    /// regions share a slot, the one to blame was found by asking KVM for each.
    #[error(
        "KVM refused to change GPA {range}: {errno}{}; the layout is what it was",
        in_the_way.map_or_else(|| advice::change(Some(op), *errno).into(), |what| format!(" ({what} is there)"))
    )]
    Refused {
        /// The call.
        op: Box<Op>,
        /// The guest addresses of what was refused.
        range: Range,
        /// KVM's errno.
        errno: Errno,
        /// A slot of KVM's own that is there, as far as its address tells.
        in_the_way: Option<&'static str>,
    },
    /// KVM refused a call of which it blamed no part; everything before it was
    /// undone.
    #[error("KVM refused a memslot call: {0}{hint}; the layout is what it was", hint = advice::change(None, *.0))]
    RefusedWhole(Errno),
    /// The dirty log could not be read or cleared. Nothing is lost: what was
    /// read before is reported by the next call. With `ENOMEM` KVM was not asked, as
    /// this process has no memory for the log of the slot.
    #[error("the dirty log of {slot}: {errno}{}", advice::dirty_log(*errno))]
    DirtyLog {
        /// The slot.
        slot: Slot,
        /// KVM's errno.
        errno: Errno,
    },
    /// KVM refused a call (`what`), and then to undo one of those before it.
    /// Regions and devices are those from before; KVM has something else. The
    /// next set of changes that is applied, also an empty one, puts it right if
    /// KVM lets it. Host memory that KVM may still map is kept alive.
    #[error(
        "{what}: {errno}; then what was done before could not be undone: {undo_errno}; {} memslots \
         of this change are live, KVM has {} routes, irqfds and ioeventfds too many and {} too \
         few, windows could not be put right {} times; apply a set of changes (an empty one will \
         do) to repair that",
        live.len(), count(surplus), count(missing), windows.len()
    )]
    Stuck {
        /// The call.
        what: Box<str>,
        /// KVM's errno for it.
        errno: Errno,
        /// KVM's errno for the undo.
        undo_errno: Errno,
        /// The slots that really are there, of those that this was about, with
        /// their address spaces.
        live: Vec<(u16, Slot)>,
        /// What KVM has of routes, irqfds, ioeventfds and zones and should not.
        surplus: Box<State>,
        /// What KVM should have of those and has not.
        missing: Box<State>,
        /// Memory of devices that is in a window and should not be, or should be and
        /// is not: where, and why.
        windows: Vec<WindowError>,
    },

    /// Memory of a device can't be placed in its window, or not be removed. What was
    /// done before it was undone.
    #[error(transparent)]
    Window(WindowError),

    /// A length that KVM does not take.
    #[error("an ioeventfd listens to writes of 1, 2, 4 or 8 bytes, or 0 for any, not of {len}")]
    IoeventfdLength {
        /// Bytes.
        len: u32,
    },
    /// A value that no write of that length has.
    #[error("the value {data:#x} can't be asked for with a length of {len}")]
    IoeventfdValue {
        /// Bytes.
        len: u32,
        /// The value.
        data: u64,
    },
    /// An ioeventfd or a zone that ends beyond the last address: by itself, or, where
    /// the error names a region, where that is.
    #[error("{start:#x} plus length, {len}, wraps around the 64-bit address space{}",
        if *.in_region { ", counted from the region's start" } else { "" })]
    EventWraps {
        /// Its address, or its offset from the region's start.
        start: u64,
        /// Bytes.
        len: u32,
        /// Whether it is in a region.
        in_region: bool,
    },
    /// Another device's ioeventfd or zone is there: it has some of the same writes, or
    /// would be unregistered together with a zone.
    #[error("{what}: {other_part} of device \"{other}\" has some of the same writes")]
    EventTaken {
        /// This one.
        what: events::Part,
        /// The device that is there.
        other: Arc<str>,
        /// The part of it.
        other_part: DevicePart,
    },
    /// This VM has no coalesced zones.
    #[error("this VM has no coalesced zones{} ({})", if *.ports { " of ports" } else { "" },
        if *.ports { "KVM_CAP_COALESCED_PIO" } else { "KVM_CAP_COALESCED_MMIO" })]
    NoZones {
        /// Whether it is zones of ports that it lacks.
        ports: bool,
    },
    /// A zone is too short or too long.
    #[error("a coalesced zone has 1 to {} bytes, not {len}", events::Zone::MAX_LEN)]
    ZoneLength {
        /// Bytes.
        len: u32,
    },
    /// The ring of the zones can't be read through this descriptor.
    #[error("no ring of coalesced writes behind this descriptor, which has to be a vCPU's: {0}")]
    NoRing(Errno),
    /// The GSI is in use.
    #[error("GSI {gsi} is taken by {by}; only lines with a resample eventfd can share one")]
    GsiTaken {
        /// The GSI.
        gsi: u32,
        /// By whom.
        by: Box<str>,
    },
    /// A GSI that KVM does not have.
    #[error("GSI {gsi} is beyond KVM's limit: GSIs are below {limit} (KVM_CAP_IRQ_ROUTING)")]
    GsiBeyondLimit {
        /// The GSI.
        gsi: u32,
        /// The first that there is not.
        limit: u32,
    },
    /// All GSIs are in use.
    #[error("no GSI is left of those below {limit} (KVM_CAP_IRQ_ROUTING)")]
    NoGsiLeft {
        /// The limit.
        limit: u32,
    },
    /// More routes than a table holds.
    #[error("{routes} interrupt routes are more than KVM takes, {limit} (KVM_CAP_IRQ_ROUTING)")]
    TooManyRoutes {
        /// With these changes.
        routes: usize,
        /// The limit.
        limit: u32,
    },
    /// The GSI leads to this interrupt controller already.
    #[error("GSI {gsi} has a route to that interrupt controller, or to a message, already")]
    RouteTaken {
        /// The GSI.
        gsi: u32,
    },
    /// A message with a device id on a KVM that knows none.
    #[error("this KVM's messages have no device id (KVM_CAP_MSI_DEVID)")]
    NoDevid,
    /// The device has fewer vectors.
    #[error("the device has {vectors} vectors")]
    NoSuchVector {
        /// How many.
        vectors: usize,
    },
    /// KVM refused a call about routes, irqfds or ioeventfds. What was done
    /// before it was undone.
    #[error("KVM refused to {op}: {errno}{}", event_advice(op, *errno))]
    EventRefused {
        /// The call.
        op: Box<events::Op>,
        /// KVM's errno.
        errno: Errno,
    },

    /// The shim found something that this crate should not have asked for.
    #[error("please report this: {0}")]
    Internal(String),
}
