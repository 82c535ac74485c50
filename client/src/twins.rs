//! Interrupts that share an eventfd without knowing.
//!
//! KVM lets an eventfd raise one interrupt (`kvm_irqfd_assign()`: `EBUSY`), and
//! goes by the open file, not by the descriptor's number. A VMM that has duplicated
//! one finds out when the guest unmasks the second vector. [`find`] finds it before
//! anything is attached, by `kcmp`: asked for, as that is a system call for each
//! comparison.

use std::cmp::Ordering;
use std::os::fd::{AsRawFd, RawFd};

use kvm_memslots_shim::Errno;
use kvm_memslots_shim::kvm::compare_files;
use thiserror::Error;

use crate::device::{Device, DevicePart};

/// Two interrupts whose descriptors are one open file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{second} has the eventfd of {first} (descriptors {}, {}): KVM lets one eventfd raise one \
     interrupt, so give it another", first.fd, second.fd
)]
#[non_exhaustive]
pub struct Twins {
    /// The one that came first.
    pub first: Twin,
    /// The other.
    pub second: Twin,
}

impl Twins {
    /// `EBUSY`: what KVM says to the second one.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::EBUSY
    }
}

/// One of two.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Twin {
    /// The device's name.
    pub device: String,
    /// The vector or the line.
    pub part: DevicePart,
    /// Its descriptor.
    pub fd: RawFd,
}

impl std::fmt::Display for Twin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.part, self.device)
    }
}

/// Two vectors or lines of these devices that have one eventfd, if there are any.
/// Doorbells may share one: KVM lets them.
///
/// ```
/// # use std::os::fd::{FromRawFd, OwnedFd};
/// use kvm_memslots::device::Device;
/// use kvm_memslots::twins;
///
/// # fn eventfd() -> OwnedFd { unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, 0)) } }
/// let vector = eventfd();
/// let copy = vector.try_clone().unwrap();
/// let net = Device::new("net0").vector(vector, None).vector(eventfd(), None).vector(copy, None);
/// # // Where it is not allowed there is an error.
/// if let Ok(found) = twins::find([&net]) {
///     let text = found.expect("two of them").to_string();
///     assert!(text.starts_with("vector 2 of net0 has the eventfd of vector 0 of net0"));
/// }
/// ```
///
/// # Errors
/// The errno of `kcmp`: `ENOSYS` on a kernel without it, `EPERM` behind some
/// filters, `EBADF` for a descriptor that is not open.
pub fn find<'d>(devices: impl IntoIterator<Item = &'d Device>) -> Result<Option<Twins>, Errno> {
    let all = devices.into_iter().flat_map(|device| {
        let vectors = device.vectors.iter().enumerate();
        let vectors = vectors.map(|(index, v)| (DevicePart::Vector { index }, &v.event));
        let lines = device.lines.iter();
        let lines = lines.map(|line| (DevicePart::Line { gsi: line.gsi }, &line.event));
        vectors.chain(lines).map(move |(part, event)| (device, part, event.as_raw_fd()))
    });
    // In the kernel's order, so that each is compared with few.
    let mut sorted: Vec<(&Device, DevicePart, RawFd)> = Vec::new();
    for new in all {
        let mut failed = compare_files(new.2, new.2).err();
        let place = sorted.binary_search_by(|(.., fd)| {
            compare_files(*fd, new.2).unwrap_or_else(|errno| {
                failed = Some(errno);
                Ordering::Less
            })
        });
        if let Some(errno) = failed {
            return Err(errno);
        }
        match place {
            Ok(at) => {
                let twin = |(device, part, fd): (&Device, DevicePart, RawFd)| Twin {
                    device: device.name.to_string(),
                    part,
                    fd,
                };
                return Ok(Some(Twins { first: twin(sorted[at]), second: twin(new) }));
            }
            Err(at) => sorted.insert(at, new),
        }
    }
    Ok(None)
}
