//! A device that is attached, as KVM's calls see it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use kvm_memslots_shim::eventing::{Ioeventfd, Irqfd, Route, State, Step};

use super::error::DevicePart;
use super::setup::{DeviceSetup, IoeventfdSpec, Line, Vector};
use crate::RegionId;

#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: Box<str>,
    pub(super) regions: Vec<RegionId>,
    pub(super) ioeventfds: Vec<IoeventfdSpec>,
    pub(super) vectors: Vec<Vector>,
    pub(super) lines: Vec<Line>,
    pub(super) may_bypass: bool,
    /// Its ioeventfds are left to the next commit.
    pub(super) defers: bool,
}

impl Device {
    pub(super) fn new(setup: DeviceSetup) -> Self {
        let DeviceSetup { name, regions: _, ioeventfds, vectors, lines, may_bypass, defers } =
            setup;
        Self { name, regions: Vec::new(), ioeventfds, vectors, lines, may_bypass, defers }
    }

    /// Adds what KVM is to have of this device.
    pub(super) fn add_to(&self, state: &mut State, no_irqbypass: bool) {
        let no_irqbypass = no_irqbypass && !self.may_bypass;
        for vector in &self.vectors {
            if let (Some(msi), Some(gsi)) = (vector.msi, vector.gsi) {
                state.routes.insert(Route::msi(gsi, msi));
                state.irqfds.insert(vector.irqfd(gsi, no_irqbypass));
            }
        }
        for line in &self.lines {
            if let Some((chip, pin)) = line.pin {
                state.routes.insert(Route::irqchip(line.gsi, chip, pin));
            }
            state.irqfds.insert(line.irqfd(no_irqbypass));
        }
        if !self.defers {
            state.ioeventfds.extend(self.ioeventfds.iter().map(IoeventfdSpec::ioeventfd));
        }
    }

    /// The part that `step` is about, if it is this device's.
    pub(super) fn part_of(&self, step: &Step) -> Option<DevicePart> {
        match step {
            Step::AssignIrqfd(irqfd) | Step::DeassignIrqfd(irqfd) => {
                let vector = |vector: &Vector| vector.fd.as_raw_fd() == irqfd.fd;
                let line = |line: &&Line| line.fd.as_raw_fd() == irqfd.fd;
                let index = self.vectors.iter().position(vector);
                let vector = index.map(|index| DevicePart::Vector { index });
                vector.or_else(|| {
                    self.lines.iter().find(line).map(|line| DevicePart::Line { gsi: line.gsi })
                })
            }
            Step::AssignIoeventfd(ioeventfd) | Step::DeassignIoeventfd(ioeventfd) => {
                let same = |spec: &IoeventfdSpec| spec.ioeventfd() == *ioeventfd;
                let index = self.ioeventfds.iter().position(same)?;
                let (bus, addr) = (ioeventfd.bus, ioeventfd.addr);
                Some(DevicePart::Ioeventfd { index, bus, addr })
            }
            Step::Routes { from, to } => {
                let gsis = self.vectors.iter().filter_map(|vector| vector.gsi);
                let mut gsis = gsis.chain(self.lines.iter().map(|line| line.gsi));
                let of = |table: &[Route], gsi| -> Vec<Route> {
                    table.iter().filter(|route| route.gsi == gsi).copied().collect()
                };
                gsis.any(|gsi| of(from, gsi) != of(to, gsi)).then_some(DevicePart::Routes)
            }
        }
    }

    /// All its eventfds.
    pub(super) fn fds(&self) -> impl Iterator<Item = Arc<OwnedFd>> + '_ {
        let vectors = self.vectors.iter().map(|vector| &vector.fd);
        let lines = self.lines.iter().flat_map(|line| [Some(&line.fd), line.resample.as_ref()]);
        let ioeventfds = self.ioeventfds.iter().map(|spec| &spec.fd);
        vectors.chain(lines.flatten()).chain(ioeventfds).cloned()
    }
}

impl IoeventfdSpec {
    pub(super) fn ioeventfd(&self) -> Ioeventfd {
        let Self { bus, addr, len, datamatch, ref fd } = *self;
        Ioeventfd { bus, addr, len, datamatch, fd: fd.as_raw_fd() }
    }
}

impl Vector {
    fn irqfd(&self, gsi: u32, no_irqbypass: bool) -> Irqfd {
        Irqfd { gsi, fd: self.fd.as_raw_fd(), resample: None, no_irqbypass }
    }
}

impl Line {
    fn irqfd(&self, no_irqbypass: bool) -> Irqfd {
        let resample = self.resample.as_ref().map(AsRawFd::as_raw_fd);
        Irqfd { gsi: self.gsi, fd: self.fd.as_raw_fd(), resample, no_irqbypass }
    }
}
