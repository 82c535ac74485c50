//! A guest that writes anything to the registers of its functions, which have
//! memory and doorbells: over RAM, over KVM's own slot, beyond KVM's addresses, over
//! another device's doorbells, over each other, into a window and across its end.
//! What is there afterwards is what somebody says who knows the registers alone.
//!
//! What is written is for [`Numbers`] to say: `pci_random` beside it takes random ones,
//! `benches/tests/fuzz` those of an input.

mod naive;
mod shapes;

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::sync::Arc;

use kvm_memslots::backend::model::events;
use kvm_memslots::backend::model::memory::{Fault, ModelConfig};
use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::device::{Bus, Device, DeviceId, Doorbell, Ioeventfd};
use kvm_memslots::pci::{FunctionId, PciBars};
use kvm_memslots::window::{Window, WindowSpec};
use kvm_memslots::{Changes, Errno, HolePolicy, Limits, Range, RegionId, Slot, Vm, at};

use self::naive::{Naive, Setting, Wanted};
use self::shapes::{HVA, Kind, SHAPES, memory, spec};
use crate::common::host::memfd;
use crate::common::numbers::Numbers;

const RAM: u64 = 0x10_0000;
/// What comes and goes, and is no BAR.
const OTHER: (u64, u64) = (0x20_2000, 0x1000);
/// KVM's own.
const APIC: u64 = 0xfee0_0000;
const KVM_BITS: u32 = 36;
const PCI_BITS: u32 = 40;
const WINDOW: (u64, u64) = (0x8_0000_0000, 0x1_0000);
/// Doorbells of another device.
const FOREIGN: [(u64, u32); 2] = [(0xe000_1000, 2), (0x20_0010, 8)];
const STEPS: u64 = 60;

struct World {
    vm: Vm,
    model: MemoryModel,
    events: EventModel,
    window: Option<Window>,
    without_slots: bool,
    bars: PciBars,
    file: File,
    deferrable: bool,
    keeps: bool,
    ids: Vec<FunctionId>,
    naive: Vec<Naive>,
    other: Option<RegionId>,
    foreign: Option<DeviceId>,
}

impl World {
    fn new(n: &mut Numbers) -> Self {
        let apic = Range::new(APIC, 0x1000).unwrap();
        let config = ModelConfig::new(Limits::x86().with_batch(64));
        let model =
            MemoryModel::with_config(config.guest_physical_bits(KVM_BITS).internal_slot(apic));
        let events = EventModel::new(Irqchip::Split);
        let mut builder = Vm::builder().holes(HolePolicy::NoVcpuRuns);
        if n.below(2) == 0 {
            builder = builder.executor(kvm_memslots::Executor::PerRegion);
        }
        let vm = builder.open_on(Arc::new(model.clone()), Arc::new(events.clone())).unwrap();
        let window = (n.below(3) > 0).then(|| {
            let window = Window::new(WindowSpec::new(at(WINDOW.0, WINDOW.1))).unwrap();
            let mut c = Changes::new();
            c.map(window.region());
            vm.apply(c).unwrap();
            window
        });
        let mut c = Changes::new();
        c.map(memory(0, RAM, 0x1000_0000));
        vm.apply(c).unwrap();
        let mut bars = PciBars::new(PCI_BITS);
        if let Some(window) = &window {
            bars = bars.in_window(window.clone());
        }
        let without_slots = window.is_some() && n.below(4) == 0;
        if without_slots {
            bars = bars.without_slots();
        }
        let keeps = n.below(3) == 0;
        if keeps {
            bars = bars.keep_ioeventfds();
        }
        let file = memfd(0, 0x1_0000);
        let deferrable = n.below(3) == 0;
        let ids = (0..3).map(|f| bars.add(&vm, spec(f, &file, deferrable)).unwrap()).collect();
        let naive = (0..3).map(Naive::new).collect();
        let (other, foreign) = (None, None);
        Self {
            vm,
            model,
            events,
            window,
            without_slots,
            bars,
            file,
            deferrable,
            keeps,
            ids,
            naive,
            other,
            foreign,
        }
    }

    fn wanted(&self) -> Wanted {
        let setting = Setting {
            functions: &self.naive,
            other: self.other.map(|_| OTHER),
            window: self.window.as_ref().map(|_| WINDOW),
            without_slots: self.without_slots,
            deferrable: self.deferrable,
            foreign: self.foreign(),
        };
        setting.wanted()
    }

    fn foreign(&self) -> Vec<Ioeventfd> {
        let all = FOREIGN.iter().filter(|_| self.foreign.is_some());
        let bell = |(addr, len): &(u64, u32)| Ioeventfd {
            bus: Bus::Mmio,
            addr: *addr,
            len: *len,
            datamatch: None,
            fd: 7,
        };
        all.map(bell).collect()
    }

    fn found(&self) -> Wanted {
        let regions = self.vm.regions();
        let regions = regions.iter().filter(|region| (HVA..HVA + (1 << 32)).contains(&region.hva));
        let mapped = regions.map(|r| (r.range.gpa(), r.range.size(), r.hva)).collect();
        let placed = self.window.iter().flat_map(Window::placed);
        let placed = placed.map(|placement| (placement.offset, placement.len)).collect();
        let foreign = self.foreign();
        let bells = self.events.state();
        let bells = bells.ioeventfds().filter(|bell| !foreign.contains(bell)).collect();
        let mut refused = BTreeSet::new();
        for (function, shapes) in SHAPES.iter().enumerate() {
            for (bar, shape) in shapes.iter().enumerate() {
                let index =
                    (shape.kind != Kind::Rom).then_some((shape.register.wrapping_sub(0x10)) / 4);
                if self.bars.refusal(self.ids[function], index).is_some() {
                    refused.insert((function, bar));
                }
            }
        }
        Wanted { mapped, placed, bells, refused }
    }

    fn check(&self, what: &What<'_>) {
        let (mut found, wanted) = (self.found(), self.wanted());
        if self.keeps {
            // Those of BARs that don't decode may be where they were.
            found.bells.retain(|bell| wanted.bells.contains(bell));
        }
        // What was refused stays so where something is in its way by now.
        found.refused.retain(|(function, bar)| {
            let decodes = self.naive[*function].bases[*bar].is_some();
            assert!(decodes, "{what}");
            wanted.refused.contains(&(*function, *bar))
        });
        assert_eq!(found, wanted, "{what}");
        assert_eq!(self.vm.event_state().unwrap(), self.events.state(), "{what}");
        // KVM knows no kinds, and its model neither.
        let plain = |slots: Vec<Slot>| -> Vec<_> {
            let what = |slot: &Slot| (slot.id, slot.mapping.range(), slot.mapping.hva());
            slots.iter().map(what).collect()
        };
        assert_eq!(plain(self.vm.slots(0)), plain(self.model.slots(0)), "{what}");
        for (function, naive) in self.naive.iter().enumerate() {
            for (shape, base) in SHAPES[function].iter().zip(&naive.bases) {
                let index = (shape.kind != Kind::Rom).then(|| (shape.register - 0x10) / 4);
                assert_eq!(self.bars.base(self.ids[function], index), *base, "{what}");
            }
        }
    }

    /// Anything that a guest or its VMM does; whether it has to succeed.
    fn step(&mut self, n: &mut Numbers) -> (String, bool) {
        let function = n.below(3) as usize;
        let id = self.ids[function];
        match n.below(26) {
            0 => {
                self.naive[function] = Naive::new(function);
                (format!("reset {function}"), self.bars.reset(&self.vm, id).is_ok())
            }
            1 => {
                let gone = self.bars.remove(&self.vm, id).is_ok();
                self.naive[function] = Naive::new(function);
                if gone {
                    // It is the last of the functions now; so are its claims.
                    self.readd();
                }
                (format!("unplug {function}"), gone)
            }
            2 => {
                let mut c = Changes::new();
                if let Some(id) = self.other {
                    c.unmap(id);
                    if self.vm.apply(c).is_ok() {
                        self.other = None;
                    }
                } else {
                    let id = c.map(memory(OTHER.0, OTHER.1, 0x2000_0000));
                    self.other = self.vm.apply(c).is_ok().then_some(id);
                }
                ("other memory".into(), self.bars.sync(&self.vm).is_ok())
            }
            3 => {
                let mut c = Changes::new();
                if let Some(id) = self.foreign {
                    c.detach(id);
                    if self.vm.apply(c).is_ok() {
                        self.foreign = None;
                    }
                } else {
                    let device = FOREIGN.iter().fold(Device::new("foreign"), |device, bell| {
                        device.ioeventfd(Doorbell::at(Bus::Mmio, bell.0).len(bell.1), 7)
                    });
                    let id = c.attach(device);
                    self.foreign = self.vm.apply(c).is_ok().then_some(id);
                }
                ("another device".into(), self.bars.sync(&self.vm).is_ok())
            }
            4 => {
                // One that KVM refuses may be all that waits.
                let done = self.vm.promote().is_ok_and(|report| report.is_none());
                ("promote".into(), self.deferrable || done)
            }
            24..=25 => self.write_anywhere(function, n),
            5..=8 => {
                let data = [n.pick(&[2, 2, 0]), 0];
                self.naive[function].write(function, 4, &data);
                let done = self.bars.config_write(&self.vm, id, 4, &data).is_ok();
                (format!("command of {function}: {data:?}"), done)
            }
            _ => {
                let shape = &SHAPES[function][n.below(SHAPES[function].len() as u64) as usize];
                let value = n.pick(&[
                    0,
                    1,
                    u32::MAX,
                    0xf_c000,
                    0x10_0000,
                    0x10_0001,
                    0x20_0000,
                    0x20_0001,
                    0x20_1000,
                    0x20_2001,
                    0xe000_0000,
                    0xe000_0001,
                    0xe000_1000,
                    0xe000_2000,
                    0xe000_4000,
                    0xfee0_0000,
                    0xfedf_c000,
                    0xfee0_0001,
                    0xffff_0000,
                    0xffff_c000,
                    0x4000,
                    0x8000,
                    0xc000,
                    0xe000,
                    0xffff_ffff,
                ]);
                let (offset, value) = match (shape.kind, n.below(3)) {
                    (Kind::High, 0) => {
                        (shape.register + 4, n.pick(&[0, 0, 8, 8, 0xf, 0x10, 0x100, u32::MAX, 7]))
                    }
                    _ => (shape.register, value),
                };
                let (from, to) = n.pick(&[(0, 4), (0, 4), (0, 4), (0, 2), (2, 4), (1, 2), (3, 4)]);
                let data = &value.to_le_bytes()[from..to];
                self.naive[function].write(function, offset + from, data);
                let at = (offset + from) as u16;
                let done = self.bars.config_write(&self.vm, id, at, data).is_ok();
                (format!("{at:#x} of {function}: {data:x?}"), done)
            }
        }
    }

    /// Also behind the registers, and behind the config space.
    fn write_anywhere(&mut self, function: usize, n: &mut Numbers) -> (String, bool) {
        let id = self.ids[function];
        let offset = n.pick(&[0, 0x40, 0xf0, 0xff00, 0xffc0]) + n.below(64) as u16;
        let len = n.below(9) as usize;
        let data: Vec<u8> = (0..len).map(|_| n.pick(&[0, 1, 2, 0x20, 0xe0, 0xff])).collect();
        self.naive[function].write(function, offset.into(), &data);
        let done = self.bars.config_write(&self.vm, id, offset, &data).is_ok();
        let read = self.bars.config_read(id, offset, &mut [0; 9][..len]).is_ok();
        (format!("{offset:#x} of {function}: {data:x?}"), done && read)
    }

    /// All functions anew, in their order: what was removed comes last otherwise.
    fn readd(&mut self) {
        self.model.clear_faults();
        self.events.clear_faults();
        let gone: Vec<usize> =
            (0..3).filter(|f| self.bars.config_read(self.ids[*f], 0, &mut [0]).is_err()).collect();
        for function in gone {
            for other in function + 1..3 {
                self.bars.remove(&self.vm, self.ids[other]).unwrap();
                self.naive[other] = Naive::new(other);
            }
            for other in function..3 {
                let spec = spec(other, &self.file, self.deferrable);
                self.ids[other] = self.bars.add(&self.vm, spec).unwrap();
            }
        }
    }
}

/// Where in a program, for who asks.
struct What<'a>(&'a str, u64, &'a [String]);

impl Display for What<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}, step {}: {:#?}", self.0, self.1, self.2)
    }
}

/// What `n` says, until it says no more.
pub(crate) fn program(n: &mut Numbers, name: &str) {
    let mut world = World::new(n);
    let mut told = Vec::new();
    for step in 0..STEPS {
        if n.is_over() {
            break;
        }
        let faulty = n.below(12) == 0;
        if faulty {
            let k = 1 + n.below(4);
            match n.below(2) {
                0 => world.model.inject(Fault::nth(k, Errno::ENOMEM)),
                _ => world.events.inject(events::Fault::nth(k, Errno::ENOMEM)),
            }
        }
        let (text, done) = world.step(n);
        world.model.clear_faults();
        world.events.clear_faults();
        told.push(text);
        let what = What(name, step, &told);
        assert!(done || faulty, "{what}");
        if faulty {
            world.bars.sync(&world.vm).unwrap();
            world.readd();
        }
        world.check(&what);
    }
}
