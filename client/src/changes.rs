//! A set of changes of a VM, as a value.

mod outcome;

use std::os::fd::AsRawFd;

use kvm_memslots_shim::MemFlags;

use crate::device::{Device, DeviceId, Event, Msi, Route};
use crate::{Backing, RegionId, RegionSpec};
use outcome::Outcome;

/// One change of a set.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Map(RegionId, RegionSpec),
    Unmap(RegionId),
    Resize(RegionId, u64),
    /// The second id is of the upper part.
    Split(RegionId, RegionId, u64),
    /// The flags to be set, of these.
    Flags(RegionId, MemFlags, MemFlags),
    Move(RegionId, u64),
    Replace(RegionId, Box<Backing>),
    Join(RegionId),
    /// Of a device, in its window.
    MoveInWindow(RegionId, u64),
    Attach(DeviceId, Box<Device>),
    Detach(DeviceId),
    Vector(DeviceId, usize, Option<Msi>),
    VectorFd(DeviceId, usize, Event),
    /// Of all devices, or of this one.
    AssignDeferred(Option<DeviceId>),
    OwnRoutes(Vec<Route>),
}

/// Changes of a VM that are applied together, all or nothing, with
/// [`Vm::apply`](crate::Vm::apply): memory of every address space, and devices.
///
/// A value that borrows nothing: it can be built without the VM, in a callback,
/// piece by piece. Changes take effect as if one after the other, and may refer
/// to regions that an earlier one maps. Nothing is checked before they are
/// applied; the error then says which change it is about, by its
/// [number](crate::Error::change) in the set.
///
/// ```
/// use kvm_memslots::{Access, Backing, Changes, RegionSpec};
///
/// # let hva = 0x7f00_0000_0000;
/// let mut c = Changes::new();
/// // SAFETY: nothing is mapped in this example.
/// let memory = unsafe { Backing::borrowed(hva, 1 << 30, Access::ReadWrite) };
/// let ram = c.map(RegionSpec::ram(0..1 << 30, memory).permanent());
/// c.set_log_dirty(ram, true);
/// assert_eq!(c.len(), 2);
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "changes do nothing before they are applied"]
pub struct Changes {
    pub(crate) list: Vec<Change>,
}

impl Changes {
    /// None.
    pub const fn new() -> Self {
        Self { list: Vec::new() }
    }

    /// Whether to drop one of them may run somebody's code.
    pub(crate) fn own_something(&self) -> bool {
        self.list.iter().any(|change| match change {
            Change::Map(_, spec) => spec.backing.is_somebodys(),
            Change::Replace(..) | Change::Attach(..) | Change::VectorFd(..) => true,
            _ => false,
        })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Adds the changes of `other` behind these.
    pub fn append(&mut self, mut other: Self) {
        self.list.append(&mut other.list);
    }

    /// Maps a region, under a new name.
    pub fn map(&mut self, spec: RegionSpec) -> RegionId {
        let id = RegionId::new();
        self.map_as(id, spec);
        id
    }

    /// Maps a region under a name that no region has at this point of the set
    /// ([`RegionId::new`]): a region that was unmapped before can have its own again.
    pub fn map_as(&mut self, id: RegionId, spec: RegionSpec) {
        self.list.push(Change::Map(id, spec));
    }

    /// Unmaps a region. Its last dirty bits come with the
    /// [report](crate::Report::last_dirty).
    pub fn unmap(&mut self, id: RegionId) {
        self.list.push(Change::Unmap(id));
    }

    /// Gives a region another size, in bytes; its start stays where it is, and
    /// its [`Backing`] must reach as far. Growing costs one create, of what is
    /// new: the slot that is there stays, unless the region is
    /// [alone](RegionSpec::alone), or no slot is free: then it is replaced, which
    /// goes by the [hole policy](crate::HolePolicy). A region that grew is in
    /// several slots, and each change of it is a call for each of them, until it is
    /// [joined](Self::join), or until a change replaces them anyway: moving it, making
    /// it read-only, other memory. Shrinking to the end of a slot costs deletes
    /// only; else the slot is replaced.
    pub fn resize(&mut self, id: RegionId, size: u64) {
        self.list.push(Change::Resize(id, size));
    }

    /// Makes two regions of one: `id` names what is below `offset` bytes, the
    /// returned id the rest. Costs nothing by itself, unless the region is
    /// [alone](RegionSpec::alone): slots change when one of the two does.
    pub fn split(&mut self, id: RegionId, offset: u64) -> RegionId {
        let upper = RegionId::new();
        self.list.push(Change::Split(id, upper, offset));
        upper
    }

    /// Puts a region that is in several slots, as it grew, into as few as can
    /// be. Parts of a region that was [split](Self::split) share a slot again if
    /// all of them are joined in one set and nothing sets them apart. Without
    /// the batch ioctl that is a hole in the region.
    pub fn join(&mut self, id: RegionId) {
        self.list.push(Change::Join(id));
    }

    /// Switches dirty logging: [`MemFlags::LOG_DIRTY_PAGES`].
    pub fn set_log_dirty(&mut self, id: RegionId, on: bool) {
        self.flag(id, MemFlags::LOG_DIRTY_PAGES, on);
    }

    /// Makes a region read-only, or writable again if its [`Backing`] is:
    /// [`MemFlags::READONLY`]. KVM does not change that on a live slot, so the
    /// slot is replaced.
    pub fn set_read_only(&mut self, id: RegionId, on: bool) {
        self.flag(id, MemFlags::READONLY, on);
    }

    /// Has the guest's accesses to a region exit as MMIO, or not any more:
    /// [`MemFlags::TRAP`]. One call and no grace period, but one for the first time
    /// in a VM that it makes a region trap. The region has a slot of its own
    /// ([`RegionSpec::alone`]).
    ///
    /// When it has been applied, no vCPU reaches memory that traps, and none
    /// exits for memory that does not. A dirty log goes on.
    pub fn set_trap(&mut self, id: RegionId, on: bool) {
        self.flag(id, MemFlags::TRAP, on);
    }

    fn flag(&mut self, id: RegionId, flag: MemFlags, on: bool) {
        let set = if on { flag } else { MemFlags::empty() };
        self.list.push(Change::Flags(id, set, flag));
    }

    /// Moves a region to another guest address, with the doorbells that are in
    /// it.
    pub fn move_to(&mut self, id: RegionId, gpa: u64) {
        self.list.push(Change::Move(id, gpa));
    }

    /// Moves [memory in a window](Device::in_window) to another offset in it. Two
    /// that swap their places do so with no gap between, if they are as long as each
    /// other.
    pub fn move_in_window(&mut self, id: RegionId, offset: u64) {
        self.list.push(Change::MoveInWindow(id, offset));
    }

    /// Puts other host memory behind a region.
    pub fn replace(&mut self, id: RegionId, backing: Backing) {
        self.list.push(Change::Replace(id, Box::new(backing)));
    }

    /// Attaches a device: its memory, in slots and in windows, routes, irqfds,
    /// ioeventfds.
    pub fn attach(&mut self, device: Device) -> DeviceId {
        let id = DeviceId::next();
        self.list.push(Change::Attach(id, Box::new(device)));
        id
    }

    /// Detaches a device, and unmaps what is left of its memory. When it has
    /// been applied, no eventfd of the device raises an interrupt any more, and
    /// host memory is the VMM's again.
    pub fn detach(&mut self, id: DeviceId) {
        self.list.push(Change::Detach(id));
    }

    /// Gives a vector the message that the guest has programmed, or masks it
    /// (`None`). However many vectors change, the routes are set once.
    ///
    /// Events of a masked vector stay in its eventfd and raise the interrupt when
    /// it is unmasked. It keeps its route, so masking it and unmasking it with the
    /// same message is one call each: its irqfd goes and comes back. With a
    /// [`Trigger`](crate::device::Trigger) it is none. Only where GSIs run short,
    /// those of the vectors that were masked first are given to others.
    pub fn set_vector(&mut self, device: DeviceId, vector: usize, msi: Option<Msi>) {
        self.list.push(Change::Vector(device, vector, msi));
    }

    /// Has another eventfd raise a vector's interrupt. When it has been applied,
    /// the old one raises it no more; an event that it then holds, as the vector
    /// is masked, stays in it.
    pub fn set_vector_fd(
        &mut self,
        device: DeviceId,
        vector: usize,
        event: impl AsRawFd + Send + Sync + 'static,
    ) {
        self.list.push(Change::VectorFd(device, vector, Event::new(event)));
    }

    /// Assigns the ioeventfds of devices that
    /// [left them to later](Device::defer_ioeventfds).
    pub fn assign_deferred(&mut self) {
        self.list.push(Change::AssignDeferred(None));
    }

    /// The same for one device: when its driver is there, say.
    pub fn assign_deferred_of(&mut self, device: DeviceId) {
        self.list.push(Change::AssignDeferred(Some(device)));
    }

    /// Replaces the VMM's own routes
    /// ([`Builder::own_routes`](crate::Builder::own_routes)).
    pub fn set_own_routes(&mut self, routes: impl IntoIterator<Item = Route>) {
        self.list.push(Change::OwnRoutes(routes.into_iter().collect()));
    }

    /// The regions that this set maps, those of devices among them, as the set leaves
    /// them: moved, split, resized, with other flags and other memory, and without those
    /// that it unmaps again. In the order in which they come. Changes of regions that
    /// are mapped already are left out. Of a set that [`Vm::apply`](crate::Vm::apply)
    /// would refuse, what it gives is not specified. All changes are looked at each
    /// time.
    pub fn regions(&self) -> impl Iterator<Item = (RegionId, RegionSpec)> + '_ {
        Outcome::of(&self.list).regions().map(|(id, spec)| (id, spec.into_owned()))
    }

    /// Those of them with this [tag](RegionSpec::tag).
    pub fn tagged(&self, tag: u64) -> impl Iterator<Item = (RegionId, RegionSpec)> + '_ {
        self.regions().filter(move |(_, spec)| spec.tag == Some(tag))
    }

    /// That of them at a guest address of an address space.
    #[must_use]
    pub fn region_at(&self, as_id: u16, gpa: u64) -> Option<(RegionId, RegionSpec)> {
        let mut regions = Outcome::of(&self.list).regions();
        let (id, spec) = regions.find(|(_, spec)| {
            spec.as_id == as_id && gpa >= spec.span.gpa && gpa - spec.span.gpa < spec.span.size
        })?;
        Some((id, spec.into_owned()))
    }

    /// That of them at a host virtual address, in an address space. Of several, the one
    /// that starts last.
    #[must_use]
    pub fn region_at_hva(&self, as_id: u16, hva: u64) -> Option<(RegionId, RegionSpec)> {
        let there = Outcome::of(&self.list).regions().filter(|(_, spec)| {
            let start = spec.backing.hva;
            spec.as_id == as_id && hva >= start && hva - start < spec.span.size
        });
        let (id, spec) = there.max_by_key(|(_, spec)| spec.backing.hva)?;
        Some((id, spec.into_owned()))
    }
}
