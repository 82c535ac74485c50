//! What a device is made of: memory, ioeventfds, coalesced zones, interrupts.
//!
//! A device is attached and detached as one ([`Changes::attach`],
//! [`Changes::detach`]), together with whatever else is in the set of changes:
//!
//! 1. ioeventfds and zones, then irqfds that go,
//! 2. all memory, in as few calls as there can be; then what is in windows,
//! 3. all routes, in one `KVM_SET_GSI_ROUTING` (none if nothing changes),
//! 4. irqfds that come, which find their routes,
//! 5. ioeventfds and zones.
//!
//! What the calls wait for, why they are made in this order and what that costs
//! is in `docs/guide/devices.md`.
//!
//! [`Changes::attach`]: crate::Changes::attach
//! [`Changes::detach`]: crate::Changes::detach

use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::Arc;

pub use kvm_memslots_shim::events::{
    Bus, Ioeventfd, Irqfd, Msi, Route, RouteTarget, Waits, Zone, ZoneWrite,
};

pub use crate::event::Event;
use crate::id::id;
pub use crate::trigger::Trigger;
use crate::window::WindowPart;
use crate::{RegionId, RegionSpec};

id! {
    /// Names a device, of whatever VM it is attached to, until it is detached;
    /// never names another one.
    DeviceId, "device"
}

/// Where a guest's writes signal an eventfd instead of exiting, and which.
///
/// ```
/// use kvm_memslots::device::{Bus, Doorbell};
/// use kvm_memslots::RegionId;
///
/// # let bar = RegionId::new();
/// // 2 bytes of value 0, at offset 0x3000 from where the region is: it moves
/// // with the region.
/// let notify = Doorbell::in_region(bar, 0x3000).len(2).value(0);
/// let port = Doorbell::at(Bus::Pio, 0x510).len(4);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Doorbell {
    pub(crate) place: Place,
    pub(crate) len: u32,
    pub(crate) value: Option<u64>,
}

/// Where a doorbell or a zone is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    At(Bus, u64),
    /// From the start of the region, which it may lie behind: a BAR's memory
    /// need not be all of the BAR.
    In(RegionId, u64),
}

impl Place {
    /// Its address, if it has one, or `None` for one beyond the last; with `of`, if
    /// it is in that region.
    pub(crate) fn of(
        self,
        of: Option<RegionId>,
        len: u32,
        gpa_of: impl Fn(RegionId) -> Option<u64>,
    ) -> Option<(Bus, Option<u64>)> {
        let (bus, addr) = match self {
            Self::In(region, offset) if of.is_none_or(|of| of == region) => {
                (Bus::Mmio, gpa_of(region)?.checked_add(offset))
            }
            Self::At(bus, addr) if of.is_none() => (bus, Some(addr)),
            _ => return None,
        };
        Some((bus, addr.filter(|addr| addr.checked_add(len.into()).is_some())))
    }
}

impl Doorbell {
    /// At this address, for writes of any length.
    pub const fn at(bus: Bus, addr: u64) -> Self {
        Self { place: Place::At(bus, addr), len: 0, value: None }
    }

    /// That many bytes from the start of a region, wherever it is: it moves with
    /// the region, in the same set of changes, and rings for as long as the
    /// region is mapped. It may lie behind the region's end, as memory need not be
    /// all of a BAR, but not behind the last address
    /// ([`ErrorKind::EventWraps`](crate::ErrorKind::EventWraps)).
    pub const fn in_region(region: RegionId, offset: u64) -> Self {
        Self { place: Place::In(region, offset), len: 0, value: None }
    }

    /// For writes of 1, 2, 4 or 8 bytes only; 0 for any.
    pub const fn len(mut self, bytes: u32) -> Self {
        self.len = bytes;
        self
    }

    /// For writes of this value only.
    pub const fn value(mut self, value: u64) -> Self {
        self.value = Some(value);
        self
    }
}

/// Addresses where a guest's writes wait in the VM's ring instead of exiting, for
/// registers whose writes can wait until the next exit (coalesced MMIO).
///
/// Reads exit, and so do writes while the ring is full and writes that are only in
/// part in the zone (`coalesced_mmio_write()` in `virt/kvm/coalesced_mmio.c`). A
/// VMM takes what is in the [ring](crate::CoalescedRing) before it handles an exit.
///
/// Writes to memory that is mapped there are the memory's. Zones don't overlap
/// with each other or with doorbells: KVM gives a write to whatever it finds first,
/// and unregisters every zone that the one it is told is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Coalesced {
    pub(crate) place: Place,
    pub(crate) len: u32,
}

impl Coalesced {
    /// At these addresses.
    pub const fn at(bus: Bus, addr: u64, len: u32) -> Self {
        Self { place: Place::At(bus, addr), len }
    }

    /// That many bytes from the start of a region, which it moves with
    /// ([`Doorbell::in_region`]).
    pub const fn in_region(region: RegionId, offset: u64, len: u32) -> Self {
        Self { place: Place::In(region, offset), len }
    }
}

/// An ioeventfd of a device.
#[derive(Debug, Clone)]
pub(crate) struct Kick {
    pub(crate) doorbell: Doorbell,
    pub(crate) event: Event,
}

/// A vector of a device.
#[derive(Debug, Clone)]
pub(crate) struct Vector {
    pub(crate) event: Event,
    /// Who signals the event, if that is known to heed the mask.
    pub(crate) trigger: Option<Arc<Trigger>>,
    /// `None` while it is masked.
    pub(crate) msi: Option<Msi>,
    /// Its GSI and the message that this is routed to: from the first message
    /// on, and while it is masked for as long as nobody else needs the GSI.
    pub(crate) routed: Option<(u32, Msi)>,
    /// When it was masked last: higher for later.
    pub(crate) masked: u64,
}

impl Vector {
    fn new(event: Event, msi: Option<Msi>) -> Self {
        Self { event, trigger: None, msi, routed: None, masked: 0 }
    }

    /// Whether it keeps a GSI that it has no use for.
    pub(crate) const fn is_idle(&self) -> bool {
        self.msi.is_none() && self.routed.is_some()
    }

    pub(crate) fn gsi(&self) -> Option<u32> {
        self.routed.map(|(gsi, _)| gsi)
    }
}

/// An interrupt line of a device.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) gsi: u32,
    pub(crate) pin: Option<(u32, u32)>,
    pub(crate) event: Event,
    pub(crate) resample: Option<Event>,
}

/// One device, or a part of one. Nothing happens before it is attached.
///
/// A device that is attached gets more doorbells or vectors by a part of it with
/// those, attached in a set like any other.
///
/// ```
/// # use std::os::fd::{FromRawFd, OwnedFd};
/// use kvm_memslots::device::{Bus, Device, Doorbell, Msi};
/// use kvm_memslots::{Access, Backing, RegionId, RegionSpec, at};
///
/// # fn eventfd() -> OwnedFd { unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, 0)) } }
/// # let hva = 0x7f00_0000_0000;
/// let bar0 = RegionId::new();
/// // SAFETY: nothing is attached in this example.
/// let memory = unsafe { Backing::borrowed(hva, 0x2000, Access::ReadWrite) };
/// let net = Device::new("net0")
///     .region(bar0, RegionSpec::device(at(0xe000_0000, 0x2000), memory))
///     .ioeventfd(Doorbell::in_region(bar0, 0x3000).len(2).value(0), eventfd())
///     // Vectors are numbered in this order. This one the guest has set up (the
///     // device is restored from a snapshot), the next one not yet.
///     .vector(eventfd(), Some(Msi { address: 0xfee0_0000, data: 0x41, devid: None }))
///     .vector(eventfd(), None);
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Device {
    pub(crate) name: Arc<str>,
    pub(crate) regions: Vec<(RegionId, RegionSpec)>,
    pub(crate) parts: Vec<(RegionId, WindowPart)>,
    pub(crate) kicks: Vec<Kick>,
    pub(crate) zones: Vec<Coalesced>,
    pub(crate) vectors: Vec<Vector>,
    pub(crate) lines: Vec<Line>,
    pub(crate) may_bypass: bool,
    pub(crate) defers: bool,
}

impl Device {
    /// A device without anything. The name is for errors.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            regions: Vec::new(),
            parts: Vec::new(),
            kicks: Vec::new(),
            zones: Vec::new(),
            vectors: Vec::new(),
            lines: Vec::new(),
            may_bypass: false,
            defers: false,
        }
    }

    /// The device is VFIO's or vDPA's: hardware may signal its eventfds, and
    /// deliver interrupts by itself. Other devices' irqfds get
    /// `KVM_IRQFD_FLAG_NO_IRQBYPASS` where the kernel has it.
    pub fn may_bypass(mut self) -> Self {
        self.may_bypass = true;
        self
    }

    /// Attaching leaves the ioeventfds and zones to a later set of changes, one with
    /// [`Changes::assign_deferred`](crate::Changes::assign_deferred). Until then
    /// the guest's writes exit, and the VMM has to look after them.
    ///
    /// For devices that are plugged in shortly after one another: on kernels
    /// since 6.18 a registered ioeventfd or zone makes the next change of memory wait
    /// for a normal grace period, which takes milliseconds.
    pub fn defer_ioeventfds(mut self) -> Self {
        self.defers = true;
        self
    }

    /// Memory: a BAR, a ROM. `id` is a new name ([`RegionId::new`]), which
    /// doorbells and later changes use.
    pub fn region(mut self, id: RegionId, spec: RegionSpec) -> Self {
        self.regions.push((id, spec));
        self
    }

    /// Memory in a window: placed when the device is attached and removed when it
    /// is detached, without a call of KVM's, all or nothing with the rest of the set.
    /// `id` is a new name, with which
    /// [`Changes::move_in_window`](crate::Changes::move_in_window) moves it; it is no
    /// region's. The VMM maps the window's region.
    ///
    /// Doorbells don't ring in a window, as nothing in its slot exits.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use kvm_memslots::device::Device;
    /// use kvm_memslots::window::{CheckedFile, Window, WindowPart};
    /// use kvm_memslots::{Changes, RegionId, Vm};
    ///
    /// # let (vm, window): (Vm, Window) = unimplemented!();
    /// let memory = CheckedFile::new(std::fs::File::open("/dev/shm/bar2")?)?;
    /// let bar2 = RegionId::new();
    /// let part = WindowPart::new(&window, 0x10_0000, 0x4000, &memory, 0);
    /// let mut c = Changes::new();
    /// c.attach(Device::new("gpu0").in_window(bar2, part));
    /// vm.apply(c)?;
    /// // The guest moves the BAR.
    /// let mut c = Changes::new();
    /// c.move_in_window(bar2, 0x20_0000);
    /// vm.apply(c)?;
    /// # Ok(()) }
    /// ```
    pub fn in_window(mut self, id: RegionId, part: WindowPart) -> Self {
        self.parts.push((id, part));
        self
    }

    /// An eventfd that the guest's writes signal. Such writes don't exit.
    pub fn ioeventfd(
        mut self,
        doorbell: Doorbell,
        event: impl AsRawFd + Send + Sync + 'static,
    ) -> Self {
        self.kicks.push(Kick { doorbell, event: Event::new(event) });
        self
    }

    /// A zone of coalesced writes. Registering one is a call, unregistering one a
    /// call that waits for a grace period.
    pub fn coalesced(mut self, zone: Coalesced) -> Self {
        self.zones.push(zone);
        self
    }

    /// The next MSI or MSI-X vector: `event` raises the message once there is
    /// one (`None`: the vector is masked; see
    /// [`Changes::set_vector`](crate::Changes::set_vector)).
    pub fn vector(mut self, event: impl AsRawFd + Send + Sync + 'static, msi: Option<Msi>) -> Self {
        self.vectors.push(Vector::new(Event::new(event), msi));
        self
    }

    /// The next vector, the events of which go through a [`Trigger`]: masking it
    /// costs no call.
    pub fn triggered_vector(mut self, trigger: Arc<Trigger>, msi: Option<Msi>) -> Self {
        let event = Event::of(Arc::clone(&trigger) as _);
        let vector = Vector { trigger: Some(trigger), ..Vector::new(event, msi) };
        self.vectors.push(vector);
        self
    }

    /// An interrupt line: `event` raises `gsi`, whose route is the VMM's own or,
    /// with `pin`, made here: irqchip and pin.
    ///
    /// With `resample` the line is level-triggered, `resample` is signalled when
    /// the guest has acknowledged the interrupt, and several devices may share
    /// the GSI. So they may where its route is the VMM's own and an MSI.
    pub fn line(
        mut self,
        gsi: u32,
        pin: Option<(u32, u32)>,
        event: impl AsRawFd + Send + Sync + 'static,
        resample: Option<Event>,
    ) -> Self {
        self.lines.push(Line { gsi, pin, event: Event::new(event), resample });
        self
    }
}

/// A part of a device, as errors name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DevicePart {
    /// Memory in a window.
    InWindow {
        /// Which, in the order in which they were added.
        index: usize,
    },
    /// An ioeventfd.
    Ioeventfd {
        /// Which, in the order in which they were added.
        index: usize,
    },
    /// A coalesced zone.
    Zone {
        /// Which, in the order in which they were added.
        index: usize,
    },
    /// An MSI or MSI-X vector.
    Vector {
        /// Its number.
        index: usize,
    },
    /// An interrupt line.
    Line {
        /// Its GSI.
        gsi: u32,
    },
    /// The table of routes as a whole.
    Routes,
}

impl fmt::Display for DevicePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InWindow { index } => write!(f, "memory {index} in a window"),
            Self::Ioeventfd { index } => write!(f, "ioeventfd {index}"),
            Self::Zone { index } => write!(f, "coalesced zone {index}"),
            Self::Vector { index } => write!(f, "vector {index}"),
            Self::Line { gsi } => write!(f, "interrupt line at GSI {gsi}"),
            Self::Routes => f.write_str("interrupt routes"),
        }
    }
}
