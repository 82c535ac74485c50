//! Eventfds, held open.

use std::fmt;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

/// An eventfd that a device signals or listens to, held open for as long as KVM
/// uses it: an `OwnedFd`, an `EventFd`, an `Arc` of one. A plain number
/// (`RawFd`) is one that the VMM keeps open itself.
///
/// It is asked for its number once, when it is taken: that is the number by which
/// KVM is told of it, first and last.
#[derive(Clone)]
pub struct Event {
    fd: RawFd,
    _open: Arc<dyn AsRawFd + Send + Sync>,
}

impl Event {
    /// Takes the descriptor as it is: it is not duplicated.
    #[must_use]
    pub fn new(fd: impl AsRawFd + Send + Sync + 'static) -> Self {
        Self::of(Arc::new(fd))
    }

    pub(crate) fn of(open: Arc<dyn AsRawFd + Send + Sync>) -> Self {
        Self { fd: open.as_raw_fd(), _open: open }
    }
}

impl AsRawFd for Event {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "eventfd {}", self.fd)
    }
}
