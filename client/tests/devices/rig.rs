//! A VM on models, and devices for it.

use std::sync::Arc;

use kvm_memslots::backend::{EventModel, EventState, Irqchip, MemoryModel};
use kvm_memslots::device::{Bus, Device, DeviceId, Doorbell, Event, Msi, Route};
use kvm_memslots::{
    Access, Backing, Builder, Changes, Error, HolePolicy, Limits, RegionId, RegionSpec, Report,
    Slot, Vm, at,
};

pub(crate) use crate::host::eventfd;

pub(crate) const BAR: u64 = 0xe000_0000;
pub(crate) const BAR_SIZE: u64 = 0x4000;
pub(crate) const HVA: u64 = 0x7f00_0000_0000;

pub(crate) fn msi(vector: u32) -> Msi {
    Msi { address: 0xfee0_0000, data: vector, devid: None }
}

/// Memory of its own. KVM knows no kinds, and its model neither.
pub(crate) fn bar(gpa: u64, size: u64) -> RegionSpec {
    // SAFETY: the model maps nothing.
    let memory = unsafe { Backing::borrowed(HVA + gpa, size, Access::ReadWrite) };
    RegionSpec::ram(at(gpa, size), memory)
}

pub(crate) struct Rig {
    pub(crate) vm: Vm,
    pub(crate) memory: MemoryModel,
    pub(crate) events: EventModel,
}

/// What a guest could notice.
pub(crate) type Seen = (Vec<Slot>, EventState);

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(Irqchip::Full, |builder| builder.own_routes(Route::x86_defaults()))
    }

    pub(crate) fn with(irqchip: Irqchip, options: impl FnOnce(Builder) -> Builder) -> Self {
        Self::on(Limits::x86(), EventModel::new(irqchip), options)
    }

    pub(crate) fn on(
        limits: Limits,
        events: EventModel,
        options: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let memory = MemoryModel::new(limits);
        let builder = options(Vm::builder().holes(HolePolicy::NoVcpuRuns));
        let vm = builder.open_on(Arc::new(memory.clone()), Arc::new(events.clone())).unwrap();
        Self { vm, memory, events }
    }

    pub(crate) fn seen(&self) -> Seen {
        (self.memory.slots(0), self.events.state())
    }

    /// The library's idea of what KVM has is right.
    pub(crate) fn assert_known(&self) {
        assert_eq!(self.vm.event_state().unwrap(), self.events.state());
        assert_eq!(self.vm.slots(0), self.memory.slots(0));
    }

    /// Applies the changes that `f` makes.
    pub(crate) fn apply<T>(&self, f: impl FnOnce(&mut Changes) -> T) -> Result<(T, Report), Error> {
        let mut c = Changes::new();
        let made = f(&mut c);
        self.vm.apply(c).map(|report| (made, report))
    }

    pub(crate) fn attach_all(
        &self,
        devices: impl IntoIterator<Item = Device>,
    ) -> Result<(Vec<DeviceId>, Report), Error> {
        self.apply(|c| devices.into_iter().map(|device| c.attach(device)).collect())
    }

    pub(crate) fn attach(&self, device: Device) -> Result<DeviceId, Error> {
        self.apply(|c| c.attach(device)).map(|(id, _)| id)
    }

    pub(crate) fn detach_all(&self, ids: &[DeviceId]) -> Result<Report, Error> {
        self.apply(|c| ids.iter().for_each(|id| c.detach(*id))).map(|(_, report)| report)
    }

    pub(crate) fn detach(&self, id: DeviceId) -> Result<Report, Error> {
        self.detach_all(&[id])
    }

    pub(crate) fn set_vector(
        &self,
        id: DeviceId,
        vector: usize,
        msi: Option<Msi>,
    ) -> Result<Report, Error> {
        self.apply(|c| c.set_vector(id, vector, msi)).map(|(_, report)| report)
    }
}

/// Device `n`: a BAR, two ioeventfds, four vectors of which one is masked, and
/// a line. `line` 0 is none.
pub(crate) fn device(n: u64, line: u32) -> Device {
    let region = bar(BAR + n * BAR_SIZE, BAR_SIZE);
    let doorbell = Doorbell::at(Bus::Mmio, 0xd000_0000 + n * 0x1000).len(2);
    let mut device = Device::new(format!("dev{n}"))
        .region(RegionId::new(), region)
        .ioeventfd(doorbell.value(0), eventfd())
        .ioeventfd(doorbell.value(1), eventfd());
    for vector in 0..3 {
        device = device.vector(eventfd(), Some(msi(0x30 + vector)));
    }
    device = device.vector(eventfd(), None);
    if line != 0 {
        device = device.line(line, None, eventfd(), Some(Event::new(eventfd())));
    }
    device
}
