//! What can be wrong with a device, by device and part.

use std::fmt;
use std::os::fd::RawFd;

use kvm_memslots_shim::backend::Errno;
use kvm_memslots_shim::eventing::{Bus, State, Step};
use thiserror::Error;

use super::DeviceId;
use crate::{Error, RegionId};

/// Why devices were not attached, changed or detached. Unless the kind is
/// [`DeviceErrorKind::Stuck`] or [`DeviceErrorKind::MemoryStuck`], everything
/// is what it was.
#[derive(Debug)]
pub struct DeviceError {
    /// The device's name; `None` where no device is to blame.
    pub device: Option<Box<str>>,
    /// The part of it.
    pub part: Option<DevicePart>,
    /// What is wrong with it.
    pub kind: Box<DeviceErrorKind>,
}

impl DeviceError {
    pub(super) fn of(device: &str, part: DevicePart, kind: DeviceErrorKind) -> Self {
        Self { device: Some(device.into()), part: Some(part), kind: Box::new(kind) }
    }

    pub(super) fn nobodys(kind: DeviceErrorKind) -> Self {
        Self { device: None, part: None, kind: Box::new(kind) }
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(device) = &self.device {
            write!(f, "device \"{device}\", ")?;
        }
        if let Some(part) = &self.part {
            write!(f, "{part}: ")?;
        }
        write!(f, "{}", self.kind)
    }
}

impl std::error::Error for DeviceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.kind.source()
    }
}

/// A part of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DevicePart {
    /// A region.
    Region {
        /// Which, in the order in which they were added.
        index: usize,
    },
    /// An ioeventfd.
    Ioeventfd {
        /// Which, in the order in which they were added.
        index: usize,
        /// Memory or ports.
        bus: Bus,
        /// Where.
        addr: u64,
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
            Self::Region { index } => write!(f, "region {index}"),
            Self::Ioeventfd { index, bus: Bus::Mmio, addr } => {
                write!(f, "ioeventfd {index} at GPA {addr:#x}")
            }
            Self::Ioeventfd { index, bus: Bus::Pio, addr } => {
                write!(f, "ioeventfd {index} at port {addr:#x}")
            }
            Self::Vector { index } => write!(f, "vector {index}"),
            Self::Line { gsi } => write!(f, "interrupt line at GSI {gsi}"),
            Self::Routes => f.write_str("interrupt routes"),
        }
    }
}

/// What is wrong.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DeviceErrorKind {
    /// The descriptor can't be duplicated: closed (`EBADF`), or the process has
    /// too many (`EMFILE`).
    #[error("file descriptor {fd} can't be duplicated: {errno}")]
    NotOpen {
        /// The descriptor.
        fd: RawFd,
        /// The errno of `F_DUPFD_CLOEXEC`.
        errno: Errno,
    },
    /// The descriptor is something else.
    #[error("file descriptor {fd} is no eventfd but {what}")]
    NotAnEventfd {
        /// The descriptor.
        fd: RawFd,
        /// What `/proc/self/fd` says it is.
        what: String,
    },
    /// A length that KVM does not take.
    #[error("an ioeventfd listens to writes of 1, 2, 4 or 8 bytes, or 0 for any, not of {len}")]
    IoeventfdLength {
        /// Bytes.
        len: u32,
    },
    /// A value that no write of that length has.
    #[error("the value {data:#x} can't be asked for with a length of {len}")]
    IoeventfdDatamatch {
        /// Bytes.
        len: u32,
        /// The value.
        data: u64,
    },
    /// The address is the last one.
    #[error("address plus length, {len}, wraps around the 64-bit address space")]
    IoeventfdWraps {
        /// Bytes.
        len: u32,
    },
    /// Another ioeventfd would fire for some of the same writes.
    #[error("{other_part} of device \"{other}\" fires for some of the same writes")]
    IoeventfdTaken {
        /// The device that is there.
        other: Box<str>,
        /// The part of it.
        other_part: DevicePart,
    },
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
        /// With this device.
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
    /// The device is not attached: never was, or not any more.
    #[error("{id:?} is not attached here")]
    NotAttached {
        /// The id.
        id: DeviceId,
    },
    /// The same device twice in one call.
    #[error("{id:?} is named twice")]
    NamedTwice {
        /// The id.
        id: DeviceId,
    },
    /// The device has fewer vectors.
    #[error("the device has {vectors} vectors")]
    NoSuchVector {
        /// How many.
        vectors: usize,
    },
    /// The memory was not mapped or unmapped; nothing else was done, or was
    /// undone.
    #[error(transparent)]
    Memory(Error),
    /// KVM refused a call. What was done before it was undone.
    #[error("KVM refused to {step}: {errno}{}", advice(step, *errno))]
    Refused {
        /// The call.
        step: Step,
        /// KVM's errno.
        errno: Errno,
    },
    /// KVM refused a call, and then to undo one of those before it. The devices
    /// are those from before; the next commit, attach or detach, also an empty
    /// one, puts it right if KVM lets it.
    #[error(
        "KVM refused to {step} ({errno}), and then, to undo what was done before, to {undo} \
         ({undo_errno}); live beyond what the attached devices say: {} routes, {} irqfds, {} \
         ioeventfds; missing: {}, {}, {}; commit again to repair it",
        surplus.routes.len(), surplus.irqfds.len(), surplus.ioeventfds.len(),
        missing.routes.len(), missing.irqfds.len(), missing.ioeventfds.len()
    )]
    Stuck {
        /// The call.
        step: Step,
        /// KVM's errno.
        errno: Errno,
        /// The undoing call.
        undo: Step,
        /// KVM's errno for it.
        undo_errno: Errno,
        /// What KVM has and should not.
        surplus: Box<State>,
        /// What KVM should have and has not.
        missing: Box<State>,
        /// Regions of devices that are not attached and that could not be
        /// unmapped either. Their host memory is still the guest's.
        regions: Vec<RegionId>,
    },
    /// Attaching failed (`because`), and then the memory could not be unmapped:
    /// these regions are still mapped, and are the VMM's to unmap.
    #[error("{because}; then {} regions could not be unmapped again: {error}", regions.len())]
    MemoryStuck {
        /// The regions.
        regions: Vec<RegionId>,
        /// Why they were not unmapped.
        error: Error,
        /// What had failed.
        because: Box<DeviceError>,
    },
}

/// What an errno means to the one who asked.
fn advice(step: &Step, errno: Errno) -> &'static str {
    match (step, errno) {
        (Step::AssignIrqfd(irqfd), Errno::EINVAL) if irqfd.resample.is_some() => {
            ": resampling needs an interrupt controller with pins in the kernel \
             (KVM_CREATE_IRQCHIP; a split irqchip is not enough), and eventfds"
        }
        (Step::AssignIrqfd(_), Errno::EINVAL) => {
            ": the VM has no interrupt controller in the kernel, or the descriptor is no eventfd"
        }
        (Step::AssignIrqfd(_), Errno::EAGAIN) => {
            ": the VM's interrupt controller is not set up yet"
        }
        (Step::AssignIrqfd(_), Errno::EBUSY) => ": this eventfd is an irqfd of the VM already",
        (Step::Routes { .. }, Errno::EINVAL) => {
            ": the VM has no interrupt controller in the kernel, or a pin that it does not have \
             is asked for"
        }
        (Step::AssignIoeventfd(_), Errno::EEXIST) => {
            ": an ioeventfd that the VMM made itself fires for some of the same writes"
        }
        (Step::DeassignIoeventfd(_), Errno::ENOENT) => {
            ": KVM has no such ioeventfd; deassigned behind the library's back?"
        }
        (_, Errno::ENOMEM) => ": out of kernel memory, or over the cgroup's limit",
        (_, Errno::EBADF) => ": the descriptor was closed behind the library's back",
        (_, Errno::EIO) => ": the VM belongs to another process, or is dead",
        _ => "",
    }
}
