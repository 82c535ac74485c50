//! The guest types on architectures that have no guest code: they can't be
//! made.

use std::convert::Infallible;
use std::time::Duration;

use kvm_ioctls::VmFd;
use kvm_memslots::{GateError, VcpuGate};

use super::{Access, GuestError, Mmio, Outcome, Work};

/// One vCPU that does the accesses it is given.
#[derive(Debug)]
pub struct Prober(Infallible);

impl Prober {
    /// Can't be done here.
    ///
    /// # Errors
    /// [`GuestError::Unsupported`], always.
    pub fn new(_vm: &VmFd, _slot: u16) -> Result<Self, GuestError> {
        Err(GuestError::Unsupported)
    }

    /// Can't be called: there is no prober.
    ///
    /// # Errors
    /// None.
    pub fn probe(&mut self, _accesses: &[Access]) -> Result<Vec<Outcome>, GuestError> {
        match self.0 {}
    }

    /// Can't be called: there is no prober.
    ///
    /// # Errors
    /// None.
    pub fn drive(
        &mut self,
        _accesses: &[Access],
        _device: impl FnMut(Mmio<'_>),
    ) -> Result<Vec<u64>, GuestError> {
        match self.0 {}
    }
}

/// vCPUs that keep the guest busy.
#[derive(Debug)]
pub struct BusyVcpus(Infallible);

impl BusyVcpus {
    /// Can't be done here.
    ///
    /// # Errors
    /// [`GuestError::Unsupported`], always.
    pub fn start(_: &VmFd, _slot: u16, _count: usize, _work: Work) -> Result<Self, GuestError> {
        Err(GuestError::Unsupported)
    }

    /// Can't be done here.
    ///
    /// # Errors
    /// [`GuestError::Unsupported`], always.
    pub fn with_prober(
        _: &VmFd,
        _slot: u16,
        _count: usize,
        _: Work,
    ) -> Result<(Self, Prober), GuestError> {
        Err(GuestError::Unsupported)
    }

    /// Can't be called: there are no vCPUs.
    ///
    /// # Errors
    /// None.
    pub fn wait_for_progress(&self, _timeout: Duration) -> Result<(), GuestError> {
        match self.0 {}
    }

    /// Can't be called: there are no vCPUs.
    #[must_use]
    pub fn progress(&self) -> Vec<u64> {
        match self.0 {}
    }

    /// Can't be called: there are no vCPUs.
    ///
    /// # Errors
    /// None.
    pub fn check(&self) -> Result<(), GuestError> {
        match self.0 {}
    }

    /// Can't be called: there are no vCPUs.
    ///
    /// # Errors
    /// None.
    pub fn stop(&self) -> Result<(), GuestError> {
        match self.0 {}
    }
}

impl VcpuGate for BusyVcpus {
    fn pause(&self) -> Result<(), GateError> {
        match self.0 {}
    }

    fn resume(&self) {
        match self.0 {}
    }
}
