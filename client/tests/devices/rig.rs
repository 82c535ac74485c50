//! An address space and an eventing on models, and devices for them.

use std::os::fd::{FromRawFd, OwnedFd};

use kvm_memslots::backend::Model;
use kvm_memslots::backend::model::SharedModel;
use kvm_memslots::device::{
    Bus, DeviceSetup, EventModel, Eventing, EventingBuilder, Irqchip, Msi, Route, SharedEventModel,
    State,
};
use kvm_memslots::{AddressSpace, HolePolicy, Limits, RegionSpec, Slot};

pub(crate) const BAR: u64 = 0xe000_0000;
pub(crate) const BAR_SIZE: u64 = 0x4000;
const HVA: u64 = 0x7f00_0000_0000;

pub(crate) fn eventfd() -> OwnedFd {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    assert!(fd >= 0);
    // SAFETY: the descriptor is new, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub(crate) fn msi(vector: u32) -> Msi {
    Msi { address: 0xfee0_0000, data: vector, devid: None }
}

pub(crate) struct Rig {
    pub(crate) space: AddressSpace,
    pub(crate) eventing: Eventing,
    pub(crate) memory: SharedModel,
    pub(crate) events: SharedEventModel,
}

/// What a guest could notice.
pub(crate) type Seen = (Vec<Slot>, State);

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(Irqchip::Full, |builder| builder.routes(Route::x86_defaults()))
    }

    pub(crate) fn with(
        irqchip: Irqchip,
        options: impl FnOnce(EventingBuilder) -> EventingBuilder,
    ) -> Self {
        let memory = Model::new(Limits::x86()).shared();
        let events = EventModel::new(irqchip).shared();
        let space = AddressSpace::builder()
            .holes(HolePolicy::NoVcpuRuns)
            .open_on(Box::new(memory.clone()))
            .unwrap();
        let builder = options(Eventing::builder());
        let eventing = builder.open_on(Box::new(events.clone())).unwrap();
        Self { space, eventing, memory, events }
    }

    pub(crate) fn seen(&self) -> Seen {
        (self.memory.lock().slots(0).collect(), self.events.lock().state().clone())
    }

    /// The library's idea of what KVM has is right.
    pub(crate) fn assert_known(&self) {
        assert_eq!(*self.eventing.live(), *self.events.lock().state());
    }
}

/// Device `n`: a BAR, two ioeventfds, four vectors of which one is masked, and
/// a line. `line` 0 is none.
pub(crate) fn device(n: u64, line: u32) -> DeviceSetup {
    let mut setup = DeviceSetup::new(format!("dev{n}"));
    let gpa = BAR + n * BAR_SIZE;
    let region = RegionSpec::device(gpa, BAR_SIZE, HVA + n * BAR_SIZE);
    // SAFETY: the model maps nothing.
    unsafe { setup.region(region) };
    let doorbell = 0xd000_0000 + n * 0x1000;
    setup.ioeventfd(Bus::Mmio, doorbell, 2, Some(0), eventfd()).unwrap();
    setup.ioeventfd(Bus::Mmio, doorbell, 2, Some(1), eventfd()).unwrap();
    for vector in 0..3 {
        setup.vector(eventfd(), Some(msi(0x30 + vector))).unwrap();
    }
    setup.vector(eventfd(), None).unwrap();
    if line != 0 {
        setup.line(line, None, eventfd(), Some(&eventfd())).unwrap();
    }
    setup
}
