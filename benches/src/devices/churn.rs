//! A VM with many vectors, some of which are masked, unmasked and given other
//! messages.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use kvm_ioctls::VmFd;
use kvm_memslots::backend::{EventCalls, EventOp};
use kvm_memslots::device::{self, DeviceId, Irqfd, Msi, Route, Trigger};
use kvm_memslots::{Changes, Vm};
use vmm_sys_util::eventfd::EventFd;

use super::board::{Device, eventfds};
use super::rig::{PARTS, vm};
use super::taken::{shape, summarize, taken};
use super::ways::{FIRST_GSI, irqfd, of_set};
use super::{Devices, Size};
use crate::compare::{Lap, Session, Stop, Taken, Watch, Way as _};
use crate::spent::Spent;
use crate::timed::{self, Clock, Timed};
use kvm_memslots_kit::machine::calls_of;

/// So many of them are masked and unmasked.
const MASKED: usize = 64;

/// What is timed, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Pass {
    /// Vectors masked.
    #[value(name = "mask 64")]
    Mask,
    /// The same unmasked, with the same messages.
    #[value(name = "unmask 64")]
    Unmask,
    /// One vector gets another message.
    #[value(name = "program 1")]
    Program,
    /// One vector gets the message that it has.
    #[value(name = "no change")]
    Nothing,
}

/// Who does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Who {
    /// Call by call: an irqfd, and for each vector the whole table, without those
    /// that are masked (Cloud Hypervisor's `MsiInterruptGroup`).
    CloudHypervisor,
    /// The calls that it takes, and nothing else: irqfds, and a table that is
    /// there already.
    #[value(name = "calls alone")]
    Calls,
    /// One set.
    Library,
    /// The same, where the vectors' events go through triggers.
    #[value(name = "library, triggers")]
    Triggers,
}

/// The vector that gets other messages.
const PROGRAMMED: usize = MASKED;

/// A message of a vector; [`PROGRAMMED`] has another one with each step.
fn message(vector: usize, step: u32) -> Msi {
    let shift = if vector == PROGRAMMED { step % 4 } else { 0 };
    Msi { data: 0x30 + shift, ..Device::msi(0) }
}

/// A VM in which all vectors are set up.
enum Machine {
    ByHand { calls: Box<Timed>, irqfds: Vec<Irqfd>, routes: BTreeMap<u32, Route>, sparing: bool },
    Library { vm: Box<Vm>, id: DeviceId },
}

impl Machine {
    fn new(vm: &VmFd, fds: &[Arc<EventFd>], who: Who, clock: Option<Clock>) -> io::Result<Self> {
        let messages = || fds.iter().enumerate().map(|(vector, fd)| (fd, message(vector, 0)));
        if matches!(who, Who::Library | Who::Triggers) {
            let vm = timed::open(Vm::builder(), vm, clock)?;
            let nic = device::Device::new("nic");
            let nic = messages().fold(nic, |nic, (fd, msi)| match who {
                Who::Triggers => {
                    nic.triggered_vector(Arc::new(Trigger::new(fd.as_raw_fd())), Some(msi))
                }
                _ => nic.vector(fd.as_raw_fd(), Some(msi)),
            });
            let mut changes = Changes::new();
            let id = changes.attach(nic);
            vm.apply(changes).map_err(io::Error::other)?;
            return Ok(Self::Library { vm: Box::new(vm), id });
        }
        let calls = Timed::new(calls_of(vm)?, clock);
        let all = || (FIRST_GSI..).zip(messages());
        let irqfds: Vec<_> = all().map(|(gsi, (fd, _))| irqfd(gsi, fd.as_raw_fd())).collect();
        let route = |(gsi, (_, msi))| (gsi, Route::msi(gsi, msi));
        let routes: BTreeMap<u32, Route> = all().map(route).collect();
        calls.change(&EventOp::routes(routes.values().copied()))?;
        irqfds.iter().try_for_each(|irqfd| calls.change(&EventOp::Assign((*irqfd).into())))?;
        Ok(Self::ByHand { calls: Box::new(calls), irqfds, routes, sparing: who == Who::Calls })
    }

    /// Does a pass, and says how long it took: what the library does by itself is
    /// in it, what a VMM would have ready is not.
    fn pass(&mut self, pass: Pass, step: u32) -> io::Result<(Spent, Duration)> {
        match self {
            Self::ByHand { calls, irqfds, routes, sparing } => {
                by_hand(calls, irqfds, routes, *sparing, pass, step)
            }
            Self::Library { vm, id } => {
                let mut changes = Changes::new();
                let mut set = |vector, msi| changes.set_vector(*id, vector, msi);
                match pass {
                    Pass::Mask => (0..MASKED).for_each(|vector| set(vector, None)),
                    Pass::Unmask => {
                        (0..MASKED).for_each(|vector| set(vector, Some(message(vector, step))));
                    }
                    Pass::Program => set(PROGRAMMED, Some(message(PROGRAMMED, step))),
                    Pass::Nothing => set(PROGRAMMED - 1, Some(message(PROGRAMMED - 1, step))),
                }
                let start = Instant::now();
                let spent = of_set(vm, changes)?;
                Ok((spent, start.elapsed()))
            }
        }
    }
}

fn by_hand(
    calls: &Timed,
    irqfds: &[Irqfd],
    routes: &mut BTreeMap<u32, Route>,
    sparing: bool,
    pass: Pass,
    step: u32,
) -> io::Result<(Spent, Duration)> {
    let mut spent = Spent::default();
    let table = |routes: &BTreeMap<u32, Route>| EventOp::routes(routes.values().copied());
    let set = |table: &EventOp, spent: &mut Spent| {
        *spent += Spent::routes();
        calls.change(table)
    };
    if pass == Pass::Program {
        let gsi = irqfds[PROGRAMMED].gsi;
        routes.insert(gsi, Route::msi(gsi, message(PROGRAMMED, step)));
    }
    let ready = table(routes);
    let start = Instant::now();
    match pass {
        Pass::Mask => {
            for irqfd in &irqfds[..MASKED] {
                calls.change(&EventOp::Deassign((*irqfd).into()))?;
                spent += Spent::irqfd_gone();
                if !sparing {
                    routes.remove(&irqfd.gsi);
                    set(&table(routes), &mut spent)?;
                }
            }
        }
        Pass::Unmask => {
            for (vector, irqfd) in irqfds[..MASKED].iter().enumerate() {
                if !sparing {
                    routes.insert(irqfd.gsi, Route::msi(irqfd.gsi, message(vector, step)));
                    set(&table(routes), &mut spent)?;
                }
                calls.change(&EventOp::Assign((*irqfd).into()))?;
                spent.ioctls += 1;
            }
        }
        Pass::Program if sparing => set(&ready, &mut spent)?,
        Pass::Program => set(&table(routes), &mut spent)?,
        // What changes nothing is noticed (Cloud Hypervisor since #4744).
        Pass::Nothing => {}
    }
    Ok((spent, start.elapsed()))
}

/// One who does it, with a VM of its own through all runs.
struct Compared {
    who: Who,
    machine: Machine,
    clock: Option<Clock>,
    // KVM looks at no eventfd that is closed: the VM goes before them.
    _vm: VmFd,
    /// How often a message was programmed.
    programmed: u32,
    _fds: Vec<Arc<EventFd>>,
}

impl Compared {
    fn new(vectors: u32, who: Who, profile: bool) -> Result<Self> {
        let (vm, fds) = (vm()?, eventfds(vectors).context(PARTS)?);
        let clock = profile.then(Clock::default);
        let machine = Machine::new(&vm, &fds, who, clock.clone());
        let machine = machine.with_context(|| format!("{}, setting up", who.name()))?;
        Ok(Self { who, machine, clock, _vm: vm, programmed: 0, _fds: fds })
    }

    /// What all ways do alike before a pass that is timed.
    fn prepare(&mut self, pass: Pass) -> io::Result<Spent> {
        // A table set after 64 others takes 0.7 times what the same one takes
        // alone (caches, the slabs of its entries): all ways have set one before.
        if pass == Pass::Program { Ok(self.pass(pass)?.0) } else { Ok(Spent::default()) }
    }

    fn pass(&mut self, pass: Pass) -> io::Result<(Spent, Duration)> {
        // Always another message: the library makes no call for one that is there.
        self.programmed += u32::from(pass == Pass::Program);
        self.machine.pass(pass, self.programmed)
    }

    /// All passes once.
    fn round(&mut self, watch: &mut Watch<'_>) -> Result<Vec<Taken>> {
        let pass = |pass: &Pass| {
            self.prepare(*pass)?;
            if let Some(clock) = &self.clock {
                clock.take();
            }
            let (done, lap) = watch.lap(|| self.pass(*pass));
            let (spent, wall) = done?;
            Ok(taken(Lap { wall, ..lap }, &spent, self.clock.as_ref()))
        };
        let taken: io::Result<_> = Pass::value_variants().iter().map(pass).collect();
        taken.with_context(|| format!("{}, changing vectors", self.who.name()))
    }
}

pub(super) fn churn(args: &Devices, vectors: u32, session: &mut Session<'_>) -> Result<()> {
    let ways = Who::value_variants();
    let new = |who: &Who| Compared::new(vectors, *who, args.profile);
    let mut all = ways.iter().map(new).collect::<Result<Vec<_>>>()?;
    let args = Devices { size: Size { devices: 1, ..args.size }, ..args.clone() };
    let passes: Vec<_> =
        Pass::value_variants().iter().map(|pass| shape(&args, 0, &pass.name())).collect();
    let run = |who: Who, watch: &mut Watch<'_>| {
        let compared = all.iter_mut().filter(|one| one.who == who);
        let taken: Result<Vec<_>> = compared.map(|one| one.round(watch)).collect();
        taken.map(|taken| taken.concat()).map_err(Stop::Fail)
    };
    session.compare(&passes, ways, &[Who::CloudHypervisor], run, |row| summarize(&args, row))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn all_ways_set_a_table_before_the_one_that_is_timed() {
        if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
            // Written directly: the test harness would swallow what `eprintln!` says.
            let test = "all_ways_set_a_table_before_the_one_that_is_timed";
            let _ = writeln!(io::stderr(), "SKIPPED {test}: {error}");
            return;
        }
        for who in Who::value_variants().iter().copied() {
            let mut one = Compared::new(MASKED as u32 + 2, who, false).expect("a VM of it");
            for round in 0..5 {
                let passes = [Pass::Mask, Pass::Unmask, Pass::Program, Pass::Nothing];
                let mut made = passes.map(|pass| {
                    let before = one.prepare(pass).expect("a table");
                    let (spent, _) = one.pass(pass).expect("a pass");
                    (before.routing_calls, spent.routing_calls)
                });
                if who == Who::CloudHypervisor {
                    assert_eq!([made[0].1, made[1].1], [MASKED as u64; 2]);
                    made[0].1 = 0;
                    made[1].1 = 0;
                }
                assert_eq!(made, [(0, 0), (0, 0), (1, 1), (0, 0)], "{who:?}, round {round}");
            }
        }
    }
}
