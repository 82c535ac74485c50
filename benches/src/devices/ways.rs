//! The ways in which devices are attached and detached.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};

use kvm_ioctls::VmFd;
use kvm_memslots::backend::{EventCalls, EventOp};
use kvm_memslots::device::{Ioeventfd, Irqfd, Route};
use kvm_memslots::{Changes, Vm};

use super::board::{Board, Device};
use crate::spent::Spent;
use crate::timed::{Clock, Kind, Timed, time};
use crate::way::shown_by_name;
use kvm_memslots_kit::machine::calls_of;
use kvm_memslots_kit::raw::set_slot;

/// How devices are attached and detached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Way {
    /// Call by call, as Cloud Hypervisor orders them: of each device the BARs,
    /// the ioeventfds; and for each vector that the guest enables all routes so
    /// far, then its irqfd.
    CloudHypervisor,
    /// Call by call, with ioeventfds at the time a device is registered, before
    /// its memory, as in Firecracker; vectors as above.
    Firecracker,
    /// The library, each device by itself.
    OneByOne,
    /// The same, with the ioeventfds of all left to a set behind the last.
    Deferred,
    /// The library, all devices in one set.
    Together,
    /// The same, with all BARs in one window that is mapped already: placed and
    /// removed by `mmap`, which is in the time and not among the ioctls.
    Window,
}

shown_by_name!(Way);

/// The order in which a VMM makes the calls of several devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallOrder {
    /// Of each device the doorbells before its memory.
    doorbells_first: bool,
    /// All routes in one call, then the irqfds.
    routes_once: bool,
    /// The vectors of a device before the next device.
    by_device: bool,
}

impl CallOrder {
    /// Cloud Hypervisor's: devices are made, then the guest enables vectors.
    pub(crate) const CLOUD_HYPERVISOR: Self =
        Self { doorbells_first: false, routes_once: false, by_device: false };
    /// Firecracker's, with a guest that enables vectors.
    pub(crate) const FIRECRACKER: Self = Self { doorbells_first: true, ..Self::CLOUD_HYPERVISOR };
    /// Firecracker's, where a VM is restored with its vectors.
    pub(crate) const FIRECRACKER_RESTORE: Self = Self { routes_once: true, ..Self::FIRECRACKER };
    /// QEMU's: doorbells and vectors come when the guest starts a device.
    pub(crate) const QEMU: Self = Self { by_device: true, ..Self::CLOUD_HYPERVISOR };
}

/// Attaches and detaches devices of a board.
pub(crate) trait Apply {
    fn attach(&mut self, board: &Board, which: Range<usize>) -> io::Result<Spent>;
    fn detach(&mut self, board: &Board, which: Range<usize>) -> io::Result<Spent>;

    /// What attaching has left to be done behind the last device.
    fn finish(&mut self) -> io::Result<Spent> {
        Ok(Spent::default())
    }
}

/// Call by call.
pub(crate) struct ByHand<'a> {
    vm: &'a VmFd,
    events: Timed,
    clock: Option<Clock>,
    order: CallOrder,
    /// The slot of the first BAR.
    first_slot: u32,
    /// Routes that are no device's.
    own_routes: Vec<Route>,
    /// By GSI.
    routes: BTreeMap<u32, Route>,
}

impl<'a> ByHand<'a> {
    pub(crate) fn new(vm: &'a VmFd, order: CallOrder, clock: Option<Clock>) -> io::Result<Self> {
        let events = Timed::new(calls_of(vm)?, clock.clone());
        let (own_routes, routes) = Default::default();
        Ok(Self { vm, events, clock, order, first_slot: 0, own_routes, routes })
    }

    /// Beside slots and routes that the VM has.
    pub(crate) fn beside(self, first_slot: u32, own_routes: Vec<Route>) -> Self {
        Self { first_slot, own_routes, ..self }
    }

    fn set_bars(&self, device: &Device, index: usize, size: u64) -> io::Result<()> {
        for (bar, (gpa, hva)) in device.bars.iter().enumerate() {
            let slot = self.first_slot + (index * device.bars.len() + bar) as u32;
            // SAFETY: the memory belongs to the board, which outlives the VM's
            // vCPUs.
            let set = || unsafe { set_slot(self.vm, slot, *gpa, size, *hva) };
            time(self.clock.as_ref(), Kind::Memory, set).map_err(io::Error::from)?;
        }
        Ok(())
    }

    fn set_routes(&mut self, spent: &mut Spent) -> io::Result<()> {
        let table = self.own_routes.iter().chain(self.routes.values()).copied();
        self.events.change(&EventOp::routes(table))?;
        *spent += Spent::routes();
        Ok(())
    }

    /// A device's memory and doorbells.
    fn set_up(&self, device: &Device, index: usize, spent: &mut Spent) -> io::Result<()> {
        if !self.order.doorbells_first {
            self.set_bars(device, index, Device::BAR_SIZE)?;
        }
        let assign = |at: Ioeventfd| self.events.change(&EventOp::Assign(at.into()));
        device.ioeventfds().try_for_each(assign)?;
        if self.order.doorbells_first {
            self.set_bars(device, index, Device::BAR_SIZE)?;
        }
        let bars = device.bars.len() as u64;
        *spent += Spent::calls(bars + device.doorbells.len() as u64, bars);
        Ok(())
    }

    /// The vectors of devices.
    fn enable(&mut self, board: &Board, which: Range<usize>, spent: &mut Spent) -> io::Result<()> {
        let vectors = |index| {
            let irqfds = Self::irqfds(&board.devices[index], index);
            irqfds.into_iter().enumerate().map(|(vector, irqfd)| (Device::msi(vector), irqfd))
        };
        let all: Vec<_> = which.flat_map(vectors).collect();
        if self.order.routes_once {
            let routes = all.iter().map(|(msi, irqfd)| (irqfd.gsi, Route::msi(irqfd.gsi, *msi)));
            self.routes.extend(routes);
            self.set_routes(spent)?;
        }
        for (msi, irqfd) in &all {
            if !self.order.routes_once {
                self.routes.insert(irqfd.gsi, Route::msi(irqfd.gsi, *msi));
                self.set_routes(spent)?;
            }
            self.events.change(&EventOp::Assign((*irqfd).into()))?;
            spent.ioctls += 1;
        }
        Ok(())
    }

    fn irqfds(device: &Device, index: usize) -> Vec<Irqfd> {
        let first = FIRST_GSI + (index * device.interrupts.len()) as u32;
        device.interrupts.iter().zip(first..).map(|(fd, gsi)| irqfd(gsi, fd.as_raw_fd())).collect()
    }
}

/// The first GSI that is no pin's.
pub(super) const FIRST_GSI: u32 = 24;

pub(super) const fn irqfd(gsi: u32, fd: RawFd) -> Irqfd {
    Irqfd { gsi, fd, resample: None, no_irqbypass: false }
}

/// Applies a set; what that took.
pub(crate) fn of_set(vm: &Vm, changes: Changes) -> io::Result<Spent> {
    vm.apply(changes).map(|report| Spent::from(&report)).map_err(io::Error::other)
}

impl Apply for ByHand<'_> {
    fn attach(&mut self, board: &Board, which: Range<usize>) -> io::Result<Spent> {
        let mut spent = Spent::default();
        if self.order.by_device {
            for index in which {
                self.set_up(&board.devices[index], index, &mut spent)?;
                self.enable(board, index..index + 1, &mut spent)?;
            }
            return Ok(spent);
        }
        for index in which.clone() {
            self.set_up(&board.devices[index], index, &mut spent)?;
        }
        self.enable(board, which, &mut spent)?;
        Ok(spent)
    }

    fn detach(&mut self, board: &Board, which: Range<usize>) -> io::Result<Spent> {
        let mut spent = Spent::default();
        for index in which {
            let device = &board.devices[index];
            for irqfd in &Self::irqfds(device, index) {
                self.events.change(&EventOp::Deassign((*irqfd).into()))?;
                spent += Spent::irqfd_gone();
                self.routes.remove(&irqfd.gsi);
                self.set_routes(&mut spent)?;
            }
            for ioeventfd in device.ioeventfds() {
                self.events.change(&EventOp::Deassign(ioeventfd.into()))?;
                spent += Spent::ioeventfd_gone();
            }
            self.set_bars(device, index, 0)?;
            let bars = device.bars.len() as u64;
            spent += Spent::calls(bars, 2 * bars);
        }
        Ok(spent)
    }
}
