//! The command line.

mod bench;
mod doctor;
mod output;
mod progress;
mod shown;
mod special;
mod traces;

use std::io;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::density::Flag;
use crate::note::note;
use crate::rig::Target;
use bench::BenchArgs;
use doctor::DoctorArgs;
use kvm_memslots_kit::grace::{GraceCounter, Method};
use kvm_memslots_kit::machine::{new_vm, open_kvm};
use special::{Flash, Shown, Special};

/// The exit code for what can't be done as asked, as clap's for what can't be
/// understood.
const USAGE: u8 = 2;

/// What KVM memslot changes cost on this machine, one by one and in
/// transactions.
#[derive(Debug, Parser)]
#[command(name = "memslots", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    bench: BenchArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run scenarios with strategies side by side (what `memslots` alone does).
    Bench(Box<BenchCommand>),
    /// Have a guest program flash, and compare the ways in which the slot of a
    /// ROM device can follow its mode.
    Flash(Shown<Flash>),
    /// Show what this machine offers, what a grace period costs on it, and in
    /// which order a VM is best started.
    Doctor(DoctorArgs),
    /// Read the memslot calls of a VMM from the log of QEMU's event
    /// `kvm_set_user_memory` or from strace -e ioctl, and write them as a
    /// trace.
    Import(traces::ImportArgs),
    /// Make the calls of a trace on this machine's KVM, in several ways side by
    /// side.
    Replay(traces::ReplayArgs),
    /// Assign irqfds while many VMs are up, with and without
    /// `KVM_IRQFD_FLAG_NO_IRQBYPASS`.
    Density(Shown<crate::density::Density>),
    /// A VM of `density`, in a process of its own.
    #[command(name = "density-worker", hide = true)]
    DensityWorker {
        #[arg(long)]
        irqfds: u32,
        #[arg(long)]
        no_irqbypass: bool,
    },
    /// A VM of `bench start`, in a process of its own.
    #[command(name = "start-worker", hide = true)]
    StartWorker(crate::start::Worker),
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
struct BenchCommand {
    #[command(subcommand)]
    special: Option<Special>,
    #[command(flatten)]
    scenarios: BenchArgs,
}

/// Runs the command line tool on the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        None => bench::bench(&cli.bench),
        Some(Command::Bench(command)) => match &command.special {
            Some(special) => special::run(special),
            None => bench::bench(&command.scenarios),
        },
        Some(Command::Density(args)) => special::density(&args),
        Some(Command::DensityWorker { irqfds, no_irqbypass }) => {
            let flag = if no_irqbypass { Flag::NoBypass } else { Flag::None };
            return crate::density::worker(irqfds, flag);
        }
        Some(Command::StartWorker(args)) => return crate::start::worker(args),
        Some(Command::Flash(args)) => special::flash(&args),
        Some(Command::Import(args)) => traces::import(&args),
        Some(Command::Replay(args)) => traces::replay(&args),
        Some(Command::Doctor(args)) => doctor::doctor(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has seen enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            note(format_args!("memslots: {failure}"));
            ExitCode::from(if matches!(failure, Failure::Usage(_)) { USAGE } else { 1 })
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("writing the output: {0}")]
    Output(#[from] io::Error),
    #[error("{0:#}")]
    Run(#[from] anyhow::Error),
}

/// Counts grace periods of memslots, where there are any.
fn counter(target: Target) -> Option<GraceCounter> {
    if target == Target::Model { None } else { counted_by(&Method::ALL) }
}

/// Grace periods are counted by the kernel where it lets us; if not, that is
/// worth a word, but no failure.
fn counted_by(methods: &[Method]) -> Option<GraceCounter> {
    GraceCounter::first_of(methods, new_vm)
        .inspect_err(|why| {
            note(format_args!("memslots: {why}; grace periods are those of the plan"));
        })
        .ok()
}

/// Without KVM there is nothing to measure, whatever was asked for; nor with
/// more vCPUs than a VM can have.
fn need_kvm(vcpus: &[usize]) -> Result<(), Failure> {
    let (kvm, _) = open_kvm().map_err(|why| Failure::Usage(format!("this needs KVM: {why}")))?;
    let (asked, most) = (vcpus.iter().copied().max().unwrap_or(0), kvm.get_max_vcpus());
    if asked > most {
        let why =
            format!("--vcpus {asked}: a VM on this machine can have {most} (KVM_CAP_MAX_VCPUS)");
        return Err(Failure::Usage(why));
    }
    Ok(())
}
