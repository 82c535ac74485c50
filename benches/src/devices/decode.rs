//! BARs with doorbells that a guest enables, switches off and on again, and
//! moves.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use kvm_memslots::backend::{EventCalls, EventOp, Kvm, KvmOptions};
use kvm_memslots::device::{Bus, Ioeventfd};
use kvm_memslots::pci::{BarSpec, FunctionId, FunctionSpec, PciBars};
use kvm_memslots::window::{Window, WindowSpec};
use kvm_memslots::{Access, Backing, Changes, RegionSpec, Report, Vm, at, vm_fd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Devices;
use super::error::DevicesError;
use super::rig::split_irqchip;
use super::taken::{shape, taken};
use super::ways::{Spent, Way};
use crate::compare::{self, Session, Stop, Taken, Watch};
use kvm_memslots_kit::host::{HostMemory, Pages, memfd};
use kvm_memslots_kit::machine::new_vm;

/// Memory of a BAR, behind which are its doorbells.
const MEMORY: u64 = 16 << 10;
/// A BAR with both.
const BAR: u64 = 2 * MEMORY;
/// Where the guest puts them, and where it moves them.
const PLACES: [u64; 2] = [0xc000_0000, 0xc100_0000];
/// Where the window is that a BAR of memory alone is in, at the same offsets.
const WINDOW: u64 = 0x4_0000_0000;

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// BARs that decode from now on.
    Enable,
    /// Off, and on again.
    Toggle,
    /// BARs that get another address.
    Move,
}

/// In order, with their names.
const PASSES: [(Pass, &str); 3] =
    [(Pass::Enable, "decode on"), (Pass::Toggle, "off and on"), (Pass::Move, "move")];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// Of each function its doorbells, then its memory; what moves is deassigned
    /// and assigned doorbell by doorbell, then its memory removed and made anew.
    CloudHypervisor,
    /// Memory, then doorbells, at each enabling; both away at each disabling.
    Alioth,
    /// Config writes.
    PciBars,
    /// The same, with doorbells kept while a BAR does not decode.
    Kept,
    /// The same, with the doorbells of all assigned together behind them.
    Deferred,
    /// The same, with the memory in a BAR of its own, which the guest puts in a
    /// window: that is `mmap`, in the time and not among the ioctls.
    Window,
}

impl Who {
    const ALL: [Self; 6] = [
        Self::CloudHypervisor,
        Self::Alioth,
        Self::PciBars,
        Self::Kept,
        Self::Deferred,
        Self::Window,
    ];

    const fn way(self) -> Way {
        match self {
            Self::CloudHypervisor | Self::Alioth => Way::CloudHypervisor,
            _ => Way::OneByOne,
        }
    }
}

impl compare::Way for Who {
    fn name(self) -> String {
        let name = match self {
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Alioth => "alioth",
            Self::PciBars => "PciBars",
            Self::Kept => "PciBars, kept",
            Self::Deferred => "PciBars, kept, deferred",
            Self::Window => "PciBars, kept, window",
        };
        name.to_owned()
    }
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
        let region = kvm_userspace_memory_region {
            slot: n as u32,
            flags: 0,
            guest_phys_addr: base,
            memory_size: size,
            userspace_addr: self.hva + n as u64 * MEMORY,
        };
        // SAFETY: the memory outlives the VM, in which no vCPU runs.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(io::Error::from)?;
        spent.ioctls += 1;
        spent.grace_periods += if size == 0 { 2 } else { 1 };
        Ok(())
    }

    fn doorbells(&self, n: usize, base: u64, on: bool, spent: &mut Spent) -> io::Result<()> {
        for (queue, fd) in (0..).zip(&self.bells[n]) {
            let bell = ioeventfd(base + MEMORY + queue * 4, fd).into();
            if on {
                self.calls.change(&EventOp::Assign(bell))?;
            } else {
                self.calls.change(&EventOp::Deassign(bell))?;
                spent.grace_periods += 1;
                spent.in_ioeventfd_deassign += 1;
            }
            spent.ioctls += 1;
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
                let window = map_window(&vm)?;
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
        let mut spent = Spent::default();
        spent.add(&self.vm.apply(changes).map_err(io::Error::other)?);
        Ok(spent)
    }

    fn write(&mut self, n: usize, offset: u16, value: u32, spent: &mut Spent) -> io::Result<()> {
        let (function, data) = (self.functions[n], value.to_le_bytes());
        let report: Option<Report> =
            self.bars.config_write(&self.vm, function, offset, &data).map_err(io::Error::other)?;
        if let Some(report) = report {
            spent.add(&report);
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

/// A window that is large enough for both places.
fn map_window(vm: &Vm) -> io::Result<Window> {
    let span = at(WINDOW, 2 * (PLACES[1] - PLACES[0]));
    let window = Window::new(WindowSpec::new(span)).map_err(io::Error::other)?;
    let mut changes = Changes::new();
    changes.map(window.region());
    vm.apply(changes).map_err(io::Error::other)?;
    Ok(window)
}

/// All passes in a new VM.
fn round(args: &Devices, who: Who, watch: &mut Watch<'_>) -> Result<Vec<Taken>, DevicesError> {
    let vm = new_vm().map_err(DevicesError::Vm)?;
    split_irqchip(&vm).map_err(DevicesError::Vm)?;
    let count = args.devices as usize;
    let memory = HostMemory::reserve(count as u64 * MEMORY, Pages::Small).map_err(io::Error::from);
    let memory = memory.map_err(DevicesError::Board)?;
    let eventfds = || {
        let all = (0..args.ioeventfds).map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new));
        all.collect::<io::Result<Vec<_>>>()
    };
    let bells = (0..count).map(|_| eventfds()).collect::<io::Result<Vec<_>>>();
    let bells = bells.map_err(DevicesError::Board)?;
    let failed = |what| move |error| DevicesError::Call { way: who.way(), what, error };
    let kvm = || Kvm::open(vm_fd(&vm), KvmOptions::default()).map_err(io::Error::other);
    let mut library = match who {
        Who::CloudHypervisor | Who::Alioth => None,
        _ => Some(Library::new(&vm, who, &bells, memory.hva()).map_err(failed("opening"))?),
    };
    let calls = kvm().map_err(failed("opening"))?;
    let bells_first = who == Who::CloudHypervisor;
    let by_hand = ByHand { vm: &vm, calls, bells_first, bells: &bells, hva: memory.hva() };
    let mut pass = |(pass, _)| {
        let (spent, lap) = watch.lap(|| {
            let mut spent = (0..count).try_fold(Spent::default(), |spent, n| {
                let place = |base: u64| base + n as u64 * 2 * BAR;
                let to = if pass == Pass::Move { PLACES[1] } else { PLACES[0] };
                let places = [place(PLACES[0]), place(to)];
                let step = match &mut library {
                    Some(library) => library.step(pass, n, places),
                    None => by_hand.step(pass, n, places),
                };
                step.map(|step| spent.plus(step))
            })?;
            if let Some(library) = &library {
                spent = spent.plus(library.finish()?);
            }
            Ok(spent)
        });
        Ok(taken(lap, &spent.map_err(failed("following the guest"))?))
    };
    PASSES.into_iter().map(&mut pass).collect()
}

pub(super) fn decode(args: &Devices, session: &mut Session<'_>) -> Result<(), DevicesError> {
    let passes = PASSES.map(|(_, name)| shape(args, 0, name));
    session.compare(&passes, &Who::ALL, &[Who::CloudHypervisor], |who, watch| {
        round(args, who, watch).map_err(Stop::Fail)
    })
}
