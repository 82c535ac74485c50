//! After any config writes exactly the windows are mapped that the registers
//! say, and changes are only made where that changes something.

mod world;

use std::sync::Arc;

use kvm_memslots::backend::model::memory::Fault;
use kvm_memslots::pci::{BarSpec, Decoded, FunctionSpec, PciBars, PciError};
use kvm_memslots::{
    Backing, Errno, ErrorKind, Executor, HostMemory, MemFlags, RegionSpec, Report, at,
};
use proptest::prelude::*;
use world::*;

fn difference(from: &Mapped, of: &Mapped) -> usize {
    from.iter().filter(|window| !of.contains(window)).count()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn the_registers_say_what_is_mapped(ops in prop::collection::vec(op(), 1..60)) {
        for executor in [Executor::PerRegion, Executor::Batch] {
            let mut world = World::new(executor, false);
            for op in &ops {
                let (before, calls) = (mapped(&world.vm), world.model.counts().ioctls);
                let other = world.other;
                let report = world.apply(op).unwrap();
                let after = mapped(&world.vm);
                prop_assert_eq!(&after, &world.wanted(), "{:?}", op);
                // Changes exactly where something changed, and one call at most
                // for each window that went or came.
                prop_assert_eq!(report.is_some(), before != after, "{:?}", op);
                let calls = world.model.counts().ioctls - calls;
                let changes = difference(&before, &after) + difference(&after, &before);
                let most = if executor == Executor::Batch { usize::from(changes > 0) } else { changes };
                let allowed = most as u64 + u64::from(other != world.other);
                prop_assert!(calls <= allowed, "{:?}: {} calls for {} changes", op, calls, changes);
                let mut by_bar = 0;
                for (function, naive) in world.naive.iter().enumerate() {
                    for (bar, base) in naive.bases.iter().enumerate() {
                        let shape = SHAPES[function][bar];
                        let index = (!shape.is_rom).then_some((shape.register - 0x10) / 4);
                        prop_assert_eq!(world.bars.base(world.ids[function], index), *base);
                        for (window, id) in world.bars.regions(world.ids[function], index) {
                            let region = world.vm.region(id).unwrap();
                            prop_assert_eq!(region.hva, hva(function, bar, window));
                            by_bar += 1;
                        }
                    }
                }
                prop_assert_eq!(by_bar, after.len());
                prop_assert_eq!(world.vm.slots(0), world.model.slots(0));
            }
        }
    }

    /// No config write makes a call for windows that wait; one set makes them
    /// all.
    #[test]
    fn deferrable_bars_wait(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new(Executor::Batch, true);
        for op in ops.iter().filter(|op| !matches!(op, Op::Other)) {
            let calls = world.model.counts().ioctls;
            world.apply(op).unwrap();
            prop_assert_eq!(world.model.counts().ioctls, calls);
            prop_assert_eq!(mapped(&world.vm), world.wanted());
        }
        let waiting = mapped(&world.vm).len();
        let report = world.vm.promote().unwrap();
        prop_assert_eq!(report.map(|report| report.ioctls), (waiting > 0).then_some(1));
        prop_assert_eq!(world.model.slots(0).len(), 1 + waiting);
    }
}

/// Sizes and places the BARs as Linux does: decoding off meanwhile.
fn write(world: &mut World, function: usize, offset: usize, value: u32) -> Option<Report> {
    let data = value.to_le_bytes().to_vec();
    world.apply(&Op::Write { function, offset, data }).unwrap()
}

#[test]
fn a_boot_costs_a_set_for_each_function() {
    let mut world = World::new(Executor::PerRegion, false);
    for (function, register, address) in
        [(0, 0x10, 0xe000_0000), (0, 0x18, 0xe001_0000), (1, 0x10, 0xe002_0000)]
    {
        assert!(write(&mut world, function, register, u32::MAX).is_none());
        assert!(write(&mut world, function, register, address).is_none());
    }
    assert_eq!(write(&mut world, 0, COMMAND, 2).map(|report| report.ioctls), Some(3));
    assert_eq!(write(&mut world, 1, COMMAND, 2).map(|report| report.ioctls), Some(1));
    // Bus mastering, interrupts: no memory.
    assert!(write(&mut world, 1, COMMAND, 0x406).is_none());
    // Asked once more, with decoding on.
    assert!(write(&mut world, 0, 0x10, u32::MAX).is_none());
    assert!(write(&mut world, 0, 0x10, 0xe000_0000).is_none());
    // One BAR moves.
    let moved = write(&mut world, 0, 0x18, 0xe003_0000).unwrap();
    assert_eq!((moved.ioctls, moved.grace_periods), (1, 2));
    let hit = world.bars.decode(0xe003_1234).unwrap();
    assert_eq!(hit, (world.ids[0], Decoded { bar: Some(2), offset: 0x1234 }));
    assert_eq!(write(&mut world, 0, COMMAND, 0).map(|report| report.ioctls), Some(3));
}

#[test]
fn what_the_vmm_restores_is_one_set() {
    let mut world = World::new(Executor::PerRegion, false);
    for function in 0..2 {
        let id = world.ids[function];
        let base = 0xe000_0000 + 0x10_0000 * function as u32;
        world.bars.note_write(id, 0x10, &base.to_le_bytes()).unwrap();
        world.bars.note_write(id, 4, &[2]).unwrap();
    }
    assert!(mapped(&world.vm).is_empty());
    assert!(world.bars.sync(&world.vm).unwrap().is_some());
    assert_eq!(mapped(&world.vm).len(), 3);
    assert!(world.bars.sync(&world.vm).unwrap().is_none());
    world.bars.remove(&world.vm, world.ids[0]).unwrap().unwrap();
    let gone = world.bars.config_write(&world.vm, world.ids[0], 4, &[2]);
    assert!(matches!(gone, Err(PciError::UnknownFunction(_))));
    assert_eq!(mapped(&world.vm).len(), 1);
}

/// That KVM is out of memory is no mistake of the guest's, and passes.
#[test]
fn changes_that_failed_are_made_up_for() {
    for executor in [Executor::PerRegion, Executor::Batch] {
        let mut world = World::new(executor, false);
        write(&mut world, 1, 0x10, 0xe000_0000);
        world.model.inject(Fault::nth(1, Errno::ENOMEM));
        let op = Op::Write { function: 1, offset: COMMAND, data: vec![2] };
        let Err(PciError::Vm(error)) = world.apply(&op) else { panic!("{executor:?}") };
        assert_eq!(error.errno(), Errno::ENOMEM, "{error}");
        assert!(mapped(&world.vm).is_empty());
        // Any write makes up for it.
        assert!(write(&mut world, 0, COMMAND, 0).is_some());
        assert_eq!(mapped(&world.vm), world.wanted());
    }
}

/// What an address is refused with is the guest's mistake: it goes on.
#[test]
fn an_address_that_kvm_refuses_is_the_guests_mistake() {
    for errno in [Errno::EINVAL, Errno::EEXIST, Errno::EFAULT] {
        let mut world = World::new(Executor::PerRegion, false);
        write(&mut world, 1, 0x10, 0xe000_0000);
        (1..=2).for_each(|nth| world.model.inject(Fault::nth(nth, errno)));
        let op = Op::Write { function: 1, offset: COMMAND, data: vec![2] };
        world.apply(&op).unwrap();
        let refusal = world.bars.refusal(world.ids[1], Some(0)).unwrap();
        assert_eq!(refusal.errno(), errno, "{refusal}");
        assert!(mapped(&world.vm).is_empty());
    }
}

/// A window that KVM refuses is that BAR's trouble: all others are followed.
#[test]
fn a_bar_that_kvm_refuses_stops_nobody_else() {
    for executor in [Executor::PerRegion, Executor::Batch] {
        let mut world = World::new(executor, false);
        let id = |world: &World, function: usize| world.ids[function];
        write(&mut world, 0, 0x10, 0xe000_0000);
        write(&mut world, 1, 0x10, 0xe002_0000);
        // KVM has no such addresses, and the VMM has not said so.
        let mut bars = std::mem::replace(&mut world.bars, PciBars::new(64));
        for function in 0..2 {
            bars.remove(&world.vm, id(&world, function)).unwrap();
            world.ids[function] = world.bars.add(&world.vm, spec(function, false)).unwrap();
        }
        let beyond: u64 = 1 << 60;
        let note = |world: &mut World, function: usize, offset, value: u32| {
            let id = world.ids[function];
            world.bars.note_write(id, offset, &value.to_le_bytes()).unwrap();
        };
        note(&mut world, 0, 0x10, 0xe000_0000);
        note(&mut world, 0, 0x18, 0);
        note(&mut world, 0, 0x1c, (beyond >> 32) as u32);
        note(&mut world, 0, 4, 2);
        note(&mut world, 1, 0x10, 0xe002_0000);
        note(&mut world, 1, 4, 2);
        world.bars.sync(&world.vm).unwrap().unwrap();
        let there: Vec<u64> = mapped(&world.vm).iter().map(|(gpa, ..)| *gpa).collect();
        assert_eq!(there, [0xe000_0000, 0xe000_2000, 0xe002_0000]);
        let refusal = world.bars.refusal(id(&world, 0), Some(2)).unwrap();
        let PciError::Vm(refusal) = refusal else { panic!("{refusal}") };
        assert!(matches!(refusal.kind(), ErrorKind::Refused { .. }), "{refusal}");
        assert_eq!(refusal.region().unwrap().gpa, beyond);
        assert_eq!(world.bars.base(id(&world, 0), Some(2)), Some(beyond), "it decodes there");
        for (function, bar) in [(0, 0), (1, 0)] {
            assert!(world.bars.refusal(id(&world, function), Some(bar)).is_none());
        }
        // Others move on as if it were not there.
        let moved = 0xe004_0000_u32.to_le_bytes();
        let other = id(&world, 1);
        assert!(world.bars.config_write(&world.vm, other, 0x10, &moved).unwrap().is_some());
        assert!(world.vm.region_at(0, 0xe004_0000).is_some());
        // And it comes right by itself when the guest moves it.
        let gpu = id(&world, 0);
        world.bars.note_write(gpu, 0x18, &0xe008_0000_u32.to_le_bytes()).unwrap();
        world.bars.config_write(&world.vm, gpu, 0x1c, &[0; 4]).unwrap().unwrap();
        assert!(world.bars.refusal(gpu, Some(2)).is_none());
        assert!(world.vm.region_at(0, 0xe008_0000).is_some());
        assert_eq!(world.vm.slots(0), world.model.slots(0));
    }
}

struct Memory;

// SAFETY: nothing is mapped for real.
unsafe impl HostMemory for Memory {
    fn range(&self) -> (u64, u64) {
        (HVA, 0x2000)
    }
}

#[test]
fn what_could_not_be_mapped_is_refused_when_it_is_added() {
    let world = World::new(Executor::PerRegion, false);
    let mut bars = PciBars::new(ADDRESS_BITS);
    let memory = |size| BarSpec::memory32(size);
    let owned = |offset, length| {
        RegionSpec::device(at(offset, length), Backing::owned(Arc::new(Memory), 0))
    };
    let window = |size, offset, length| memory(size).window(owned(offset, length));
    let add = |bars: &mut PciBars, spec| bars.add(&world.vm, spec).map(drop);
    let one = |bar| FunctionSpec::new().bar(0, bar);
    let refused = [
        one(memory(3000)),
        one(memory(8)),
        one(BarSpec::memory32(1 << 32)),
        FunctionSpec::new().rom(BarSpec::rom(1024)),
        FunctionSpec::new().bar(6, memory(16)),
        FunctionSpec::new().bar(5, BarSpec::memory64(16)),
        FunctionSpec::new().bar(2, memory(16)).bridge(),
        one(BarSpec::memory64(16)).bar(1, memory(16)),
        one(BarSpec::io(16).window(owned(0, 16))),
        one(window(0x2000, 0x1000, 0x2000)),
        one(window(0x2000, 0, 0)),
        // No slot is so small.
        one(window(0x2000, 0, 0x800)),
        one(window(0x2000, 0x800, 0x1000)),
        one(window(0x1_0000, 0, 0x2000).window(owned(0x1000, 0x1000))),
    ];
    for spec in refused {
        let named = format!("{spec:?}");
        assert!(add(&mut bars, spec).is_err(), "{named}");
    }
    add(&mut bars, one(window(0x2000, 0x1000, 0x1000))).unwrap();
}

#[test]
fn a_guest_reads_back_what_it_wrote() {
    let mut world = World::new(Executor::PerRegion, false);
    write(&mut world, 0, 0x18, 0x1234_5678);
    write(&mut world, 0, 0x1c, 0x12);
    let mut data = [0xaa; 12];
    world.bars.config_read(world.ids[0], 0x18, &mut data).unwrap();
    let expected = [&0x1234_0004_u32.to_le_bytes()[..], &0x12_u32.to_le_bytes(), &[0xaa; 4]];
    assert_eq!(data[..], expected.concat());
    assert_eq!(
        world.vm.regions().iter().filter(|region| region.flags == MemFlags::READONLY).count(),
        0
    );
}
