//! What one guest's BAR asks too much of is that BAR's trouble: slots that there are
//! not, memory that shares its slot, an observer that does not want it there.

use std::sync::Arc;

use crate::common::{self, HVA, PAGE, assert_same_slots, memory, on_model};
use kvm_memslots::backend::MemoryModel;
use kvm_memslots::deferred::{Deferral, Policy};
use kvm_memslots::pci::{BarSpec, FunctionId, FunctionSpec, PciBars, PciError};
use kvm_memslots::{Builder, ErrorKind, HolePolicy, Limits, Observer, Region, RegionSpec, Vm, at};

const SIZE: u64 = 16 * PAGE;
const HERE: u32 = 0xe000_0000;
const THERE: u32 = 0xf000_0000;

struct World {
    vm: Vm,
    model: MemoryModel,
    bars: PciBars,
    functions: Vec<FunctionId>,
}

impl World {
    /// Functions of one BAR whose host memory carries on from one to the next.
    fn new(builder: Builder, limits: Limits, spec: impl Fn(RegionSpec) -> RegionSpec) -> Self {
        let (vm, model) = on_model(builder, MemoryModel::new(limits));
        let mut bars = PciBars::new(46);
        let function = |n: u64| {
            let window = RegionSpec::ram(at(0, SIZE), memory(HVA + n * SIZE, SIZE));
            let bar = BarSpec::memory32(SIZE).window(spec(window));
            bars.add(&vm, FunctionSpec::new().bar(0, bar)).unwrap()
        };
        let functions = (0..4).map(function).collect();
        Self { vm, model, bars, functions }
    }

    fn write(&mut self, n: usize, offset: u16, value: u32) {
        let data = value.to_le_bytes();
        self.bars.config_write(&self.vm, self.functions[n], offset, &data).unwrap();
    }

    fn decode(&mut self, n: usize, on: bool) {
        self.write(n, 4, if on { 2 } else { 0 });
    }

    /// All of them, side by side.
    fn enable(&mut self) {
        for n in 0..4 {
            self.write(n, 0x10, HERE + n as u32 * SIZE as u32);
            self.decode(n, true);
        }
    }

    fn mapped(&self) -> Vec<u64> {
        self.vm.regions().iter().map(|region| region.range.gpa()).collect()
    }

    fn refusal(&self, n: usize) -> Option<&ErrorKind> {
        match self.bars.refusal(self.functions[n], Some(0))? {
            PciError::Vm(error) => Some(error.kind()),
            other => panic!("{other}"),
        }
    }
}

fn at_bar(n: u64) -> u64 {
    u64::from(HERE) + n * SIZE
}

/// BARs that are to stay together move all the same when the guest says so, whatever
/// the VMM allows.
#[test]
fn a_bar_leaves_the_slot_that_it_shares() {
    for policy in common::policies() {
        let shares = matches!(policy, HolePolicy::NoVcpuRuns | HolePolicy::Gate(_));
        let deferral = Deferral::default().policy(Policy::Fixed { exits: 1000 });
        let builder = Vm::builder().holes(policy.clone()).deferral(deferral);
        let together = |spec: RegionSpec| spec.permanent().deferrable();
        let mut world = World::new(builder, Limits::x86(), together);
        world.enable();
        world.vm.promote().unwrap();
        assert_eq!(world.model.slots(0).len(), if shares { 1 } else { 4 }, "{policy:?}");
        world.write(1, 0x10, THERE);
        world.decode(3, false);
        world.vm.promote().unwrap();
        assert_eq!(world.mapped(), [at_bar(0), at_bar(2), THERE.into()], "{policy:?}");
        assert_same_slots(&world.vm, &world.model);
    }
}

/// One BAR too many is that BAR's refusal; the others move on, and it comes once
/// there is a slot.
#[test]
fn a_bar_that_there_is_no_slot_for_stops_nobody_else() {
    let mut world = World::new(Vm::builder(), Limits::x86().with_slots(2), |spec| spec);
    world.enable();
    let is_short = |kind: &ErrorKind| matches!(kind, ErrorKind::TooManySlots { .. });
    assert_eq!(world.mapped(), [at_bar(0), at_bar(1)]);
    assert_eq!(
        [0, 1, 2, 3].map(|n| world.refusal(n).is_some_and(is_short)),
        [false, false, true, true]
    );
    world.write(0, 0x10, THERE);
    assert_eq!(world.mapped(), [at_bar(1), THERE.into()]);
    world.decode(1, false);
    assert_eq!(world.mapped(), [at_bar(2), THERE.into()]);
    assert!(world.refusal(2).is_none() && world.refusal(3).is_some_and(is_short));
    world.decode(0, false);
    assert_eq!(world.mapped(), [at_bar(2), at_bar(3)]);
    assert!(world.refusal(3).is_none());
    assert_same_slots(&world.vm, &world.model);
}

/// Does not want anything at the guest addresses of BAR 1.
struct Picky;

impl Observer for Picky {
    fn check(
        &self,
        _: &[Region],
        coming: &[Region],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let bad = coming.iter().any(|region| region.range.gpa() == at_bar(1));
        if bad { Err("not there".into()) } else { Ok(()) }
    }

    fn unmapping(&self, _: &Region) {}

    fn mapped(&self, _: &Region) {}
}

#[test]
fn a_bar_that_an_observer_does_not_want_stops_nobody_else() {
    let is_observers = |kind: &ErrorKind| matches!(kind, ErrorKind::Observer(_));
    for together in [false, true] {
        let builder = Vm::builder().observer(Arc::new(Picky));
        let mut world = World::new(builder, Limits::x86(), |spec| spec);
        if together {
            for n in 0..4 {
                let base = HERE + n as u32 * SIZE as u32;
                let World { bars, functions, .. } = &mut world;
                bars.note_write(functions[n], 0x10, &base.to_le_bytes()).unwrap();
                bars.note_write(functions[n], 4, &[2, 0]).unwrap();
            }
            world.bars.sync(&world.vm).unwrap();
        } else {
            world.enable();
        }
        assert_eq!(world.mapped(), [at_bar(0), at_bar(2), at_bar(3)]);
        assert!(world.refusal(1).is_some_and(is_observers));
        assert!([0, 2, 3].iter().all(|n| world.refusal(*n).is_none()));
        world.write(0, 0x10, THERE);
        world.write(1, 0x10, THERE + 0x10_0000);
        assert_eq!(world.mapped()[..2], [at_bar(2), at_bar(3)]);
        assert_eq!(world.mapped().len(), 4);
        assert_same_slots(&world.vm, &world.model);
    }
}
