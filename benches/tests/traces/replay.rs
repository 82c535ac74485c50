//! Every strategy leaves a VM with what the trace leaves it with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel as Model, Op};
use kvm_memslots::{Executor, HolePolicy, Limits, MemFlags, Vm};
use kvm_memslots_bench::replay::{Churn, Commits, Make, Replay, Spent, TracedMemory, With};
use kvm_memslots_bench::trace::{Call, Source, Trace, bursts};
use kvm_memslots_shim::uapi::kvm_userspace_memory_region2;
use proptest::prelude::*;

use super::{UEFI, data, read};

fn model() -> Model {
    Model::new(Limits::x86().with_batch(64).with_trap())
}

fn churn(model: &Model, with: With) -> Churn {
    // SAFETY: the model maps nothing.
    unsafe { Churn::new(Box::new(model.clone()), with, 2) }
}

/// Makes all calls; what it cost, as said and as the model counted it.
fn make(maker: &mut dyn Make, calls: &[Call], gap: Duration, model: &Model) -> (Spent, Spent) {
    let mut spent = Spent::default();
    for burst in bursts(calls, gap) {
        spent += maker.burst(burst).unwrap_or_else(|refused| panic!("{refused}"));
    }
    let counts = model.counts();
    assert_eq!(counts.refused, 0);
    let calls = counts.ioctls - spent.flips;
    let counted = Spent {
        ioctls: calls,
        flips: spent.flips,
        grace_periods: counts.grace_periods,
        ..Spent::default()
    };
    (spent, counted)
}

type Pages = BTreeMap<u64, (u64, u32)>;

/// What the guest sees: host address and flags by page.
fn pages<'a>(slots: impl IntoIterator<Item = &'a kvm_userspace_memory_region2>) -> Pages {
    let pages = |slot: &kvm_userspace_memory_region2| {
        let (gpa, hva, flags) = (slot.guest_phys_addr, slot.userspace_addr, slot.flags);
        (0..slot.memory_size).step_by(4096).map(move |at| (gpa + at, (hva + at, flags)))
    };
    slots.into_iter().flat_map(pages).collect()
}

fn live(model: &Model) -> Vec<kvm_userspace_memory_region2> {
    model.slots(0).into_iter().map(|slot| Op::Create(slot).to_kvm(0)).collect()
}

fn call(line: u64, at: u64, region: kvm_userspace_memory_region2) -> Call {
    Call { began: Some(at), ended: Some(at), ..Call::of(line, region) }
}

/// Slots 0 to 2 come and go at a few places, as KVM allows it; many of them
/// churn.
fn calls() -> impl Strategy<Value = Vec<Call>> {
    let step = (0..3_u32, 0..4_u64, 0..3_u32, 0..30_u64);
    prop::collection::vec(step, 1..60).prop_map(|steps| {
        let model = Model::new(Limits::x86());
        let mut last: [Option<kvm_userspace_memory_region2>; 3] = [None; 3];
        let (mut calls, mut at) = (Vec::new(), 0);
        for (slot, place, kind, pause) in steps {
            let is_live = model.slot(0, slot as u16).is_some();
            let fresh = kvm_userspace_memory_region2 {
                slot,
                flags: kind,
                guest_phys_addr: place * 0x1000,
                memory_size: 0x1000 + u64::from(kind == 1) * 0x1000,
                userspace_addr: 0x10_0000 + u64::from(slot) * 0x1_0000 + place * 0x1000,
                ..Default::default()
            };
            // Mostly away and back again.
            let region = match last[slot as usize] {
                Some(last) if is_live && pause < 25 => {
                    kvm_userspace_memory_region2 { memory_size: 0, flags: 0, ..last }
                }
                Some(last) if pause < 25 => last,
                _ => fresh,
            };
            if model.set_user_memory_region2(&region).is_ok() {
                if region.memory_size != 0 {
                    last[slot as usize] = Some(region);
                }
                at += pause;
                calls.push(call(calls.len() as u64 + 1, at, region));
            }
        }
        calls
    })
}

#[test]
fn singly_no_two_calls_are_of_one_commit() {
    let region = |slot| kvm_userspace_memory_region2 {
        slot,
        memory_size: 0x1000,
        guest_phys_addr: u64::from(slot) * 0x1000,
        ..Default::default()
    };
    let calls = [0, 1, 2].map(|slot| call(1 + u64::from(slot), 0, region(slot)));
    let replay = |gap| Replay { strategies: Vec::new(), gap, churn_after: 2 };
    assert_eq!(replay(Some(Duration::from_nanos(10))).bursts(&calls).len(), 1);
    assert_eq!(replay(None).bursts(&calls).len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn every_way_ends_with_the_same_memory(calls in calls()) {
        let gap = Duration::from_nanos(10);
        let wanted = {
            let model = model();
            let mut maker = churn(&model, With::Nothing);
            let (spent, counted) = make(&mut maker, &calls, gap, &model);
            prop_assert_eq!(spent, counted);
            prop_assert_eq!(spent.ioctls, calls.len() as u64);
            pages(&live(&model))
        };
        for executor in [Executor::PerRegion, Executor::Batch] {
            let model = model();
            let events = Arc::new(EventModel::new(Irqchip::Split));
            let builder = Vm::builder().executor(executor).holes(HolePolicy::NoVcpuRuns);
            let vm = builder.open_on(Arc::new(model.clone()), events).unwrap();
            // SAFETY: the model maps nothing.
            let mut maker = unsafe { Commits::new(vm) };
            let (spent, counted) = make(&mut maker, &calls, gap, &model);
            prop_assert_eq!(spent, counted);
            prop_assert_eq!(&pages(&live(&model)), &wanted);
        }
        {
            let model = model();
            let mut maker = churn(&model, With::Trap);
            let (spent, counted) = make(&mut maker, &calls, gap, &model);
            prop_assert_eq!(spent, counted);
            let live = live(&model);
            let visible = live.iter().filter(|slot| slot.flags & MemFlags::TRAP.bits() == 0);
            prop_assert_eq!(&pages(visible), &wanted);
        }
        {
            let model = model();
            let mut maker = churn(&model, With::Defer);
            let (spent, counted) = make(&mut maker, &calls, gap, &model);
            prop_assert_eq!(spent, counted);
            // What is not made is served: nothing is there that should not be.
            let live = pages(&live(&model));
            prop_assert!(live.iter().all(|(page, seen)| wanted.get(page) == Some(seen)));
        }
    }
}

/// What the sketches of the trap bit and of deferral in the arm64 lab reached
/// on the same boot: 12 calls and 882 flips.
#[test]
fn the_uefi_boot_by_the_trap_bit() {
    let trace = read(&data(UEFI), None).unwrap();
    let memory = TracedMemory::reserve(&trace).unwrap();
    let calls: Vec<_> = trace.made().map(|call| memory.place(call)).collect();
    let trap = model();
    let mut maker = churn(&trap, With::Trap);
    let (spent, counted) = make(&mut maker, &calls, Duration::ZERO, &trap);
    assert_eq!(spent, Spent { ioctls: 12, flips: 882, grace_periods: 17, ..Spent::default() });
    assert_eq!(counted, spent);

    let deferred = model();
    let mut maker = churn(&deferred, With::Defer);
    let (spent, _) = make(&mut maker, &calls, Duration::ZERO, &deferred);
    assert_eq!(spent, Spent { ioctls: 13, flips: 0, grace_periods: 18, ..Spent::default() });
}

#[test]
fn terabytes_fit_and_keep_their_neighbours() {
    let at = |slot: u32, hva| kvm_userspace_memory_region2 {
        slot,
        guest_phys_addr: u64::from(slot) << 42,
        memory_size: 1 << 42,
        userspace_addr: hva,
        ..Default::default()
    };
    let regions = [at(0, 1 << 42), at(1, 2 << 42), at(2, 8 << 42)];
    let calls: Vec<_> = (1..).zip(regions).map(|(line, region)| call(line, 0, region)).collect();
    let trace = Trace { source: Source::Strace, calls };
    let memory = TracedMemory::reserve(&trace).unwrap();
    let hva = |index: usize| memory.place(&trace.calls[index]).region.userspace_addr;
    assert_eq!(hva(1) - hva(0), 1 << 42);
    assert!(hva(2) > hva(1) + (1 << 42));
}
