//! A guest that programs the bank, a word at a time, by real MMIO.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kvm_ioctls::VmFd;
use kvm_memslots::deferred::{self, Deferral};
use kvm_memslots::{
    Backing, Error, HostMemory as _, RegionSpec, Report, RomDevice, RomMode, Vm, at, vm_fd,
};

use super::{BLOCK, Flash};
use crate::rig::{START, Vcpus};
use kvm_memslots_kit::guest::{Access, BusyVcpus, Mmio};
use kvm_memslots_kit::host::HostMemory;

/// How the bank's slot follows its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Way {
    /// It goes and comes with each command.
    Toggle,
    /// It comes back when it is worth it.
    Deferred,
    /// It stays, and traps.
    Trap,
}

impl Way {
    const fn mode(self) -> RomMode {
        match self {
            Self::Toggle => RomMode::Toggle,
            Self::Deferred => RomMode::Deferred { after: 4 },
            Self::Trap => RomMode::Trap,
        }
    }
}

/// What is in the bank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents(Vec<u64>);

/// What it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driven {
    /// Calls that changed memslots, the first map aside.
    pub ioctls: u64,
    /// Grace periods that these wait for by KVM's rules.
    pub grace_periods: u64,
    /// Grace periods before and after, until the address space is dropped: for
    /// the guest's own slot, for the first map, and for the last unmap where
    /// there is a slot.
    pub aside: u64,
    /// Changes of the bank's mode.
    pub flips: u64,
    /// Exits that were answered from the bank's memory.
    pub served: u64,
    /// Exits that the bank answered.
    pub exits: u64,
    /// How often maps were made because they were due.
    pub promotions: u64,
    /// From the first access to the last.
    pub wall: Duration,
    /// What is in the bank at the end.
    pub contents: Contents,
}

/// Where the bank is.
const GPA: u64 = 0x4000_0000;
/// Its blocks.
const BLOCKS: u64 = 4;
/// Accesses of a cycle: four of a program command, two of the array.
const ACCESSES: usize = 6;

/// What the chips say when they are done: ready, in each.
const READY: u64 = 0x0080_0080_0080_0080;

/// One word, and what it is programmed to.
fn word(cycle: usize) -> (u64, u64) {
    let offset = (cycle as u64 * 8) % (BLOCKS * BLOCK);
    (offset, (cycle as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Program a word, poll the status, back to the array, and read the word and
/// its neighbour.
fn cycle(cycle: usize) -> [Access; ACCESSES] {
    let (offset, value) = word(cycle);
    let at = GPA + offset;
    [
        Access::Write(at, 0x40),
        Access::Write(at, value),
        Access::Read(at),
        Access::Write(at, 0xff),
        Access::Read(at),
        Access::Read(at ^ 8),
    ]
}

/// Has a guest on `vm`, a new one without slots, do `cycles` command cycles,
/// while `vcpus` are busy beside it. `deferral` counts where maps are
/// deferred.
///
/// # Errors
/// A guest, a slot or memory that is not to be had; the bank is checked against what the guest read.
pub fn drive(
    vm: &VmFd,
    way: Way,
    cycles: usize,
    vcpus: Vcpus,
    deferral: Deferral,
) -> Result<Driven> {
    let own_slot = 0;
    let (busy, mut prober) = BusyVcpus::with_prober(vm, own_slot, vcpus.count, vcpus.busy.work())?;
    busy.wait_for_progress(START)?;
    let flash = Flash::new(BLOCKS).context("memory for the flash")?;
    let vm = Vm::builder()
        .reserve_slots(0, own_slot..=own_slot)
        .allow_scratch_vm(true)
        .deferral(deferral)
        .open(vm_fd(vm))?;
    let memory: Arc<HostMemory> = Arc::clone(flash.memory());
    let (_, size) = memory.range();
    // SAFETY: anonymous memory, which no access faults on.
    let memory = unsafe { Backing::owned(memory, 0).never_faults() };
    let spec = RegionSpec::rom(at(GPA, size), memory).label("flash");
    let rom = RomDevice::new(&vm, spec, way.mode())?;
    let accesses: Vec<Access> = (0..cycles).flat_map(cycle).collect();

    let exits = vm.deferred(0)?;
    let bank = RefCell::new(Bank { vm, rom, flash, tally: Tally::default(), failed: None });
    let started = Instant::now();
    let values = prober.drive(&accesses, |mmio| Bank::exit(&bank, &exits, mmio))?;
    let wall = started.elapsed();
    busy.stop()?;
    let bank = bank.into_inner();
    if let Some(error) = bank.failed {
        return Err(error.into());
    }
    check(&values, cycles)?;
    let Tally { ioctls, grace_periods, served, exits, promotions } = bank.tally;
    let words = (0..size).step_by(8).map(|offset| bank.flash.memory().read(offset));
    Ok(Driven {
        ioctls,
        grace_periods,
        aside: 2 + 2 * u64::from(!bank.vm.slots(0).is_empty()),
        flips: bank.rom.flips(),
        served,
        exits,
        promotions,
        wall,
        contents: Contents(words.collect()),
    })
}

/// What the guest read is what it had programmed.
fn check(values: &[u64], cycles: usize) -> Result<()> {
    let mut programmed = vec![u64::MAX; (BLOCKS * BLOCK / 8) as usize];
    for (cycle, values) in values.chunks(ACCESSES).enumerate().take(cycles) {
        let (offset, value) = word(cycle);
        let place = (offset / 8) as usize;
        programmed[place] &= value;
        let expected = [
            (2, "the status", READY),
            (4, "the word", programmed[place]),
            (5, "its neighbour", programmed[place ^ 1]),
        ];
        for (index, what, expected) in expected {
            let found = values[index];
            if found != expected {
                bail!("cycle {cycle}: the guest found {found:#x}, {what}, and not {expected:#x}");
            }
        }
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Tally {
    ioctls: u64,
    grace_periods: u64,
    served: u64,
    exits: u64,
    promotions: u64,
}

/// The VMM's side: the device and its slot.
struct Bank {
    vm: Vm,
    rom: RomDevice,
    flash: Flash,
    tally: Tally,
    failed: Option<Error>,
}

impl Bank {
    fn exit(bank: &RefCell<Self>, exits: &deferred::Deferred, mmio: Mmio<'_>) {
        let served = match mmio {
            Mmio::Read(gpa, data) => exits.read(gpa, data, |gpa, data| {
                let mut bank = bank.borrow_mut();
                bank.tally.exits += 1;
                bank.flash.read(gpa - GPA, data);
            }),
            Mmio::Write(gpa, data) => exits.write(gpa, data, |gpa, data| {
                let mut bank = bank.borrow_mut();
                bank.tally.exits += 1;
                bank.flash.write(gpa - GPA, data);
                bank.follow();
            }),
            // The guest makes no such access.
            Mmio::Undecoded(_) => return,
        };
        let mut bank = bank.borrow_mut();
        bank.tally.served += u64::from(served.bytes > 0);
        if served.due {
            let promoted = bank.vm.promote_due();
            bank.tally.promotions += 1;
            bank.note(promoted);
        }
    }

    /// The slot follows the mode.
    fn follow(&mut self) {
        let flipped = self.rom.set_array_mode(&self.vm, self.flash.in_array_mode());
        self.note(flipped);
    }

    fn note(&mut self, report: Result<Option<Report>, Error>) {
        match report {
            Ok(report) => {
                let spent = report.map_or((0, 0), |report| (report.ioctls, report.grace_periods));
                self.tally.ioctls += spent.0;
                self.tally.grace_periods += spent.1;
            }
            Err(error) => self.failed = self.failed.take().or(Some(error)),
        }
    }
}
