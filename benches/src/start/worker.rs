//! One VM of those that are set up at once.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::ways::{PARTS, Setup};
use super::{Shape, Way};
use crate::fleet::{self, Fleet};
use crate::spent::Spent;
use crate::timed::Times;
use kvm_memslots_kit::pin::Pinned;
use kvm_memslots_kit::usage::Usage;
use kvm_memslots_kit::warm;

/// The hidden subcommand that this is.
const SUBCOMMAND: &str = "start-worker";

/// What a worker is told.
#[derive(Debug, Clone, Copy, Args)]
pub struct Worker {
    /// Stay on one CPU.
    #[arg(long)]
    pin: bool,
    #[command(flatten)]
    told: Told,
}

/// What all workers are told.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Told {
    #[arg(long, value_enum)]
    pub(super) way: Way,
    /// Say where the time goes.
    #[arg(long)]
    pub(super) profile: bool,
    /// Have the first use of code in the time.
    #[arg(long)]
    pub(super) cold: bool,
    #[command(flatten)]
    pub(super) shape: Shape,
}

/// What a worker measured.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Measured {
    /// `KVM_CREATE_VM`.
    pub(super) create_ns: u64,
    /// All that comes after it.
    pub(super) setup_ns: u64,
    /// Calls, and grace periods by KVM's rules.
    pub(super) spent: Spent,
    /// Where the setup's time went, if that was asked for.
    pub(super) times: Times,
    /// Page faults in it.
    pub(super) faults: u64,
    /// How long the thread was on a CPU for it.
    pub(super) cpu_ns: u64,
}

/// A worker's process.
#[must_use]
pub fn worker(args: Worker) -> ExitCode {
    let Worker { pin, told } = args;
    let prepare = || {
        let setup = Setup::new(told.way, told.shape, told.profile)?;
        if !told.cold {
            warm::code().context(PARTS)?;
        }
        Ok(setup)
    };
    let work = |setup: Setup| {
        let _pinned = pin.then(Pinned::to_first_cpu);
        let done = setup.run(|change| change())?;
        let (create_ns, setup_ns) = (done.create_ns, done.setup_ns);
        let (spent, times, Usage { faults, cpu_ns }) = (done.spent, done.times, done.usage);
        Ok((Measured { create_ns, setup_ns, spent, times, faults, cpu_ns }, done))
    };
    fleet::member(prepare, work)
}

/// Sets VMs up at the same time.
pub(super) fn measure(at_once: u32, told: &Told) -> Result<Vec<Measured>> {
    let Told { way, profile, cold, shape } = told;
    let mut args = vec![SUBCOMMAND.to_owned(), "--way".to_owned(), way.to_string()];
    let numbers = [
        ("--devices", shape.devices),
        ("--bars", shape.bars),
        ("--vectors", shape.vectors),
        ("--doorbells", shape.doorbells),
        ("--vcpus", shape.vcpus),
    ];
    args.extend(numbers.into_iter().flat_map(|(name, value)| [name.to_owned(), value.to_string()]));
    // What else one VM's time depends on.
    let flags = [("--profile", *profile), ("--cold", *cold), ("--pin", at_once == 1)];
    args.extend(flags.into_iter().filter(|(_, on)| *on).map(|(name, _)| name.to_owned()));
    Fleet::start(at_once, &args)?.go()
}
