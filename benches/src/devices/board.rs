//! What the devices are made of: guest addresses, host memory, eventfds.

use std::io;
use std::os::fd::AsRawFd;

use kvm_memslots::device::{self, Bus, Doorbell, Ioeventfd, Msi};
use kvm_memslots::{Access, Backing, RegionId, RegionSpec, at};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Size;
use kvm_memslots_kit::host::{HostMemory, Pages};

/// Bytes of a BAR.
const BAR_SIZE: u64 = 16 << 10;
/// The 64-bit window that BARs are in.
const WINDOW: u64 = 64 << 30;
/// Where doorbells are, which no memory covers.
const DOORBELLS: u64 = 0xd000_0000;
/// Interrupts of devices start here.
const FIRST_VECTOR: u32 = 0x30;

/// One device.
#[derive(Debug)]
pub(crate) struct Device {
    /// Guest address and host address.
    pub(crate) bars: Vec<(u64, u64)>,
    pub(super) doorbells: Vec<EventFd>,
    doorbell: u64,
    pub(crate) interrupts: Vec<EventFd>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) devices: Vec<Device>,
    size: u64,
    _memory: HostMemory,
}

/// As many as are asked for.
pub(super) fn eventfds<E: From<EventFd>>(count: u32) -> io::Result<Vec<E>> {
    (0..count).map(|_| EventFd::new(EFD_NONBLOCK).map(E::from)).collect()
}

impl Board {
    pub(crate) fn new(args: &Size) -> io::Result<Self> {
        let bars = u64::from(args.devices) * u64::from(args.bars);
        let stride = if args.scattered { 2 * BAR_SIZE } else { BAR_SIZE };
        let memory = HostMemory::reserve(bars * BAR_SIZE, Pages::Small)?;
        let device = |index: u64| {
            let first = index * u64::from(args.bars);
            let bar = |bar| (WINDOW + bar * stride, memory.hva() + bar * BAR_SIZE);
            Ok(Device {
                bars: (first..first + u64::from(args.bars)).map(bar).collect(),
                doorbells: eventfds(args.ioeventfds)?,
                doorbell: DOORBELLS + index * 0x1000,
                interrupts: eventfds(args.vectors)?,
            })
        };
        let devices = (0..u64::from(args.devices)).map(device).collect::<io::Result<_>>()?;
        let size = (bars * stride).max(BAR_SIZE);
        Ok(Self { devices, size, _memory: memory })
    }

    /// The guest addresses that all BARs are in: the first, and how many.
    pub(super) const fn bars_span(&self) -> (u64, u64) {
        (WINDOW, self.size)
    }
}

impl Device {
    pub(super) const BAR_SIZE: u64 = BAR_SIZE;

    /// The ioeventfds: a queue each, told apart by address.
    pub(super) fn ioeventfds(&self) -> impl Iterator<Item = Ioeventfd> + '_ {
        self.doorbells.iter().zip(0..).map(|(fd, queue)| Ioeventfd {
            bus: Bus::Mmio,
            addr: self.doorbell + queue * 4,
            len: 2,
            datamatch: None,
            fd: fd.as_raw_fd(),
        })
    }

    pub(crate) fn msi(vector: usize) -> Msi {
        Msi { address: 0xfee0_0000, data: FIRST_VECTOR + vector as u32, devid: None }
    }

    /// For the library; with its vectors masked, if they come later.
    ///
    /// # Safety
    /// The board outlives the device's attachment.
    pub(crate) unsafe fn setup(&self, index: usize, masked: bool) -> device::Device {
        self.bars.iter().fold(self.events(index, masked), |device, (gpa, hva)| {
            // SAFETY: the caller's promise; nothing else uses the memory.
            let backing = unsafe { Backing::borrowed(*hva, BAR_SIZE, Access::ReadWrite) };
            // The devices come and go together.
            let bar = RegionSpec::device(at(*gpa, BAR_SIZE), backing).permanent();
            device.region(RegionId::new(), bar)
        })
    }

    /// The same without its memory.
    pub(super) fn events(&self, index: usize, masked: bool) -> device::Device {
        let mut device = device::Device::new(format!("dev{index}"));
        for ioeventfd in self.ioeventfds() {
            let doorbell = Doorbell::at(ioeventfd.bus, ioeventfd.addr).len(ioeventfd.len);
            device = device.ioeventfd(doorbell, ioeventfd.fd);
        }
        for (vector, fd) in self.interrupts.iter().enumerate() {
            device = device.vector(fd.as_raw_fd(), (!masked).then(|| Self::msi(vector)));
        }
        device
    }
}
