//! Config writes that a guest makes: whatever they are, only its own BARs move.

use std::sync::Arc;

use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::pci::{BarSpec, FunctionSpec, PciBars};
use kvm_memslots::{
    Access, Backing, Changes, Executor, HolePolicy, HostMemory, Limits, RegionSpec, Vm, at,
};

use super::engine::{Numbers, corpus, fuzz};

/// Host addresses on paper.
#[derive(Debug)]
struct Paper(u64, u64);

// SAFETY: only ever mapped into a model.
unsafe impl HostMemory for Paper {
    fn range(&self) -> (u64, u64) {
        (self.0, self.1)
    }
}

const RAM: u64 = 0x10_0000;
const HVA: u64 = 0x7000_0000_0000;

fn window(offset: u64, size: u64, number: u64) -> RegionSpec {
    let hva = HVA + number * 0x100_0000;
    // SAFETY: the model touches no memory.
    let backing = unsafe { Backing::borrowed(hva, size, Access::ReadWrite) };
    RegionSpec::ram(at(offset, size), backing)
}

fn functions() -> [FunctionSpec; 2] {
    let first = FunctionSpec::new()
        .bar(0, BarSpec::memory32(0x4000).window(window(0, 0x1000, 1)))
        .bar(1, BarSpec::io(32))
        .bar(2, BarSpec::memory64(0x1_0000).window(window(0, 0x1_0000, 2)))
        .rom(BarSpec::rom(0x1000).window(window(0, 0x1000, 3)));
    let second = FunctionSpec::new()
        .bridge()
        .bar(0, BarSpec::memory64(0x2000).window(window(0x1000, 0x1000, 4)));
    [first, second]
}

fn write(input: &[u8]) {
    let mut numbers = Numbers(input);
    let executor = if numbers.byte() & 1 == 0 { Executor::PerRegion } else { Executor::Batch };
    let model = MemoryModel::new(Limits::x86().with_batch(64));
    let events = Arc::new(EventModel::new(Irqchip::Split));
    let builder = Vm::builder().executor(executor).holes(HolePolicy::NoVcpuRuns);
    let vm = builder.open_on(Arc::new(model.clone()), events).unwrap();
    let mut c = Changes::new();
    let ram =
        c.map(RegionSpec::ram(at(0, RAM), Backing::owned(Arc::new(Paper(0x1000_0000, RAM)), 0)));
    vm.apply(c).unwrap();
    let mut bars = PciBars::new(40);
    let ids = functions().map(|function| bars.add(&vm, function).unwrap());
    while !numbers.is_empty() {
        let id = ids[usize::from(numbers.byte()) % ids.len()];
        let (kind, offset) = (numbers.byte(), u16::from(numbers.byte()));
        if kind == 0 {
            bars.reset(&vm, id).unwrap();
        } else {
            let length = usize::from(kind) % 9;
            let data: Vec<u8> = (0..length).map(|_| numbers.byte()).collect();
            // Behind the end of the config space, too.
            let offset = if kind >= 250 { u16::MAX - offset } else { offset };
            bars.config_write(&vm, id, offset, &data).unwrap();
            bars.config_read(id, offset, &mut [0; 9][..length]).unwrap();
        }
        look(&vm, &model, &bars, &ids, ram);
    }
}

fn look(
    vm: &Vm,
    model: &MemoryModel,
    bars: &PciBars,
    ids: &[kvm_memslots::pci::FunctionId],
    ram: kvm_memslots::RegionId,
) {
    assert_eq!(vm.slots(0), model.slots(0));
    assert_eq!(vm.region_at(0, RAM - 1).map(|region| region.id), Some(ram));
    assert_eq!(vm.region(ram).unwrap().range.size(), RAM);
    let mut mapped = 1;
    for id in ids {
        for bar in (0..6).map(Some).chain([None]) {
            for (_, region) in bars.regions(*id, bar) {
                let region = vm.region(region).unwrap();
                let base = bars.base(*id, bar).unwrap();
                assert!(region.range.gpa() >= base && region.range.gpa() >= RAM);
                mapped += 1;
            }
        }
    }
    assert_eq!(vm.regions().len(), mapped);
}

#[test]
fn config_writes_move_only_their_own_bars() {
    fuzz("pci", &corpus("pci"), &[], write);
}
