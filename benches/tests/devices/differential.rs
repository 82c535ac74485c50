//! The model of routes, irqfds and ioeventfds against KVM: the same random
//! calls, valid and invalid, get the same errno; a guest's writes signal the
//! same eventfds, and signalled eventfds raise the same interrupts.
//!
//! `MEMSLOTS_DIFFERENTIAL_VMS` sets how many VMs, 100 without it.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use kvm_ioctls::VmFd;
use kvm_memslots::backend::model::events::FdKind;
use kvm_memslots::backend::{EventCalls, EventModel, EventOp, Irqchip, Kvm, KvmOptions};
use kvm_memslots::device::{Bus, Ioeventfd, Irqfd, Msi, Route, RouteTarget};
use kvm_memslots::vm_fd;
use kvm_memslots_kit::guest::interrupted::{GuestWrite, Interrupted};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use vmm_sys_util::eventfd::EventFd;

use crate::common::vm_or_skip;
use crate::rig::{OWN_SLOT, PATIENCE, eventfd, full_vm, msi, signalled, split_vm};

/// Descriptors by number: eventfds, a duplicate of the first, something else,
/// and one that is not open.
const EVENTFDS: usize = 5;
const DUPLICATE: usize = EVENTFDS;
const CLOSED: usize = EVENTFDS + 2;

/// The eventfd that a descriptor is of, if of any.
fn eventfd_of(number: usize) -> usize {
    if number == DUPLICATE { 0 } else { number }
}

#[derive(Debug, Clone)]
enum Op {
    Routes(Vec<Route>),
    AssignIrqfd(u32, usize, Option<usize>),
    DeassignIrqfd(u32, usize),
    AssignIoeventfd(Ioeventfd),
    DeassignIoeventfd(Ioeventfd),
    /// Take away what is there.
    DeassignLive(usize),
    Write(GuestWrite),
    Signal(usize),
    /// Write where an ioeventfd listens.
    WriteLive(usize),
    /// Signal the eventfd of an irqfd that has a route.
    SignalLive(usize),
}

fn gsi() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0..4_u32, 1 => select(vec![23, 24, 100, 4095]), 1 => select(vec![4096, 9999])]
}

fn target() -> impl Strategy<Value = RouteTarget> {
    prop_oneof![
        6 => (0x40..0x48_u8).prop_map(|vector| RouteTarget::Msi(msi(vector))),
        1 => (0x40..0x48_u8)
            .prop_map(|vector| RouteTarget::Msi(Msi { devid: Some(3), ..msi(vector) })),
        2 => (0..4_u32, select(vec![0, 1, 7, 8, 23, 24])).prop_map(|(chip, pin)| {
            RouteTarget::Irqchip { chip, pin }
        }),
        1 => Just(RouteTarget::Other { kind: 77, flags: 0, words: [0; 8] }),
    ]
}

fn fd() -> impl Strategy<Value = usize> {
    prop_oneof![12 => 0..EVENTFDS, 1 => DUPLICATE..=CLOSED]
}

fn place() -> impl Strategy<Value = (Bus, u64)> {
    prop_oneof![
        4 => (0..3_u64).prop_map(|n| (Bus::Mmio, 0xd000_0000 + n)),
        3 => (0..2_u64).prop_map(|n| (Bus::Pio, 0x600 + n)),
    ]
}

/// The descriptor's number stands for the descriptor.
fn ioeventfd() -> impl Strategy<Value = Ioeventfd> {
    let place = prop_oneof![
        12 => place(),
        1 => (0..9_u64).prop_map(|n| (Bus::Mmio, u64::MAX - n)),
    ];
    let len = select(vec![0, 1, 1, 2, 2, 4, 4, 8, 3, 16]);
    let data = prop_oneof![Just(None), (0..3_u64).prop_map(Some), Just(Some(0x1_0000_0001))];
    (place, len, data, fd()).prop_map(|((bus, addr), len, datamatch, fd)| Ioeventfd {
        bus,
        addr,
        len,
        datamatch,
        fd: RawFd::try_from(fd).unwrap(),
    })
}

fn write() -> impl Strategy<Value = GuestWrite> {
    let value = prop_oneof![4 => 0..3_u64, 1 => Just(0x1_0000_0001)];
    (place(), select(vec![1, 2, 4, 8]), value).prop_map(|((bus, addr), len, value)| {
        let len = if bus == Bus::Pio { len.min(4) } else { len };
        let value = if len == 8 { value } else { value & ((1 << (len * 8)) - 1) };
        GuestWrite { bus, addr, len, value }
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => vec((gsi(), target()).prop_map(|(gsi, target)| Route { gsi, target }), 0..4)
            .prop_map(Op::Routes),
        // Such that KVM takes it.
        2 => vec(0x40..0x48_u8, 1..5).prop_map(|vectors| {
            let route = |(gsi, vector)| Route::msi(gsi, msi(vector));
            Op::Routes((0..).zip(vectors).map(route).collect())
        }),
        4 => (gsi(), fd(), prop::option::weighted(0.2, fd()))
            .prop_map(|(gsi, fd, resample)| Op::AssignIrqfd(gsi, fd, resample)),
        2 => (gsi(), fd()).prop_map(|(gsi, fd)| Op::DeassignIrqfd(gsi, fd)),
        5 => ioeventfd().prop_map(Op::AssignIoeventfd),
        1 => ioeventfd().prop_map(Op::DeassignIoeventfd),
        2 => (0..8_usize).prop_map(Op::DeassignLive),
        3 => write().prop_map(Op::Write),
        2 => (0..EVENTFDS).prop_map(Op::Signal),
        3 => (0..8_usize).prop_map(Op::WriteLive),
        3 => (0..8_usize).prop_map(Op::SignalLive),
    ]
}

/// A VM and its model.
struct Pair {
    kvm: Kvm,
    model: EventModel,
    guest: Option<Interrupted>,
    eventfds: Vec<EventFd>,
    fds: Vec<RawFd>,
    _held: (EventFd, File, VmFd),
}

/// What has been seen, so that a test that sees nothing fails.
#[derive(Debug, Default)]
struct Seen {
    accepted: usize,
    refused: usize,
    fired: usize,
    exits: usize,
    raised: usize,
}

impl Pair {
    fn new(irqchip: Irqchip, vm: VmFd) -> Self {
        let guest = (irqchip != Irqchip::None).then(|| Interrupted::start(&vm, OWN_SLOT).unwrap());
        let eventfds: Vec<EventFd> = (0..EVENTFDS).map(|_| eventfd()).collect();
        let duplicate = eventfds[0].try_clone().unwrap();
        let other = File::open("/dev/null").unwrap();
        let model = EventModel::new(irqchip);
        let mut fds: Vec<RawFd> = eventfds.iter().map(AsRawFd::as_raw_fd).collect();
        for (fd, id) in fds.iter().zip(0..) {
            model.set_fd(*fd, FdKind::Eventfd(id));
        }
        let closed = 1_000_000;
        model.set_fd(duplicate.as_raw_fd(), FdKind::Eventfd(0));
        model.set_fd(other.as_raw_fd(), FdKind::Other);
        model.set_fd(closed, FdKind::Closed);
        fds.extend([duplicate.as_raw_fd(), other.as_raw_fd(), closed]);
        let kvm = Kvm::open(vm_fd(&vm), KvmOptions::default()).unwrap();
        Self { kvm, model, guest, eventfds, fds, _held: (duplicate, other, vm) }
    }

    /// Whether the eventfd of this number is an irqfd, which reads it.
    fn is_irqfd(&self, number: usize) -> bool {
        let of = |fd: RawFd| self.fds.iter().position(|known| *known == fd).map(eventfd_of);
        self.model.state().irqfds().any(|irqfd| of(irqfd.fd) == Some(eventfd_of(number)))
    }

    fn call(&mut self, op: &EventOp, seen: &mut Seen) -> Result<(), String> {
        let (kvm, model) = (self.kvm.change(op), self.model.change(op));
        if kvm != model {
            return Err(format!("KVM answers {kvm:?}, the model {model:?}"));
        }
        *(if kvm.is_ok() { &mut seen.accepted } else { &mut seen.refused }) += 1;
        Ok(())
    }

    fn apply(&mut self, op: &Op, seen: &mut Seen) -> Result<(), String> {
        let real = |at: &Ioeventfd, fds: &[RawFd]| Ioeventfd {
            fd: fds[usize::try_from(at.fd).unwrap()],
            ..*at
        };
        match op {
            Op::Routes(routes) => self.call(&EventOp::routes(routes.iter().copied()), seen),
            Op::AssignIrqfd(gsi, fd, resample) => {
                let irqfd = Irqfd {
                    gsi: *gsi,
                    fd: self.fds[*fd],
                    resample: resample.map(|fd| self.fds[fd]),
                    no_irqbypass: false,
                };
                self.call(&EventOp::Assign(irqfd.into()), seen)
            }
            Op::DeassignIrqfd(gsi, fd) => {
                let fd = self.fds[*fd];
                let irqfd = Irqfd { gsi: *gsi, fd, resample: None, no_irqbypass: false };
                self.call(&EventOp::Deassign(irqfd.into()), seen)
            }
            Op::AssignIoeventfd(at) => {
                let at = real(at, &self.fds);
                self.call(&EventOp::Assign(at.into()), seen)
            }
            Op::DeassignIoeventfd(at) => {
                let at = real(at, &self.fds);
                self.call(&EventOp::Deassign(at.into()), seen)
            }
            Op::DeassignLive(n) => {
                let state = self.model.state();
                let ioeventfds: Vec<Ioeventfd> = state.ioeventfds().collect();
                let irqfds: Vec<Irqfd> = state.irqfds().collect();
                let pick = |length: usize| (length > 0).then(|| n % length);
                if let Some(n) = pick(ioeventfds.len()).filter(|_| n % 2 == 0) {
                    self.call(&EventOp::Deassign(ioeventfds[n].into()), seen)
                } else if let Some(n) = pick(irqfds.len()) {
                    self.call(&EventOp::Deassign(irqfds[n].into()), seen)
                } else {
                    Ok(())
                }
            }
            Op::Write(write) => self.write(*write, seen),
            Op::Signal(number) => self.signal(*number, seen),
            Op::WriteLive(n) => {
                let live: Vec<Ioeventfd> = self.model.state().ioeventfds().collect();
                let at = live.get(n % live.len().max(1));
                // What no write of the guest's reaches, or its own memory.
                let reachable = |at: &&Ioeventfd| at.addr < 0xe000_0000 && at.addr >= 0x600;
                let Some(at) = at.filter(reachable) else { return Ok(()) };
                let len = if at.len == 0 { 2 } else { at.len };
                if at.bus == Bus::Pio && len == 8 {
                    return Ok(());
                }
                let mask = if len == 8 { u64::MAX } else { (1 << (len * 8)) - 1 };
                let value = at.datamatch.unwrap_or(7) & mask;
                self.write(GuestWrite { bus: at.bus, addr: at.addr, len, value }, seen)
            }
            Op::SignalLive(n) => {
                let live: Vec<usize> =
                    (0..EVENTFDS).filter(|number| self.is_irqfd(*number)).collect();
                let number = live.get(n % live.len().max(1));
                number.map_or(Ok(()), |number| self.signal(*number, seen))
            }
        }
    }

    fn write(&mut self, write: GuestWrite, seen: &mut Seen) -> Result<(), String> {
        let expected = self.model.guest_writes(write.bus, write.addr, write.len, write.value);
        let expected = expected.map(|fd| self.fds.iter().position(|f| *f == fd).unwrap());
        // An irqfd would raise an interrupt that nobody is prepared for.
        if expected.is_some_and(|number| self.raises_unseen(number)) {
            return Ok(());
        }
        let Some(guest) = &mut self.guest else { return Ok(()) };
        let exits = guest.write(&[write]).map_err(|error| error.to_string())?;
        let exited = expected.is_none();
        if exits != if exited { vec![write] } else { Vec::new() } {
            return Err(format!("{write:x?} comes out as {exits:x?}, the model says {expected:?}"));
        }
        *(if exited { &mut seen.exits } else { &mut seen.fired }) += 1;
        for number in 0..EVENTFDS {
            if self.is_irqfd(number) {
                continue;
            }
            let count = signalled(&self.eventfds[number]);
            let hit = expected.is_some_and(|n| eventfd_of(n) == number);
            if count != u64::from(hit) {
                return Err(format!("{write:x?} signalled eventfd {number} {count} times"));
            }
        }
        Ok(())
    }

    /// Whether what signalling it does can't be seen at once: it goes to pins,
    /// or, without a route, to a worker of the kernel's that looks for one
    /// later (`irqfd_inject()`).
    fn raises_unseen(&self, number: usize) -> bool {
        let raised = self.model.signalled(self.fds[number]);
        self.is_irqfd(number) && !matches!(raised[..], [RouteTarget::Msi(_)])
    }

    fn signal(&mut self, number: usize, seen: &mut Seen) -> Result<(), String> {
        let Some(guest) = &self.guest else { return Ok(()) };
        if self.raises_unseen(number) {
            return Ok(());
        }
        let counts = |guest: &Interrupted| -> Vec<u64> {
            (0x40..0x48).map(|vector| guest.count(vector)).collect()
        };
        // What earlier writes have raised is there by now.
        let mut expected = counts(guest);
        let raised = self.model.signalled(self.fds[number]);
        self.eventfds[number].write(1).unwrap();
        if let [RouteTarget::Msi(msi)] = raised[..] {
            seen.raised += 1;
            let vector = msi.data as u8;
            expected[usize::from(vector - 0x40)] += 1;
            if !guest.wait_for(vector, expected[usize::from(vector - 0x40)], PATIENCE) {
                return Err(format!("eventfd {number} does not raise {vector:#x}"));
            }
        } else if !self.is_irqfd(number) {
            signalled(&self.eventfds[number]);
        }
        let found = counts(guest);
        if found == expected {
            Ok(())
        } else {
            Err(format!("eventfd {number} raised {found:?}, the model says {expected:?}"))
        }
    }

    /// Interrupts that ioeventfds have raised, by way of irqfds, have arrived.
    fn settle(&mut self) {
        let sync = GuestWrite { bus: Bus::Pio, addr: 0x99, len: 1, value: 0 };
        if let Some(guest) = &mut self.guest {
            guest.write(&[sync]).unwrap();
        }
    }
}

#[test]
fn the_model_answers_as_kvm_does() {
    let test = "devices::the_model_answers_as_kvm_does";
    if split_vm(test).is_none() {
        return;
    }
    let vms = std::env::var("MEMSLOTS_DIFFERENTIAL_VMS").ok().and_then(|vms| vms.parse().ok());
    let config = Config {
        cases: vms.unwrap_or(100),
        failure_persistence: None,
        max_shrink_iters: 3000,
        ..Config::default()
    };
    let seen = std::cell::RefCell::new(Seen::default());
    let chips = select(vec![Irqchip::Full, Irqchip::Full, Irqchip::Split, Irqchip::None]);
    let run = TestRunner::new(config).run(&(chips, vec(op(), 1..80)), |(irqchip, ops)| {
        let vm = match irqchip {
            Irqchip::None => vm_or_skip(test),
            Irqchip::Split => split_vm(test),
            Irqchip::Full => full_vm(test),
        };
        let mut pair = Pair::new(irqchip, vm.unwrap());
        for (index, op) in ops.iter().enumerate() {
            let applied = pair.apply(op, &mut seen.borrow_mut());
            applied.map_err(|why| TestCaseError::fail(format!("op {index}, {op:x?}: {why}")))?;
            pair.settle();
        }
        Ok(())
    });
    if let Err(error) = run {
        panic!("{error}");
    }
    let Seen { accepted, refused, fired, exits, raised } = seen.into_inner();
    eprintln!(
        "{accepted} calls accepted, {refused} refused; {fired} writes fired, {exits} came out; \
         {raised} interrupts"
    );
    assert!([accepted, refused, fired, exits, raised].iter().all(|count| *count > 20));
}
