//! Devices of every kind, changed in every way, in sets that KVM or the library may
//! refuse: what KVM has afterwards is what somebody would write down who has seen
//! the program and not the library; or it is what was there before.
//!
//! `MEMSLOTS_EVENT_SEEDS=0..100000` runs more.

mod naive;

use std::panic::{AssertUnwindSafe, catch_unwind};

use kvm_memslots::backend::model::events::Fault;
use kvm_memslots::backend::model::memory;
use kvm_memslots::backend::{EventLimits, EventModel, Irqchip};
use kvm_memslots::device::Route;
use kvm_memslots::{Changes, Errno, Limits};

use self::naive::Naive;
use crate::numbers::{Numbers, seeds};
use crate::rig::Rig;

const STEPS: u64 = 40;

fn rig(n: &mut Numbers) -> (Rig, Naive) {
    let (irqchip, own) = match n.below(2) {
        0 => (Irqchip::Split, Vec::new()),
        _ => (Irqchip::Full, Route::x86_defaults()),
    };
    let routes = if n.chance(3) { 24 + own.len() as u32 + 6 } else { 4096 };
    let limits =
        EventLimits { routes, no_irqbypass: n.chance(2), devid: n.chance(4), ..EventLimits::x86() };
    let events = EventModel::new(irqchip).with_limits(limits);
    let rig = Rig::on(Limits::x86(), events, |builder| {
        builder.own_routes(own.clone()).no_irqbypass(true).reserve_gsis(30..=31)
    });
    (rig, Naive::new(own, limits, irqchip == Irqchip::Full))
}

fn run(seed: u64) {
    let mut n = Numbers::new(seed);
    let (rig, mut naive) = rig(&mut n);
    for step in 0..STEPS {
        let what = format!("seed {seed}, step {step}");
        let mut next = naive.clone();
        let mut c = Changes::new();
        let mut told = Vec::new();
        for _ in 0..n.below(4) {
            told.push(next.change(&mut n, &mut c));
        }
        let wrong = next.wrong();
        let faulty = n.chance(4);
        if faulty {
            inject(&rig, &mut n);
        }
        let before = rig.seen();
        let done = catch_unwind(AssertUnwindSafe(|| rig.vm.apply(c).map(drop)));
        rig.events.clear_faults();
        rig.memory.clear_faults();
        match done {
            Ok(Ok(())) => {
                assert!(wrong.is_none(), "{what}: {wrong:?} was taken: {told:#?}");
                naive = next;
                naive.settle();
            }
            Ok(Err(error)) if !faulty => {
                let expected = wrong.is_some() || next.may_clash;
                assert!(expected, "{what}: {error}: {told:#?}");
                assert_eq!(rig.seen(), before, "{what}: {error}: {told:#?}");
            }
            Ok(Err(_)) | Err(_) => {
                assert!(faulty, "{what}: a panic");
                // A set of nothing puts right what could not be taken back.
                let repaired = rig.vm.apply(Changes::new());
                repaired.unwrap_or_else(|error| panic!("{what}: {error}: {told:#?}"));
            }
        }
        rig.assert_known();
        naive.check(&rig, &format!("{what}: {told:#?}"));
    }
    rig.vm.close().unwrap();
    rig.assert_known();
    let state = rig.events.state();
    assert!(state.assigned.is_empty());
    assert_eq!(state.routes.to_vec(), naive.own_routes(), "seed {seed}");
    assert!(rig.memory.slots(0).is_empty());
}

fn inject(rig: &Rig, n: &mut Numbers) {
    let (k, errno, forever) = (1 + n.below(12), Errno::ENOMEM, n.chance(3));
    if n.chance(4) {
        use memory::Fault;
        let fault = if forever { Fault::from_nth(k, errno) } else { Fault::nth(k, errno) };
        rig.memory.inject(fault);
        return;
    }
    let fault = if forever { Fault::from_nth(k, errno) } else { Fault::nth(k, errno) };
    rig.events.inject(match n.below(4) {
        0 => fault.panicking(),
        1 => fault.panicking_after(),
        _ => fault,
    });
}

#[test]
fn any_program_of_devices_leads_to_what_it_says() {
    std::panic::set_hook(Box::new(|info| {
        if !info.to_string().contains("injected") {
            eprintln!("{info}");
        }
    }));
    seeds("MEMSLOTS_EVENT_SEEDS", 30).for_each(run);
}
