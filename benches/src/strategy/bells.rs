//! Doorbells of the devices that a guest enables.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use anyhow::{Result, bail};
use kvm_memslots::backend::{EventCalls, EventOp, Kvm};
use kvm_memslots::device::{Bus, Ioeventfd};
use kvm_memslots::pci::{BarSpec, FunctionSpec};
use kvm_memslots_kit::guest::Access;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::refused;

/// The BAR that they are in, and nothing else: which, its size, and where the guest
/// puts that of the first device.
const BAR: usize = 4;
const SIZE: u64 = 4096;
const BASE: u64 = 0xd000_0000;

/// How many a device has, so far from each other.
const EACH: u64 = 4;
const STRIDE: u64 = 4;
/// Bytes that the guest writes.
const LEN: u32 = 2;

/// Those of all devices; of none, if they have none.
#[derive(Debug)]
pub struct Bells(Vec<Vec<Arc<EventFd>>>);

impl Bells {
    /// For so many devices.
    ///
    /// # Errors
    /// There are no eventfds left.
    pub fn new(devices: usize) -> io::Result<Self> {
        let device = |_| (0..EACH).map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new)).collect();
        (0..devices).map(device).collect::<io::Result<_>>().map(Self)
    }

    /// What the config space of a device says of its BAR, if it has one: the register
    /// and the address.
    pub(super) fn register(&self, device: usize) -> Option<(u64, u64)> {
        (device < self.0.len()).then(|| (0x10 + 4 * BAR as u64, base(device)))
    }

    /// A function with that BAR.
    pub(super) fn add_to(&self, device: usize, function: FunctionSpec) -> FunctionSpec {
        let Some(bells) = self.0.get(device) else { return function };
        let bar = (0..).zip(bells).fold(BarSpec::memory32(SIZE), |bar, (n, bell)| {
            bar.ioeventfd(n * STRIDE, LEN, None, Arc::clone(bell))
        });
        function.bar(BAR, bar)
    }

    /// Assigns those of a device by hand, and says in how many calls.
    pub(super) fn assign(&self, device: usize, calls: &Kvm) -> Result<u64> {
        let Some(bells) = self.0.get(device) else { return Ok(0) };
        for (gpa, bell) in addresses(device).zip(bells) {
            let (bus, fd) = (Bus::Mmio, bell.as_raw_fd());
            let bell = Ioeventfd { bus, addr: gpa, len: LEN, datamatch: None, fd };
            let assigned = calls.change(&EventOp::Assign(bell.into()));
            assigned.map_err(|errno| refused("an ioeventfd", gpa, errno))?;
        }
        Ok(EACH)
    }

    /// The guest rings each once.
    pub(super) fn rings(&self) -> impl Iterator<Item = Access> + '_ {
        (0..self.0.len()).flat_map(addresses).map(|gpa| Access::Store(gpa, LEN as u8, 1))
    }

    /// Each was rung once.
    pub(super) fn check(&self) -> Result<()> {
        for (device, bells) in self.0.iter().enumerate() {
            let mut rung = addresses(device).zip(bells);
            let silent = rung.find(|(_, bell)| !matches!(bell.read(), Ok(1)));
            if let Some((gpa, _)) = silent {
                bail!("the doorbell at GPA {gpa:#x} was not rung once");
            }
        }
        Ok(())
    }
}

const fn base(device: usize) -> u64 {
    BASE + device as u64 * SIZE
}

fn addresses(device: usize) -> impl Iterator<Item = u64> {
    (0..EACH).map(move |n| base(device) + n * STRIDE)
}
