//! Who gets the ring of the coalesced zones.

use std::os::fd::AsFd;

use super::Vm;
use crate::CoalescedRing;
use crate::error::{Error, ErrorKind};

impl Vm {
    /// The ring that keeps the guest's writes to
    /// [coalesced zones](crate::device::Coalesced): the page
    /// `KVM_CAP_COALESCED_MMIO` of the `mmap` of any vCPU of this VM, whose
    /// descriptor need not stay open.
    ///
    /// # Errors
    /// [`ErrorKind::NoZones`]; [`ErrorKind::NoRing`]: `vcpu` is no vCPU's.
    pub fn coalesced_ring(&self, vcpu: impl AsFd) -> Result<CoalescedRing, Error> {
        let page = self.event_limits().zones.ring_page;
        let page = page.ok_or(ErrorKind::NoZones { ports: false })?;
        let ring = CoalescedRing::map(vcpu.as_fd(), page);
        ring.map_err(|errno| ErrorKind::NoRing(errno).into())
    }
}
