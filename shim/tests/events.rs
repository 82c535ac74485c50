//! Routes, irqfds and ioeventfds: plans lead where they should, in order, and
//! the executor gets back from anywhere.
#![allow(clippy::unwrap_used)]

use std::sync::Once;

use kvm_memslots_shim::Errno;
use kvm_memslots_shim::events::model::{Fault, Irqchip, Model};
use kvm_memslots_shim::events::{
    Bus, EventCalls, Ioeventfd, Irqfd, Msi, Op, Part, Route, Routes, State, Why, Zone, execute,
    plan,
};
use proptest::collection::btree_map;
use proptest::prelude::*;

/// A state that KVM takes: a message for each GSI, an eventfd for each irqfd,
/// no two ioeventfds for the same write, no two zones in each other.
fn state() -> impl Strategy<Value = State> {
    let routes = btree_map(0..8_u32, 0..3_u32, 0..8);
    let irqfds = btree_map(0..8_i32, (0..8_u32, prop::bool::weighted(0.2)), 0..8);
    let ioeventfds = btree_map((any::<bool>(), 0..4_u64), (1..3_u32, 20..24_i32), 0..6);
    let zones = btree_map((any::<bool>(), 1..4_u64), 1..0x1000_u32, 0..4);
    (routes, irqfds, ioeventfds, zones).prop_map(|(routes, irqfds, ioeventfds, zones)| {
        let bus = |pio| if pio { Bus::Pio } else { Bus::Mmio };
        let msi = |data| Msi { address: 0xfee0_0000, data, devid: None };
        let routes = routes.into_iter().map(|(gsi, data)| Route::msi(gsi, msi(data))).collect();
        let irqfds = irqfds.into_iter().map(|(fd, (gsi, resample))| {
            let resample = resample.then_some(fd + 100);
            Part::Irqfd(Irqfd { gsi, fd, resample, no_irqbypass: false })
        });
        let ioeventfds = ioeventfds.into_iter().map(|((pio, addr), (len, fd))| {
            Part::Ioeventfd(Ioeventfd { bus: bus(pio), addr, len, datamatch: None, fd })
        });
        let zones = zones
            .into_iter()
            .map(|((pio, page), len)| Part::Zone(Zone { bus: bus(pio), addr: page << 12, len }));
        State { routes, assigned: irqfds.chain(ioeventfds).chain(zones).collect() }
    })
}

/// The model in this state.
fn model(state: &State) -> Model {
    let model = Model::new(Irqchip::Full);
    model.change(&Op::routes([])).unwrap();
    let mut live = State::default();
    let ops = plan(&live, state).ops;
    execute(&model, &mut live, &ops).unwrap();
    assert_eq!((&live, &model.state()), (state, state));
    model
}

/// Where a change has to come.
fn rank(op: &Op) -> u32 {
    match op {
        Op::Deassign(Part::Ioeventfd(_) | Part::Zone(_)) => 0,
        Op::Deassign(Part::Irqfd(_)) => 1,
        Op::Routes { .. } => 2,
        Op::Assign(Part::Irqfd(_)) => 3,
        Op::Assign(Part::Ioeventfd(_) | Part::Zone(_)) => 4,
    }
}

/// Injected panics are not worth a line each.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let payload = info.payload().downcast_ref::<String>();
            if payload.is_none_or(|payload| payload != "an injected panic") {
                hook(info);
            }
        }));
    });
}

/// `state` without what `op` is about.
fn without(mut state: State, op: &Op) -> State {
    match op {
        Op::Routes { .. } => state.routes = Routes::default(),
        Op::Assign(part) | Op::Deassign(part) => _ = state.assigned.remove(part),
    }
    state
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_leads_where_it_should(live in state(), wanted in state()) {
        let planned = plan(&live, &wanted);
        let ops = &planned.ops;
        prop_assert!(ops.windows(2).all(|pair| rank(&pair[0]) <= rank(&pair[1])), "{ops:?}");
        let routings = ops.iter().filter(|op| rank(op) == 2).count();
        prop_assert_eq!(routings, usize::from(live.routes != wanted.routes));
        prop_assert_eq!(planned.gone, ops.iter().filter(|op| rank(op) < 2).count());

        let vm = model(&live);
        vm.reset_counts();
        let mut now = live;
        let done = execute(&vm, &mut now, ops).unwrap();
        prop_assert_eq!(&vm.state(), &wanted);
        prop_assert_eq!(&now, &wanted);
        prop_assert_eq!(done.cost, planned.cost());
        prop_assert_eq!(done.cost.waits, vm.counts().waits);
        prop_assert_eq!(done.cost.calls(), ops.len() as u64);
        prop_assert_eq!(plan(&wanted, &wanted).ops, []);
    }

    #[test]
    fn a_refusal_is_undone_or_told(
        live in state(),
        wanted in state(),
        nth in 1..20_u64,
        forever in any::<bool>(),
    ) {
        let vm = model(&live);
        let fault = if forever { Fault::from_nth } else { Fault::nth };
        vm.inject(fault(nth, Errno::ENOMEM));
        let ops = plan(&live, &wanted).ops;
        let mut now = live.clone();
        let Err(failed) = execute(&vm, &mut now, &ops) else {
            prop_assert!(ops.len() < nth as usize);
            prop_assert_eq!(vm.state(), wanted);
            return Ok(());
        };
        prop_assert!(failed.panic.is_none());
        prop_assert_eq!(&vm.state(), &now);
        let refused = ops[nth as usize - 1].clone();
        match failed.why {
            Why::Refused { op, errno } => {
                prop_assert_eq!((op, errno), (refused, Errno::ENOMEM));
                prop_assert_eq!(now, live);
                prop_assert!(!forever || nth == 1);
            }
            Why::Stuck { op, errno, undo, undo_errno, live: known, unsure } => {
                prop_assert_eq!((op, errno, undo_errno), (refused, Errno::ENOMEM, Errno::ENOMEM));
                prop_assert_eq!(undo, ops[nth as usize - 2].inverse());
                prop_assert_eq!(known, now);
                prop_assert!(forever && unsure.is_empty());
            }
            why => panic!("{why:?}"),
        }
    }

    #[test]
    fn a_panic_is_undone_around(
        live in state(),
        wanted in state(),
        nth in 1..12_u64,
        after in any::<(bool, bool)>(),
        undo_panics in any::<bool>(),
    ) {
        quiet();
        let vm = model(&live);
        let panics = |nth, after| {
            let fault = Fault::nth(nth, Errno::ENOMEM);
            if after { fault.panicking_after() } else { fault.panicking() }
        };
        vm.inject(panics(nth, after.0));
        if undo_panics {
            vm.inject(panics(nth + 1, after.1));
        }
        let ops = plan(&live, &wanted).ops;
        let mut now = live.clone();
        let Err(failed) = execute(&vm, &mut now, &ops) else {
            prop_assert!(ops.len() < nth as usize);
            return Ok(());
        };
        let payload = failed.panic.unwrap().downcast::<String>().unwrap();
        prop_assert_eq!(payload.as_str(), "an injected panic");
        let Why::Stuck { op, errno, undo, undo_errno, live: known, unsure } = failed.why else {
            panic!("{:?}", failed.why);
        };
        let panicked = ops[nth as usize - 1].clone();
        let mut expected = vec![panicked.clone()];
        if undo_panics && nth > 1 {
            expected.push(ops[nth as usize - 2].inverse());
        }
        let took_back = if let [op] = &expected[..] { op.inverse() } else { expected[1].clone() };
        // What may be there may be in the way of what is to be there again.
        prop_assert!(undo_errno == Errno::EBUSY || undo_errno == Errno::EEXIST || undo == took_back);
        prop_assert_eq!(&unsure, &expected);
        prop_assert_eq!((op, errno), (panicked, Errno::EIO));
        prop_assert_eq!(&known, &now);
        // All that is said to be there is; and but for what is unsure, nothing else.
        let real = vm.state();
        prop_assert_eq!(known.without(&real), State::default());
        let sure = |state: State| unsure.iter().fold(state, without);
        prop_assert_eq!(sure(known), sure(real));
    }
}

/// KVM's order of the bus is wrong here, and it misses a write. (Seen on 6.18;
/// `kvm_io_bus_cmp()` is the same from 6.12 to 7.2.)
#[test]
fn any_length_before_a_neighbour_is_missed() {
    let any = Ioeventfd { bus: Bus::Mmio, addr: 0xd000_0001, len: 0, datamatch: None, fd: 3 };
    let neighbour = Ioeventfd { addr: 0xd000_0000, len: 1, fd: 4, ..any };
    let fires = |order: [&Ioeventfd; 2]| {
        let vm = Model::new(Irqchip::Split);
        for at in order {
            vm.change(&Op::Assign((*at).into())).unwrap();
        }
        vm.guest_writes(Bus::Mmio, 0xd000_0001, 1, 0)
    };
    assert_eq!(fires([&any, &neighbour]), None);
    assert_eq!(fires([&neighbour, &any]), Some(3));
    // A plan has them in the order that works.
    let mut wanted = State::default();
    wanted.assigned.extend([any, neighbour].map(Part::from));
    let ops = plan(&State::default(), &wanted).ops;
    assert_eq!(ops, [neighbour, any].map(|at| Op::Assign(at.into())));
}

#[test]
fn holders_share_one_model_and_a_fork_is_another() {
    let vm = Model::new(Irqchip::Full);
    let calls: Box<dyn EventCalls> = Box::new(vm.clone());
    let fork = vm.fork();
    let irqfd = Irqfd { gsi: 5, fd: 9, resample: None, no_irqbypass: false };
    calls.change(&Op::Assign(irqfd.into())).unwrap();
    assert_eq!((vm.signalled(9).len(), fork.signalled(9).len()), (2, 0));
    assert_eq!((calls.name(), calls.limits().routes), ("model", 4096));
}

#[test]
fn errors_say_what_was_refused_and_what_is_left() {
    let live = State::default();
    let at =
        |addr| Part::Ioeventfd(Ioeventfd { bus: Bus::Mmio, addr, len: 4, datamatch: None, fd: 3 });
    let wanted = State { assigned: [at(0x1000), at(0x2000)].into(), ..State::default() };
    let ops = plan(&live, &wanted).ops;
    let says = |fault| {
        let vm = Model::new(Irqchip::Split);
        vm.inject(fault);
        execute(&vm, &mut live.clone(), &ops).unwrap_err().to_string()
    };
    let refused = says(Fault::nth(2, Errno::ENOMEM));
    let stuck = says(Fault::from_nth(2, Errno::ENOMEM));
    for words in ["assign the ioeventfd at GPA 0x2000", "ENOMEM"] {
        assert!(refused.contains(words) && stuck.contains(words), "{refused}; {stuck}");
    }
    assert!(refused.contains("as it was"), "{refused}");
    assert!(stuck.contains("deassign the ioeventfd at GPA 0x1000"), "{stuck}");
}
