//! The orders in which VMMs set a VM up.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use kvm_ioctls::VmFd;
use kvm_memslots::device::Route;
use kvm_memslots::{Access, Backing, Changes, RegionSpec, Vm, at};

use super::Shape;
use super::steps::{Parts, Step};
use crate::devices::{Apply, Board, BoardDevice, ByHand, CallOrder, Size, of_set};
use crate::spent::Spent;
use crate::timed::{self, Clock, Kind, Times};
use crate::way::{Way as _, shown_by_name};
use kvm_memslots_kit::machine::new_vm;
use kvm_memslots_kit::usage::Usage;

/// How a VM is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Way {
    /// As Cloud Hypervisor: TSS, split irqchip, memory, vCPUs; of all devices the
    /// doorbells; for each vector all routes so far, then its irqfd.
    CloudHypervisor,
    /// As Firecracker restores a VM: TSS, irqchip, PIT, vCPUs, memory; of all
    /// devices the doorbells; all routes once; the irqfds.
    Firecracker,
    /// As QEMU: TSS, irqchip, vCPUs, memory, PIT; device after device its
    /// doorbells, and for each vector all routes so far, then its irqfd.
    Qemu,
    /// The library: memory in a set of changes, TSS, irqchip, PIT, vCPUs, all
    /// devices in one set. Where devices have memory, they come with that, their
    /// vectors masked, and the last set brings vectors and doorbells.
    Library,
    /// The same with a split irqchip, and without a PIT.
    LibrarySplit,
}

impl Way {
    const fn steps(self) -> &'static [Step] {
        use Step::{Devices, Irqchip, Memory, Pit, SplitIrqchip, Tss, Vcpus};
        match self {
            Self::CloudHypervisor => &[Tss, SplitIrqchip, Memory, Vcpus, Devices],
            Self::Firecracker => &[Tss, Irqchip, Pit, Vcpus, Memory, Devices],
            Self::Qemu => &[Tss, Irqchip, Vcpus, Memory, Pit, Devices],
            Self::Library => &[Memory, Tss, Irqchip, Pit, Vcpus, Devices],
            Self::LibrarySplit => &[Memory, Tss, SplitIrqchip, Vcpus, Devices],
        }
    }

    /// How devices are attached; `None` for the library.
    const fn by_hand(self) -> Option<CallOrder> {
        match self {
            Self::CloudHypervisor => Some(CallOrder::CLOUD_HYPERVISOR),
            Self::Firecracker => Some(CallOrder::FIRECRACKER_RESTORE),
            Self::Qemu => Some(CallOrder::QEMU),
            Self::Library | Self::LibrarySplit => None,
        }
    }

    fn routes(self) -> Vec<Route> {
        let split = self.steps().contains(&Step::SplitIrqchip);
        if split { Vec::new() } else { Route::x86_defaults() }
    }
}

shown_by_name!(Way);

/// What there is to say where a VM's parts are not to be had.
pub(super) const PARTS: &str = "the VM's memory and eventfds";

/// A VM to be, with all that it takes but the VM.
pub(super) struct Setup {
    way: Way,
    parts: Parts,
    board: Board,
    /// The library's sets of changes, as far as they are to come; else empty.
    memory: Changes,
    devices: Changes,
    /// If it is asked where the time goes.
    clock: Option<Clock>,
}

/// A VM that is set up.
pub(super) struct Done {
    pub(super) create_ns: u64,
    pub(super) setup_ns: u64,
    pub(super) spent: Spent,
    /// Nothing, if that was not asked for.
    pub(super) times: Times,
    /// What the thread used of its machine for the setup.
    pub(super) usage: Usage,
    /// Dropped in this order.
    _kept: (Option<Vm>, Arc<VmFd>, Setup),
}

impl Setup {
    pub(super) fn new(way: Way, shape: Shape, profile: bool) -> Result<Self> {
        let parts = Parts::new(super::steps::REGIONS.len(), shape.vcpus).context(PARTS)?;
        let devices = Size {
            devices: shape.devices,
            bars: shape.bars,
            ioeventfds: shape.doorbells,
            vectors: shape.vectors,
            scattered: false,
        };
        let board = Board::new(&devices).context(PARTS)?;
        let clock = profile.then(Clock::default);
        let (memory, devices) = match way.by_hand() {
            Some(_) => (Changes::new(), Changes::new()),
            None => sets(&parts, &board),
        };
        Ok(Self { way, parts, board, memory, devices, clock })
    }

    /// Makes the VM, and all steps; `around` does the latter.
    pub(super) fn run(mut self, around: impl FnOnce(&mut dyn FnMut())) -> Result<Done> {
        let start = Instant::now();
        let vm = Arc::new(new_vm().context("no VM")?);
        let create_ns = start.elapsed().as_nanos() as u64;
        let (way, mut library, mut spent, mut setup_ns) = (self.way, None, Spent::default(), 0);
        let mut outcome: Result<()> = Ok(());
        let before = Usage::of_thread();
        around(&mut || {
            let start = Instant::now();
            outcome = way.steps().iter().try_for_each(|step| {
                let made = self.step(*step, &vm, &mut library);
                spent += made.with_context(|| format!("{way}, {}", step.name()))?;
                Ok(())
            });
            setup_ns = start.elapsed().as_nanos() as u64;
        });
        let usage = Usage::of_thread().since(before);
        outcome?;
        let times = self.clock.as_ref().map(Clock::take).unwrap_or_default();
        let kept = (library, vm, self);
        Ok(Done { create_ns, setup_ns, spent, times, usage, _kept: kept })
    }

    fn step(&mut self, step: Step, vm: &VmFd, library: &mut Option<Vm>) -> io::Result<Spent> {
        match (step, self.way.by_hand()) {
            (Step::Devices, Some(order)) => {
                let first_slot = self.parts.regions().len() as u32;
                let by_hand = ByHand::new(vm, order, self.clock.clone())?;
                let mut by_hand = by_hand.beside(first_slot, self.way.routes());
                by_hand.attach(&self.board, 0..self.board.devices.len())
            }
            (Step::Devices, None) => apply(library.as_ref(), std::mem::take(&mut self.devices)),
            (Step::Memory, None) => {
                let builder = Vm::builder().own_routes(self.way.routes());
                let opened = library.insert(timed::open(builder, vm, self.clock.clone())?);
                apply(Some(&*opened), std::mem::take(&mut self.memory))
            }
            _ => {
                let kind = match step {
                    Step::Memory => Kind::Memory,
                    Step::Vcpus => Kind::Vcpus,
                    _ => Kind::Platform,
                };
                let make = || self.parts.make(step, vm);
                let ioctls = timed::time(self.clock.as_ref(), kind, make)?;
                // By KVM's rules: a create waits for one, and the irqchip's first
                // routes do.
                let grace_periods = match step {
                    Step::Memory => ioctls,
                    Step::Irqchip => 1,
                    _ => 0,
                };
                Ok(Spent::calls(ioctls, grace_periods))
            }
        }
    }
}

/// What the library is asked for: memory, with the devices as far as they can come
/// before the interrupt controller, and the rest. They hold the memory of neither
/// the parts nor the board, and are applied by a [`Setup`] that does.
fn sets(parts: &Parts, board: &Board) -> (Changes, Changes) {
    let (mut memory, mut devices) = (Changes::new(), Changes::new());
    for (gpa, size, hva) in parts.regions() {
        // SAFETY: the parts are dropped after the VM, no vCPU of which ever runs.
        let backing = unsafe { Backing::borrowed(*hva, *size, Access::ReadWrite) };
        memory.map(RegionSpec::ram(at(*gpa, *size), backing));
    }
    let early = board.devices.iter().any(|device| !device.bars.is_empty());
    for (index, device) in board.devices.iter().enumerate() {
        // SAFETY: the board is dropped after the VM, no vCPU of which ever runs.
        let whole = unsafe { device.setup(index, early) };
        if !early {
            devices.attach(whole);
            continue;
        }
        let id = memory.attach(whole.defer_ioeventfds());
        for vector in 0..device.interrupts.len() {
            devices.set_vector(id, vector, Some(BoardDevice::msi(vector)));
        }
    }
    devices.assign_deferred();
    (memory, devices)
}

fn apply(vm: Option<&Vm>, changes: Changes) -> io::Result<Spent> {
    let vm = vm.ok_or_else(|| io::Error::other("no memory before the devices"))?;
    of_set(vm, changes)
}
