//! One VM of those that are set up at once.

use std::process::ExitCode;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::ways::Setup;
use super::{Shape, StartError, Way};
use crate::devices::Spent;
use crate::fleet::{self, Fleet};
use crate::timed::Times;
use kvm_memslots_kit::pin::Pinned;

/// The hidden subcommand that this is.
const SUBCOMMAND: &str = "start-worker";

/// What a worker is told.
#[derive(Debug, Clone, Copy, Args)]
pub struct Worker {
    #[arg(long, value_enum)]
    way: Way,
    /// Stay on one CPU.
    #[arg(long)]
    pin: bool,
    /// Say where the time goes.
    #[arg(long)]
    profile: bool,
    #[command(flatten)]
    shape: Shape,
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
}

/// A worker's process.
#[must_use]
pub fn worker(args: Worker) -> ExitCode {
    let work = |setup: Setup| {
        let _pinned = args.pin.then(Pinned::to_first_cpu);
        let done = setup.run(|change| change())?;
        let (create_ns, setup_ns) = (done.create_ns, done.setup_ns);
        let (spent, times) = (done.spent, done.times);
        Ok::<_, StartError>((Measured { create_ns, setup_ns, spent, times }, done))
    };
    fleet::member(|| Setup::new(args.way, args.shape, args.profile), work)
}

/// Sets VMs up at the same time.
pub(super) fn measure(
    at_once: u32,
    way: Way,
    shape: Shape,
    profile: bool,
) -> Result<Vec<Measured>, StartError> {
    let mut args = vec![SUBCOMMAND.to_owned(), "--way".to_owned(), way.name().to_owned()];
    let numbers = [
        ("--devices", shape.devices),
        ("--bars", shape.bars),
        ("--vectors", shape.vectors),
        ("--doorbells", shape.doorbells),
        ("--vcpus", shape.vcpus),
    ];
    args.extend(numbers.into_iter().flat_map(|(name, value)| [name.to_owned(), value.to_string()]));
    args.extend(profile.then(|| "--profile".to_owned()));
    // What else one VM's time depends on.
    args.extend((at_once == 1).then(|| "--pin".to_owned()));
    Ok(Fleet::start(at_once, &args)?.go()?)
}
