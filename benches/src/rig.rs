//! A VM, or the model of one, on which a strategy makes the changes of a
//! scenario.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kvm_ioctls::VmFd;
use kvm_memslots::backend::{EventModel, Irqchip, Kvm, KvmOptions, MemoryCalls, MemoryModel};
use kvm_memslots::{Executor, HolePolicy, Limits, Vm, vm_fd};

use crate::limit::{Limit, lacks};
use crate::scenario::{Scenario, Step, Workload};
use crate::strategy::{Apply, Bells, Enabled, PerRegion, Sets, Spent, Strategy};
use crate::way::shown_by_name;
use kvm_memslots_kit::guest::{BusyVcpus, Prober, Work};
use kvm_memslots_kit::host::{HostMemory, Pages};
use kvm_memslots_kit::machine::new_vm;
use kvm_memslots_kit::raw::{OnKvm, RawCalls};

/// What busy vCPUs do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Busy {
    /// They fault in 16 MiB each, in small pages, again and again.
    Fault,
    /// They spin inside the guest and exit only when they are made to.
    Spin,
}

impl Busy {
    /// As guest code.
    #[must_use]
    pub const fn work(self) -> Work {
        match self {
            Self::Fault => Work::FaultIn { bytes: 16 << 20, pages: Pages::Small },
            Self::Spin => Work::Spin,
        }
    }
}

/// vCPUs beside a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vcpus {
    /// How many.
    pub count: usize,
    /// What they do.
    pub busy: Busy,
}

impl Vcpus {
    /// None.
    pub const NONE: Self = Self { count: 0, busy: Busy::Spin };
}

/// vCPUs that take longer than this to get going never will.
pub(crate) const START: Duration = Duration::from_secs(30);

/// Who carries the changes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// The KVM of this machine.
    Kvm,
    /// The model of KVM: nothing really happens, no grace period passes.
    Model,
}

shown_by_name!(Busy);
shown_by_name!(Target);

impl Target {
    /// What a new VM allows. The model has the batch ioctl.
    ///
    /// # Errors
    /// Why there is no VM.
    pub fn limits(self) -> io::Result<Limits> {
        match self {
            Self::Kvm => limits_of(&new_vm()?),
            Self::Model => Ok(Limits::x86().with_batch(Limits::x86().slots)),
        }
    }
}

/// A new VM with a scenario's memory, a strategy to change it, and busy vCPUs
/// beside it.
pub struct Rig {
    // In this order: no vCPU runs when VM and memory go.
    busy: Option<Arc<BusyVcpus>>,
    strategy: Box<dyn Apply>,
    _vm: Option<VmFd>,
    _memory: HostMemory,
}

impl Rig {
    /// Makes the VM, starts the vCPUs and makes the scenario's setup.
    ///
    /// # Errors
    /// A [`Limit`], or a failure.
    pub fn new(
        scenario: &Scenario,
        strategy: Strategy,
        target: Target,
        vcpus: Vcpus,
    ) -> Result<Self> {
        let bytes = scenario.host_bytes;
        let memory = HostMemory::reserve(bytes, Pages::Small)
            .map_err(|errno| Limit(format!("{bytes} bytes of host memory: {errno}")))?;
        let mut rig = match target {
            Target::Kvm => Self::on_kvm(scenario, strategy, vcpus, memory)?,
            Target::Model if vcpus.count == 0 => Self::on_model(scenario, strategy, memory)?,
            Target::Model => return Err(lacks("the model has no vCPUs")),
        };
        rig.apply(&scenario.setup)?;
        if let Some(busy) = &rig.busy {
            busy.wait_for_progress(START)?;
        }
        Ok(rig)
    }

    fn on_kvm(
        scenario: &Scenario,
        strategy: Strategy,
        vcpus: Vcpus,
        memory: HostMemory,
    ) -> Result<Self> {
        let vm = new_vm().context("no VM")?;
        let limits = limits_of(&vm).context("no VM")?;
        // The guest code's slot: one that the VMM holds itself.
        let own = limits.slots.saturating_sub(1);
        let own_id = u16::try_from(own).unwrap_or(u16::MAX);
        let start = || BusyVcpus::start(&vm, own_id, vcpus.count, vcpus.busy.work()).map(Arc::new);
        let busy = (vcpus.count > 0).then(start).transpose()?;
        let holes = busy.clone().map_or(HolePolicy::NoVcpuRuns, |gate| HolePolicy::Gate(gate));
        let made = Made { scenario, strategy, vm: &vm, memory: &memory, own, own_id, holes };
        let strategy: Box<dyn Apply> = match (scenario.workload, strategy) {
            (workload, _) if workload.has_guest() && busy.is_some() => {
                let what = "this scenario has a guest of its own: it runs without busy vCPUs";
                return Err(lacks(what));
            }
            (workload, _) if workload.has_guest() => Box::new(made.enabled()?),
            (_, Strategy::Deferred) => return Err(nothing_deferred()),
            _ => made.plain()?,
        };
        Ok(Self { busy, strategy, _vm: Some(vm), _memory: memory })
    }

    fn on_model(scenario: &Scenario, strategy: Strategy, memory: HostMemory) -> Result<Self> {
        let limits = Target::Model.limits().context("no VM")?;
        let strategy = on_model(scenario, strategy, &MemoryModel::new(limits), memory.hva())?;
        Ok(Self { busy: None, strategy, _vm: None, _memory: memory })
    }

    /// Makes steps.
    ///
    /// # Errors
    /// Which step, and why.
    pub fn apply(&mut self, steps: &[Step]) -> Result<Spent> {
        let mut spent = Spent::default();
        for step in steps {
            spent += self.strategy.apply(step).context(step.what)?;
        }
        Ok(spent)
    }

    /// Stops the vCPUs.
    ///
    /// # Errors
    /// How a guest died, if one did before it was told to stop.
    pub fn finish(self) -> Result<()> {
        Ok(self.busy.as_ref().map_or(Ok(()), |busy| busy.stop())?)
    }
}

/// What a strategy on a VM is made of.
struct Made<'a> {
    scenario: &'a Scenario,
    strategy: Strategy,
    vm: &'a VmFd,
    memory: &'a HostMemory,
    own: u32,
    own_id: u16,
    holes: HolePolicy,
}

impl Made<'_> {
    /// The strategy by itself.
    fn plain(self) -> Result<Box<dyn Apply>> {
        let (hva, names, own) = (self.memory.hva(), self.scenario.names, self.own);
        if self.strategy.has_library() {
            // SAFETY: the memory is as long as the scenario says, is anonymous, only
            // accessed atomically, and dropped after the VM and its vCPUs.
            return Ok(Box::new(unsafe { Sets::new(self.open()?, hva, self.scenario) }));
        }
        let calls = Box::new(OnKvm::new(self.vm).context("no VM")?);
        let batch = self.strategy.needs_batch();
        // SAFETY: as above.
        Ok(Box::new(unsafe { PerRegion::new(calls, batch, hva, names, own) }?))
    }

    /// Behind a guest that enables PCI devices.
    fn enabled(self) -> Result<Enabled> {
        let prober = Prober::new(self.vm, self.own_id)?;
        let (steps, hva) = (&self.scenario.steps, self.memory.hva());
        Enabled::fill(self.memory, steps);
        let devices = match self.scenario.workload {
            Workload::PciDoorbells => self.scenario.regions,
            _ => 0,
        };
        let bells = Bells::new(devices).context("no VM")?;
        if !self.strategy.has_library() {
            let events = Kvm::open(vm_fd(self.vm), KvmOptions::default()).context("no VM")?;
            return Ok(Enabled::today(prober, self.plain()?, events, bells));
        }
        let vm = self.open()?;
        let deferrable = self.strategy == Strategy::Deferred;
        // SAFETY: as for `plain`.
        let enabled = unsafe { Enabled::following(prober, vm, steps, hva, deferrable, bells) };
        enabled.context("a device is added")
    }

    fn open(&self) -> Result<Arc<Vm>> {
        let builder = Vm::builder().executor(executor(self.strategy)).holes(self.holes.clone());
        let builder = builder.reserve_slots(0, self.own_id..=self.own_id);
        Ok(Arc::new(builder.open(vm_fd(self.vm))?))
    }
}

/// `strategy` on the model of KVM, which maps nothing for real.
///
/// # Errors
/// What the library says.
pub fn on_model(
    scenario: &Scenario,
    strategy: Strategy,
    model: &MemoryModel,
    hva: u64,
) -> Result<Box<dyn Apply>> {
    let (names, limit) = (scenario.names, MemoryCalls::limits(model).slots);
    if strategy == Strategy::Deferred {
        return Err(nothing_deferred());
    }
    if strategy.has_library() {
        let vm = model_vm(model, Vm::builder().executor(executor(strategy)))?;
        // SAFETY: nothing is mapped for real.
        return Ok(Box::new(unsafe { Sets::new(vm, hva, scenario) }));
    }
    let (calls, batch) = (Box::new(model.clone()), strategy.needs_batch());
    // SAFETY: nothing is mapped for real.
    Ok(Box::new(unsafe { PerRegion::new(calls, batch, hva, names, limit) }?))
}

/// The library on the model of KVM, without vCPUs.
///
/// # Errors
/// What the library says.
pub fn model_vm(model: &MemoryModel, builder: kvm_memslots::Builder) -> Result<Arc<Vm>> {
    let events = Arc::new(EventModel::new(Irqchip::Split));
    let builder = builder.holes(HolePolicy::NoVcpuRuns);
    Ok(Arc::new(builder.open_on(Arc::new(model.clone()), events)?))
}

fn nothing_deferred() -> anyhow::Error {
    lacks("this scenario has no guest that uses what is deferred")
}

const fn executor(strategy: Strategy) -> Executor {
    match strategy {
        Strategy::Batch | Strategy::RawBatch => Executor::Batch,
        Strategy::Shim | Strategy::PerRegion => Executor::PerRegion,
        Strategy::Deferred => Executor::Auto,
    }
}

fn limits_of(vm: &VmFd) -> io::Result<Limits> {
    Ok(OnKvm::new(vm)?.limits())
}
