//! What KVM has one by one.

use std::fmt;

use super::types::{Ioeventfd, Irqfd};
use super::zone::Zone;

/// What KVM is told of one by one, where routes are a table. In the order in which
/// they go: nothing raises a GSI when its route goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// `KVM_IOEVENTFD`.
    Ioeventfd(Ioeventfd),
    /// `KVM_REGISTER_COALESCED_MMIO`.
    Zone(Zone),
    /// `KVM_IRQFD`.
    Irqfd(Irqfd),
}

impl From<Ioeventfd> for Part {
    fn from(ioeventfd: Ioeventfd) -> Self {
        Self::Ioeventfd(ioeventfd)
    }
}

impl From<Zone> for Part {
    fn from(zone: Zone) -> Self {
        Self::Zone(zone)
    }
}

impl From<Irqfd> for Part {
    fn from(irqfd: Irqfd) -> Self {
        Self::Irqfd(irqfd)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ioeventfd(ioeventfd) => ioeventfd.fmt(f),
            Self::Zone(zone) => zone.fmt(f),
            Self::Irqfd(irqfd) => irqfd.fmt(f),
        }
    }
}
