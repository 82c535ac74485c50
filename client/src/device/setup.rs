//! What a device is made of, before it is attached.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use kvm_memslots_shim::backend::Errno;
use kvm_memslots_shim::eventing::{Bus, Msi};

use super::error::{DeviceError, DeviceErrorKind, DevicePart};
use crate::{HostMemory, RegionSpec};

/// One device, or a part of one: memory, ioeventfds, interrupts. Nothing
/// happens before [`Eventing::attach`](crate::device::Eventing::attach).
///
/// Eventfds are duplicated (close-on-exec), so the device holds its own.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use std::os::fd::{FromRawFd, OwnedFd};
/// use kvm_memslots::RegionSpec;
/// use kvm_memslots::device::{Bus, DeviceSetup, Msi};
///
/// # fn eventfd() -> OwnedFd { unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, 0)) } }
/// let (kick, config, queue) = (eventfd(), eventfd(), eventfd());
/// let mut net = DeviceSetup::new("net0");
/// net.ioeventfd(Bus::Mmio, 0xe000_3000, 2, Some(0), &kick)?;
/// // Vectors are numbered in this order. This one the guest has set up (the
/// // device is restored from a snapshot), the next one not yet.
/// net.vector(&config, Some(Msi { address: 0xfee0_0000, data: 0x41, devid: None }))?;
/// net.vector(&queue, None)?;
/// let bar = RegionSpec::device(0xe000_0000, 0x2000, 0x7f00_0000_0000).label("BAR 0");
/// // SAFETY: nothing is attached in this example.
/// unsafe { net.region(bar) };
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct DeviceSetup {
    pub(super) name: Box<str>,
    pub(super) regions: Vec<(RegionSpec, Option<Arc<dyn HostMemory>>)>,
    pub(super) ioeventfds: Vec<IoeventfdSpec>,
    pub(super) vectors: Vec<Vector>,
    pub(super) lines: Vec<Line>,
    pub(super) may_bypass: bool,
    pub(super) defers: bool,
}

#[derive(Debug, Clone)]
pub(super) struct IoeventfdSpec {
    pub(super) bus: Bus,
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) datamatch: Option<u64>,
    pub(super) fd: Arc<OwnedFd>,
}

#[derive(Debug, Clone)]
pub(super) struct Vector {
    pub(super) fd: Arc<OwnedFd>,
    /// As it is to be; `None` while it is masked.
    pub(super) msi: Option<Msi>,
    /// As it was when last committed.
    pub(super) committed: Option<Msi>,
    /// Its own from the first message on.
    pub(super) gsi: Option<u32>,
}

#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) gsi: u32,
    pub(super) pin: Option<(u32, u32)>,
    pub(super) fd: Arc<OwnedFd>,
    pub(super) resample: Option<Arc<OwnedFd>>,
}

impl DeviceSetup {
    /// A device without anything. The name is for errors.
    #[must_use]
    pub fn new(name: impl Into<Box<str>>) -> Self {
        Self {
            name: name.into(),
            regions: Vec::new(),
            ioeventfds: Vec::new(),
            vectors: Vec::new(),
            lines: Vec::new(),
            may_bypass: false,
            defers: false,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device is VFIO's or vDPA's: hardware may signal its eventfds, and
    /// deliver interrupts by itself. Other devices' irqfds get
    /// `KVM_IRQFD_FLAG_NO_IRQBYPASS` where the kernel has it.
    pub fn may_bypass(&mut self) -> &mut Self {
        self.may_bypass = true;
        self
    }

    /// Attaching leaves the ioeventfds to the next
    /// [`Eventing::commit`](crate::device::Eventing::commit). Until then the
    /// guest's writes exit, and the VMM has to look after them.
    ///
    /// For devices that are plugged in shortly after one another: on kernels
    /// since 6.18 a registered ioeventfd makes the next change of memory wait
    /// for a normal grace period, which takes milliseconds.
    pub fn defer_ioeventfds(&mut self) -> &mut Self {
        self.defers = true;
        self
    }

    /// Memory: a BAR, a ROM.
    ///
    /// # Safety
    /// [`Transaction::map`](crate::Transaction::map), from attaching until
    /// detaching has succeeded.
    pub unsafe fn region(&mut self, spec: RegionSpec) -> &mut Self {
        self.regions.push((spec, None));
        self
    }

    /// Memory inside of `memory`, which is kept alive while it is attached.
    pub fn region_owned(&mut self, spec: RegionSpec, memory: Arc<dyn HostMemory>) -> &mut Self {
        self.regions.push((spec, Some(memory)));
        self
    }

    /// An eventfd that guest writes of `len` bytes (1, 2, 4, 8; 0 for any) at
    /// `addr` signal, of any value or only of `datamatch`. Such writes don't
    /// exit.
    ///
    /// # Errors
    /// [`DeviceErrorKind::IoeventfdLength`],
    /// [`DeviceErrorKind::IoeventfdDatamatch`],
    /// [`DeviceErrorKind::IoeventfdWraps`]; [`DeviceErrorKind::NotOpen`],
    /// [`DeviceErrorKind::NotAnEventfd`].
    pub fn ioeventfd(
        &mut self,
        bus: Bus,
        addr: u64,
        len: u32,
        datamatch: Option<u64>,
        fd: impl AsFd,
    ) -> Result<&mut Self, DeviceError> {
        let part = DevicePart::Ioeventfd { index: self.ioeventfds.len(), bus, addr };
        let fd = self.duplicate(part, fd)?;
        let kind = if !matches!(len, 0 | 1 | 2 | 4 | 8) {
            Some(DeviceErrorKind::IoeventfdLength { len })
        } else if addr.checked_add(len.into()).is_none() {
            Some(DeviceErrorKind::IoeventfdWraps { len })
        } else {
            // A value that does not fit never matches.
            let fits = |data| len == 8 || (len != 0 && data >> (len * 8) == 0);
            datamatch
                .filter(|data| !fits(*data))
                .map(|data| DeviceErrorKind::IoeventfdDatamatch { len, data })
        };
        if let Some(kind) = kind {
            return Err(DeviceError::of(&self.name, part, kind));
        }
        self.ioeventfds.push(IoeventfdSpec { bus, addr, len, datamatch, fd });
        Ok(self)
    }

    /// The next MSI or MSI-X vector: `fd` raises the message once there is one
    /// (`None`: the vector is masked; see
    /// [`Eventing::set_vector`](crate::device::Eventing::set_vector)).
    ///
    /// # Errors
    /// [`DeviceErrorKind::NotOpen`], [`DeviceErrorKind::NotAnEventfd`].
    pub fn vector(&mut self, fd: impl AsFd, msi: Option<Msi>) -> Result<&mut Self, DeviceError> {
        let fd = self.duplicate(DevicePart::Vector { index: self.vectors.len() }, fd)?;
        self.vectors.push(Vector { fd, msi, committed: None, gsi: None });
        Ok(self)
    }

    /// An interrupt line: `fd` raises `gsi`, whose route is the VMM's own or,
    /// with `pin`, made here: irqchip and pin.
    ///
    /// With `resample` the line is level-triggered, `resample` is signalled
    /// when the guest has acknowledged the interrupt, and several devices may
    /// share the GSI.
    ///
    /// # Errors
    /// [`DeviceErrorKind::NotOpen`], [`DeviceErrorKind::NotAnEventfd`].
    pub fn line(
        &mut self,
        gsi: u32,
        pin: Option<(u32, u32)>,
        fd: impl AsFd,
        resample: Option<&dyn AsFd>,
    ) -> Result<&mut Self, DeviceError> {
        let part = DevicePart::Line { gsi };
        let fd = self.duplicate(part, fd)?;
        let resample = resample.map(|fd| self.duplicate(part, fd)).transpose()?;
        self.lines.push(Line { gsi, pin, fd, resample });
        Ok(self)
    }

    fn duplicate(&self, part: DevicePart, fd: impl AsFd) -> Result<Arc<OwnedFd>, DeviceError> {
        let fd = fd.as_fd();
        let raw = fd.as_raw_fd();
        let refused = |kind| DeviceError::of(&self.name, part, kind);
        let owned = fd.try_clone_to_owned().map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or_default());
            refused(DeviceErrorKind::NotOpen { fd: raw, errno })
        })?;
        // Without /proc it is KVM that notices.
        let link = std::fs::read_link(format!("/proc/self/fd/{}", owned.as_raw_fd()));
        match link.map(|link| link.to_string_lossy().into_owned()) {
            Ok(what) if !what.contains("[eventfd]") => {
                Err(refused(DeviceErrorKind::NotAnEventfd { fd: raw, what }))
            }
            _ => Ok(Arc::new(owned)),
        }
    }
}

impl std::fmt::Debug for DeviceSetup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceSetup")
            .field("name", &self.name)
            .field("regions", &self.regions.iter().map(|(spec, _)| spec).collect::<Vec<_>>())
            .field("ioeventfds", &self.ioeventfds)
            .field("vectors", &self.vectors)
            .field("lines", &self.lines)
            .field("may_bypass", &self.may_bypass)
            .field("defers", &self.defers)
            .finish()
    }
}
