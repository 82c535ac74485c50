//! A guest that enables PCI devices by config writes, and a VMM that follows.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Error, Result, anyhow};
use kvm_memslots::backend::Kvm;
use kvm_memslots::deferred::Deferred;
use kvm_memslots::pci::{BarSpec, FunctionId, FunctionSpec, PciBars, PciError};
use kvm_memslots::{Access as HostAccess, Backing, Changes, RegionSpec, Vm, at};

use super::{Apply, Bells, Spent};
use crate::scenario::{Change, Place, Step};
use kvm_memslots_kit::guest::{Access, Mmio, Prober};
use kvm_memslots_kit::host::HostMemory;

/// Where the guest has its devices' config space: 4 KiB each.
const ECAM: u64 = 0xb000_0000;
const ECAM_END: u64 = 0xc000_0000;
const CONFIG_SPACE: u64 = 4096;

/// Offsets in the config space.
const COMMAND: u64 = 0x04;
const BAR_0: u64 = 0x10;
const BAR_2: u64 = 0x18;

/// Bits of the command register: memory, bus mastering.
const ENABLED: u64 = 0x6;

/// How often the guest reads from each BAR once all devices are enabled.
const USES: usize = 16;

/// The bits that say how large a BAR is, and what a guest's address may be.
const ADDRESS_BITS: u32 = 39;

/// What a step of the scenario `pci` takes: the guest finds out how large the
/// device's BARs are, gives them addresses and enables it, each by config
/// writes that exit; the VMM does what they are about.
pub struct Enabled {
    prober: Prober,
    vmm: Vmm,
    bells: Bells,
    /// BARs of the devices that were enabled.
    bars: Vec<[Place; 2]>,
}

/// Who takes the exits.
enum Vmm {
    /// What the step says, when the device is enabled.
    Today(Box<Today>),
    Follows(Box<Follows>),
}

struct Today {
    memory: Box<dyn Apply>,
    events: Kvm,
}

struct Follows {
    vm: Arc<Vm>,
    bars: PciBars,
    functions: Vec<FunctionId>,
    exits: Deferred,
}

impl fmt::Debug for Enabled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enabled").field("enabled", &self.bars.len()).finish_non_exhaustive()
    }
}

impl Enabled {
    /// A VMM that makes the calls of each step as they are.
    #[must_use]
    pub fn today(prober: Prober, memory: Box<dyn Apply>, events: Kvm, bells: Bells) -> Self {
        let vmm = Vmm::Today(Box::new(Today { memory, events }));
        Self { prober, vmm, bells, bars: Vec::new() }
    }

    /// A VMM that has [`PciBars`] follow the config writes.
    ///
    /// # Errors
    /// What the library says of a BAR.
    ///
    /// # Safety
    /// The scenario's host memory is at `hva`, is as long as the scenario says,
    /// outlives the VM, and is the guest's to read and write.
    pub unsafe fn following(
        prober: Prober,
        vm: Arc<Vm>,
        steps: &[Step],
        hva: u64,
        deferrable: bool,
        bells: Bells,
    ) -> Result<Self> {
        let bars = PciBars::new(ADDRESS_BITS);
        let mut bars = if deferrable { bars.defer_ioeventfds() } else { bars };
        let functions = steps
            .iter()
            .filter_map(places)
            .enumerate()
            .map(|(n, [small, large])| {
                let window = |place: Place| {
                    let (hva, size) = (hva + place.offset, place.size);
                    // SAFETY: the caller's promise.
                    let backing = unsafe { Backing::borrowed(hva, size, HostAccess::ReadWrite) };
                    // SAFETY: anonymous memory, which no access faults on.
                    let backing = unsafe { backing.never_faults() };
                    let region = RegionSpec::device(at(0, size), backing).permanent();
                    if deferrable { region.deferrable() } else { region }
                };
                let small = BarSpec::memory32(small.size).window(window(small));
                let spec = BarSpec::memory64(large.size).prefetchable();
                let large = spec.window(window(large));
                let function = FunctionSpec::new().bar(0, small).bar(2, large);
                bars.add(&vm, bells.add_to(n, function)).map_err(of_bar)
            })
            .collect::<Result<Vec<_>>>()?;
        let exits = vm.deferred(0)?;
        let vmm = Vmm::Follows(Box::new(Follows { vm, bars, functions, exits }));
        Ok(Self { prober, vmm, bells, bars: Vec::new() })
    }

    /// Puts into each BAR what the guest is to find there.
    pub fn fill(memory: &HostMemory, steps: &[Step]) {
        for place in steps.iter().filter_map(places).flatten() {
            memory.write(place.offset, content(&place));
        }
    }

    fn enable(&mut self, step: &Step, bars: [Place; 2]) -> Result<Spent> {
        let config = ECAM + self.bars.len() as u64 * CONFIG_SPACE;
        let [small, large] = bars;
        let registers = [
            (BAR_0, small.gpa & 0xffff_ffff),
            (BAR_2, large.gpa & 0xffff_ffff),
            (BAR_2 + 4, large.gpa >> 32),
        ];
        let bells = self.bells.register(self.bars.len());
        let registers: Vec<_> = registers.into_iter().chain(bells).collect();
        let read = |offset| Access::Load(config + offset, 4);
        let write = |offset, value| Access::Store(config + offset, 4, value);
        // As Linux: what is there is written back, addresses come later.
        let sizing = registers.iter().flat_map(|(offset, _)| {
            [read(*offset), write(*offset, 0xffff_ffff), read(*offset), write(*offset, 0)]
        });
        let addresses = registers.iter().map(|(offset, value)| write(*offset, *value));
        let command = config + COMMAND;
        let enable = [Access::Load(command, 2), Access::Store(command, 2, ENABLED)];
        let accesses: Vec<_> = sizing.chain(addresses).chain(enable).collect();
        let (spent, values) = self.drive(step, &accesses)?;
        if matches!(self.vmm, Vmm::Follows(_)) {
            let sizes = [values[2], values[6]].map(|low| u64::from(!(low as u32 & !0xf)) + 1);
            if sizes != [small.size, large.size] {
                return Err(wrong_value(config + BAR_0));
            }
        }
        self.bars.push(bars);
        Ok(spent)
    }

    /// The guest reads from every BAR, device after device.
    fn use_all(&mut self, step: &Step) -> Result<Spent> {
        let bars: Vec<Place> = self.bars.iter().flatten().copied().collect();
        let reads = bars.iter().flat_map(|bar| [Access::Read(bar.gpa); USES]);
        let uses: Vec<_> = reads.chain(self.bells.rings()).collect();
        let left = self.vmm.finish()?;
        let (mut spent, values) = self.drive(step, &uses)?;
        spent += left;
        self.bells.check()?;
        let wrong = |(bar, values): &(&Place, &[u64])| values.iter().any(|v| *v != content(bar));
        match bars.iter().zip(values.chunks(USES)).find(wrong) {
            Some((bar, _)) => Err(wrong_value(bar.gpa)),
            None => Ok(spent),
        }
    }

    fn drive(&mut self, step: &Step, accesses: &[Access]) -> Result<(Spent, Vec<u64>)> {
        let mut spent: Result<Spent> = Ok(Spent::default());
        let (vmm, bells, device) = (&mut self.vmm, &self.bells, self.bars.len());
        let values = self.prober.drive(accesses, |exit| {
            if let Ok(so_far) = &mut spent {
                match vmm.exit(exit, step, bells, device) {
                    Ok(cost) => *so_far += cost,
                    Err(error) => spent = Err(error),
                }
            }
        });
        Ok((spent?, values?))
    }
}

impl Vmm {
    fn exit(&mut self, exit: Mmio<'_>, step: &Step, bells: &Bells, device: usize) -> Result<Spent> {
        match (self, exit) {
            (Self::Today(today), Mmio::Write(gpa, data)) => {
                let decodes = data.first().is_some_and(|byte| byte & 2 != 0);
                if gpa % CONFIG_SPACE != COMMAND || !decodes {
                    return Ok(Spent::default());
                }
                let mut spent = today.memory.apply(step)?;
                let start = Instant::now();
                spent.ioctls += bells.assign(device, &today.events)?;
                spent.in_calls += start.elapsed();
                Ok(spent)
            }
            (Self::Today(_), Mmio::Read(_, data)) => {
                data.fill(0);
                Ok(Spent::default())
            }
            (Self::Today(_), Mmio::Undecoded(_)) => not_decoded(),
            (Self::Follows(vmm), exit) => vmm.exit(exit),
        }
    }

    /// What was left until all devices are enabled.
    fn finish(&self) -> Result<Spent> {
        let Self::Follows(vmm) = self else { return Ok(Spent::default()) };
        let mut changes = Changes::new();
        changes.assign_deferred();
        Ok(Spent::from(&vmm.vm.apply(changes)?))
    }
}

impl Follows {
    fn exit(&mut self, exit: Mmio<'_>) -> Result<Spent> {
        let (Mmio::Read(gpa, _) | Mmio::Write(gpa, _)) = exit else { return not_decoded() };
        if !(ECAM..ECAM_END).contains(&gpa) {
            return self.memory(exit);
        }
        let function = self.functions.get(((gpa - ECAM) / CONFIG_SPACE) as usize).copied();
        let function = function.with_context(|| wrong_value(gpa).to_string())?;
        let offset = (gpa % CONFIG_SPACE) as u16;
        let report = match exit {
            Mmio::Write(_, data) => {
                self.bars.config_write(&self.vm, function, offset, data).map_err(of_bar)?
            }
            Mmio::Read(_, data) => {
                data.fill(0);
                self.bars.config_read(function, offset, data)?;
                None
            }
            Mmio::Undecoded(_) => return not_decoded(),
        };
        Ok(report.as_ref().map_or_else(Spent::default, Spent::from))
    }

    fn memory(&mut self, exit: Mmio<'_>) -> Result<Spent> {
        let served = match exit {
            Mmio::Read(gpa, data) => self.exits.read(gpa, data, |_, data| data.fill(0xff)),
            Mmio::Write(gpa, data) => self.exits.write(gpa, data, |_, _| {}),
            Mmio::Undecoded(_) => return not_decoded(),
        };
        let report = if served.due { self.vm.promote()? } else { None };
        Ok(report.as_ref().map_or_else(Spent::default, Spent::from))
    }
}

/// What is said of a BAR; of its memory the error by itself, whose kind is looked at.
pub(crate) fn of_bar(error: PciError) -> Error {
    match error {
        PciError::Vm(error) => error.into(),
        error => error.into(),
    }
}

fn wrong_value(gpa: u64) -> Error {
    anyhow!("the guest read a wrong value at GPA {gpa:#x}")
}

impl Apply for Enabled {
    fn apply(&mut self, step: &Step) -> Result<Spent> {
        match places(step) {
            Some(bars) => self.enable(step, bars),
            None => self.use_all(step),
        }
    }
}

/// The accesses of this guest can all be decoded: it ends, and says so.
#[expect(clippy::unnecessary_wraps)]
fn not_decoded() -> Result<Spent> {
    Ok(Spent::default())
}

/// The BARs that a step is about.
fn places(step: &Step) -> Option<[Place; 2]> {
    match step.changes[..] {
        [Change::Map(_, small), Change::Map(_, large)] => Some([small, large]),
        _ => None,
    }
}

const fn content(place: &Place) -> u64 {
    place.gpa ^ 0x5a5a_5a5a_0000_0000
}
