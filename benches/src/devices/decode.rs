//! BARs with doorbells that a guest enables, switches off and on again, and
//! moves.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use kvm_ioctls::VmFd;
use kvm_memslots::backend::{EventCalls, EventOp, Kvm};
use kvm_memslots::device::{Bus, Ioeventfd};
use kvm_memslots::pci::{BarSpec, FunctionId, FunctionSpec, PciBars};
use kvm_memslots::{Access, Backing, Changes, RegionSpec, Report, Vm, at, vm_fd};
use vmm_sys_util::eventfd::EventFd;

use super::Devices;
use super::board::eventfds;
use super::rig::{PARTS, vm};
use super::taken::{shape, taken};
use super::ways::of_set;
use crate::compare::{Session, Stop, Taken, Watch, Way as _};
use crate::spent::Spent;
use crate::window;
use kvm_memslots_kit::host::{HostMemory, Pages, memfd};
use kvm_memslots_kit::machine::calls_of;
use kvm_memslots_kit::raw::set_slot;

/// Memory of a BAR, behind which are its doorbells.
const MEMORY: u64 = 16 << 10;
/// A BAR with both.
const BAR: u64 = 2 * MEMORY;
/// Where the guest puts them, and where it moves them.
const PLACES: [u64; 2] = [0xc000_0000, 0xc100_0000];
/// Where the window is that a BAR of memory alone is in, at the same offsets.
const WINDOW: u64 = 0x4_0000_0000;

/// What is timed, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Pass {
    /// BARs that decode from now on.
    #[value(name = "decode on")]
    Enable,
    /// Off, and on again.
    #[value(name = "off and on")]
    Toggle,
    /// BARs that get another address.
    Move,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Who {
    /// Of each function its doorbells, then its memory; what moves is deassigned
    /// and assigned doorbell by doorbell, then its memory removed and made anew.
    CloudHypervisor,
    /// Memory, then doorbells, at each enabling; both away at each disabling.
    Alioth,
    /// Config writes.
    #[value(name = "PciBars")]
    PciBars,
    /// The same, with doorbells kept while a BAR does not decode.
    #[value(name = "PciBars, kept")]
    Kept,
    /// The same, with the doorbells of all assigned together behind them.
    #[value(name = "PciBars, kept, deferred")]
    Deferred,
    /// The same, with the memory in a BAR of its own, which the guest puts in a
    /// window: that is `mmap`, in the time and not among the ioctls.
    #[value(name = "PciBars, kept, window")]
    Window,
}

/// The calls of a VMM without the library.
struct ByHand<'v> {
    vm: &'v VmFd,
    calls: Kvm,
    bells_first: bool,
    bells: &'v [Vec<Arc<EventFd>>],
    hva: u64,
}

impl ByHand<'_> {
    fn memory(&self, n: usize, base: u64, size: u64, spent: &mut Spent) -> io::Result<()> {
        let hva = self.hva + n as u64 * MEMORY;
        // SAFETY: the memory outlives the VM, in which no vCPU runs.
        unsafe { set_slot(self.vm, n as u32, base, size, hva) }.map_err(io::Error::from)?;
        *spent += Spent::calls(1, if size == 0 { 2 } else { 1 });
        Ok(())
    }

    fn doorbells(&self, n: usize, base: u64, on: bool, spent: &mut Spent) -> io::Result<()> {
        for (queue, fd) in (0..).zip(&self.bells[n]) {
            let bell = ioeventfd(base + MEMORY + queue * 4, fd).into();
            if on {
                self.calls.change(&EventOp::Assign(bell))?;
                *spent += Spent::calls(1, 0);
            } else {
                self.calls.change(&EventOp::Deassign(bell))?;
                *spent += Spent::ioeventfd_gone();
            }
        }
        Ok(())
    }

    fn on(&self, n: usize, base: u64, spent: &mut Spent) -> io::Result<()> {
        if self.bells_first {
            self.doorbells(n, base, true, spent)?;
            return self.memory(n, base, MEMORY, spent);
        }
        self.memory(n, base, MEMORY, spent)?;
        self.doorbells(n, base, true, spent)
    }

    fn off(&self, n: usize, base: u64, spent: &mut Spent) -> io::Result<()> {
        self.doorbells(n, base, false, spent)?;
        self.memory(n, base, 0, spent)
    }

    fn step(&self, pass: Pass, n: usize, [from, to]: [u64; 2]) -> io::Result<Spent> {
        let mut spent = Spent::default();
        match pass {
            Pass::Enable => self.on(n, from, &mut spent)?,
            Pass::Move if self.bells_first => {
                self.doorbells(n, from, false, &mut spent)?;
                self.doorbells(n, to, true, &mut spent)?;
                self.memory(n, from, 0, &mut spent)?;
                self.memory(n, to, MEMORY, &mut spent)?;
            }
            // Off where it is, on where it is to be.
            Pass::Move | Pass::Toggle => {
                self.off(n, from, &mut spent)?;
                self.on(n, to, &mut spent)?;
            }
        }
        Ok(spent)
    }
}

fn ioeventfd(addr: u64, fd: &EventFd) -> Ioeventfd {
    Ioeventfd { bus: Bus::Mmio, addr, len: 4, datamatch: None, fd: fd.as_raw_fd() }
}

/// The library, and the functions.
struct Library {
    vm: Vm,
    bars: PciBars,
    functions: Vec<FunctionId>,
    /// Whether the memory is in a window.
    is_window: bool,
}

impl Library {
    fn new(vm: &VmFd, who: Who, bells: &[Vec<Arc<EventFd>>], hva: u64) -> io::Result<Self> {
        let vm = Vm::open(vm_fd(vm)).map_err(io::Error::other)?;
        let bars = PciBars::new(36);
        let mut bars = match who {
            Who::Kept => bars.keep_ioeventfds(),
            Who::Deferred => bars.keep_ioeventfds().defer_ioeventfds(),
            Who::Window => {
                // Large enough for both places.
                let window = window::map(&vm, at(WINDOW, 2 * (PLACES[1] - PLACES[0])))?;
                bars.keep_ioeventfds().defer_ioeventfds().in_window(window).without_slots()
            }
            _ => bars,
        };
        let file = memfd(bells.len() as u64 * MEMORY)?;
        let mut functions = Vec::new();
        for (n, bells) in (0..).zip(bells) {
            // SAFETY: the memory outlives the VM, in which no vCPU runs.
            let backing = unsafe { Backing::borrowed(hva + n * MEMORY, MEMORY, Access::ReadWrite) };
            let bar = (0..).zip(bells).fold(BarSpec::memory32(BAR), |bar, (queue, fd)| {
                bar.ioeventfd(MEMORY + queue * 4, 4, None, Arc::clone(fd))
            });
            let memory = |backing| RegionSpec::device(at(0, MEMORY), backing);
            let function = if who == Who::Window {
                let memory = memory(backing.with_file(file.try_clone()?, n * MEMORY));
                let other = BarSpec::memory64(MEMORY).prefetchable().window(memory);
                FunctionSpec::new().bar(0, bar).bar(2, other)
            } else {
                FunctionSpec::new().bar(0, bar.window(memory(backing)))
            };
            functions.push(bars.add(&vm, function).map_err(io::Error::other)?);
        }
        Ok(Self { vm, bars, functions, is_window: who == Who::Window })
    }

    /// What was left to later.
    fn finish(&self) -> io::Result<Spent> {
        let mut changes = Changes::new();
        changes.assign_deferred();
        of_set(&self.vm, changes)
    }

    fn write(&mut self, n: usize, offset: u16, value: u32, spent: &mut Spent) -> io::Result<()> {
        let (function, data) = (self.functions[n], value.to_le_bytes());
        let report: Option<Report> =
            self.bars.config_write(&self.vm, function, offset, &data).map_err(io::Error::other)?;
        if let Some(report) = &report {
            *spent += report.into();
        }
        Ok(())
    }

    fn step(&mut self, pass: Pass, n: usize, [from, to]: [u64; 2]) -> io::Result<Spent> {
        const COMMAND: u16 = 4;
        let mut spent = Spent::default();
        match pass {
            Pass::Enable => {
                self.put(n, from, &mut spent)?;
                self.write(n, COMMAND, 2, &mut spent)?;
            }
            Pass::Move => self.put(n, to, &mut spent)?,
            Pass::Toggle => {
                self.write(n, COMMAND, 0, &mut spent)?;
                self.write(n, COMMAND, 2, &mut spent)?;
            }
        }
        Ok(spent)
    }

    /// Writes the addresses of BARs.
    fn put(&mut self, n: usize, base: u64, spent: &mut Spent) -> io::Result<()> {
        const BAR_0: u16 = 0x10;
        const BAR_2: u16 = 0x18;
        self.write(n, BAR_0, base as u32, spent)?;
        if self.is_window {
            let at = WINDOW + base - PLACES[0];
            self.write(n, BAR_2, at as u32, spent)?;
            self.write(n, BAR_2 + 4, (at >> 32) as u32, spent)?;
        }
        Ok(())
    }
}

/// All passes in a new VM.
fn round(args: &Devices, who: Who, watch: &mut Watch<'_>) -> Result<Vec<Taken>> {
    let vm = vm()?;
    let count = args.size.devices as usize;
    let memory = HostMemory::reserve(count as u64 * MEMORY, Pages::Small).context(PARTS)?;
    let bells = (0..count).map(|_| eventfds(args.size.ioeventfds)).collect::<io::Result<Vec<_>>>();
    let bells = bells.context(PARTS)?;
    let doing = |what: &str| format!("{}, {what}", who.name());
    let mut library = match who {
        Who::CloudHypervisor | Who::Alioth => None,
        _ => {
            let library = Library::new(&vm, who, &bells, memory.hva());
            Some(library.with_context(|| doing("opening"))?)
        }
    };
    let calls = calls_of(&vm).with_context(|| doing("opening"))?;
    let bells_first = who == Who::CloudHypervisor;
    let by_hand = ByHand { vm: &vm, calls, bells_first, bells: &bells, hva: memory.hva() };
    let mut pass = |pass: &Pass| {
        let (spent, lap) = watch.lap(|| {
            let mut spent = Spent::default();
            for n in 0..count {
                let place = |base: u64| base + n as u64 * 2 * BAR;
                let to = if *pass == Pass::Move { PLACES[1] } else { PLACES[0] };
                let places = [place(PLACES[0]), place(to)];
                spent += match &mut library {
                    Some(library) => library.step(*pass, n, places)?,
                    None => by_hand.step(*pass, n, places)?,
                };
            }
            if let Some(library) = &library {
                spent += library.finish()?;
            }
            io::Result::Ok(spent)
        });
        Ok(taken(lap, &spent.with_context(|| doing("following the guest"))?, None))
    };
    Pass::value_variants().iter().map(&mut pass).collect()
}

pub(super) fn decode(args: &Devices, session: &mut Session<'_>) -> Result<()> {
    let passes: Vec<_> =
        Pass::value_variants().iter().map(|pass| shape(args, 0, &pass.name())).collect();
    let run = |who: Who, watch: &mut Watch<'_>| round(args, who, watch).map_err(Stop::Fail);
    session.compare(&passes, Who::value_variants(), &[Who::CloudHypervisor], run, |_| ())
}
