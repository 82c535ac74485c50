//! The command line.

mod output;
mod page;
mod progress;
mod traces;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::bench::{Bench, Row, Sizes};
use crate::density::{self, Density};
use crate::devices::{self, Devices};
use crate::doctor::{self, Doctor};
use crate::flash::{self, Way, compare};
use crate::grace::GraceCounter;
use crate::machine::{new_vm, open_kvm};
use crate::report;
use crate::rig::{Busy, Target, Vcpus};
use crate::scenario::Workload;
use crate::start::{self, Start};
use crate::strategy::Strategy;
use crate::window::{self, Windows};
use output::OutputFile;
use page::PageArgs;
use progress::{Spinner, progress, spinner};

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
    Bench(BenchCommand),
    /// Have a guest program flash, and compare the ways in which the slot of a
    /// ROM device can follow its mode.
    Flash(FlashArgs),
    /// Show what this machine offers, what a grace period costs on it, and in
    /// which order a VM is best started.
    Doctor(Doctor),
    /// Read the memslot calls of a VMM from the log of QEMU's event
    /// `kvm_set_user_memory` or from strace -e ioctl, and write them as a
    /// trace.
    Import(traces::ImportArgs),
    /// Make the calls of a trace on this machine's KVM, in several ways side by
    /// side.
    Replay(traces::ReplayArgs),
    /// Assign irqfds while many VMs are up, with and without
    /// `KVM_IRQFD_FLAG_NO_IRQBYPASS`.
    Density(Density),
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
    StartWorker(start::Worker),
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
struct BenchCommand {
    #[command(subcommand)]
    special: Option<Special>,
    #[command(flatten)]
    scenarios: BenchArgs,
}

/// Benchmarks with options of their own.
#[derive(Debug, Subcommand)]
enum Special {
    /// Whole devices, attached and detached: memory, ioeventfds, MSI-X vectors.
    Devices(Devices),
    /// A VM's start in KVM: memory, interrupt controller, vCPUs and devices, in
    /// the order of VMMs and in the best one; one VM, and many at once.
    Start(Start),
    /// Blobs that come and go: a slot for each, and a window.
    Window(Windows),
}

#[derive(Debug, Args)]
struct FlashArgs {
    /// Command cycles: a word is programmed, its status polled, two words are
    /// read.
    #[arg(long, value_name = "N", default_value_t = 6000, value_parser = clap::value_parser!(u32).range(1..))]
    cycles: u32,
    /// Busy vCPUs meanwhile; several numbers for several comparisons.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [0, 1])]
    vcpus: Vec<usize>,
    /// What keeps the vCPUs busy.
    #[arg(long, value_enum, default_value_t = Busy::Fault)]
    busy: Busy,
    /// Ways to compare [default: all].
    #[arg(long, value_enum, value_name = "A,B", value_delimiter = ',')]
    way: Vec<Way>,
    /// Runs that are measured; the median counts.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct BenchArgs {
    /// Scenarios to run [default: all that stand for something a VMM does].
    #[arg(value_enum)]
    scenario: Vec<Workload>,
    /// Size of each scenario; several numbers for several comparisons [default:
    /// each one's own; with --html also a tenth and a hundredth of it].
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=Workload::MOST_REGIONS as i64))]
    regions: Vec<u32>,
    /// Strategies to compare [default: per-region,shim, and batch where the
    /// kernel has it].
    #[arg(long, value_enum, value_name = "A,B", value_delimiter = ',')]
    strategy: Vec<Strategy>,
    /// Busy vCPUs meanwhile; several numbers for several comparisons
    /// [default: 0,1].
    #[arg(long, value_name = "N", value_delimiter = ',')]
    vcpus: Vec<usize>,
    /// What keeps the vCPUs busy.
    #[arg(long, value_enum, default_value_t = Busy::Fault)]
    busy: Busy,
    /// Leave the thread that makes the calls to the scheduler, as a VMM does,
    /// instead of keeping it on one CPU: slower and noisier grace periods.
    #[arg(long)]
    no_pin: bool,
    /// Runs that are measured; the median counts.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Who carries the changes out [default: kvm, or the model of it where
    /// there is no /dev/kvm].
    #[arg(long, value_enum)]
    executor: Option<Target>,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
    /// Also draw the times into this SVG file.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    page: PageArgs,
}

/// Runs the command line tool on the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        None => bench(&cli.bench),
        Some(Command::Bench(BenchCommand { special: Some(Special::Devices(args)), .. })) => {
            devices(&args)
        }
        Some(Command::Bench(BenchCommand { special: Some(Special::Start(args)), .. })) => {
            start(&args)
        }
        Some(Command::Bench(BenchCommand { special: Some(Special::Window(args)), .. })) => {
            windows(&args)
        }
        Some(Command::Bench(BenchCommand { special: None, scenarios })) => bench(&scenarios),
        Some(Command::Density(args)) => density(&args),
        Some(Command::DensityWorker { irqfds, no_irqbypass }) => {
            return density::worker(irqfds, density::Flag(no_irqbypass));
        }
        Some(Command::StartWorker(args)) => return start::worker(args),
        Some(Command::Flash(args)) => flash(&args),
        Some(Command::Import(args)) => traces::import(&args),
        Some(Command::Replay(args)) => traces::replay(&args),
        Some(Command::Doctor(args)) => {
            doctor::doctor(args, &mut io::stdout().lock()).map_err(Failure::from)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has seen enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("memslots: {failure}");
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
    #[error(transparent)]
    Run(#[from] crate::rig::RunError),
    #[error(transparent)]
    Flash(#[from] flash::DriveError),
    #[error(transparent)]
    Devices(#[from] devices::DevicesError),
    #[error(transparent)]
    Windows(#[from] window::WindowsError),
    #[error(transparent)]
    Density(#[from] density::DensityError),
    #[error(transparent)]
    Start(#[from] start::StartError),
    #[error(transparent)]
    Plot(#[from] report::PlotError),
    #[error(transparent)]
    Trace(#[from] crate::trace::TraceError),
    #[error(transparent)]
    Replay(#[from] crate::replay::ReplayError),
}

fn flash(args: &FlashArgs) -> Result<(), Failure> {
    need_kvm(&args.vcpus)?;
    let progress = spinner("flash");
    let mut counter = counter(Target::Kvm);
    let ways = if args.way.is_empty() { &Way::ALL[..] } else { &args.way };
    let (cycles, runs) = (args.cycles as usize, args.runs as usize);
    let mut rows = Vec::new();
    for count in &args.vcpus {
        let vcpus = Vcpus { count: *count, busy: args.busy };
        rows.extend(compare(ways, cycles, vcpus, runs, counter.as_mut())??);
    }
    drop(progress);
    if args.json {
        report::json(&rows, io::stdout().lock())?;
    } else {
        flash::table(&rows, io::stdout().lock())?;
    }
    Ok(())
}

fn bench(args: &BenchArgs) -> Result<(), Failure> {
    let bench = args.bench()?;
    if bench.target == Target::Kvm {
        need_kvm(&bench.vcpus)?;
    }
    let plot = args.plot.as_deref().map(OutputFile::open).transpose()?;
    let page = args.page.prepare()?;
    let mut counter = counter(bench.target);
    let bar = progress(bench.length());
    let mut rows: Vec<Row> = Vec::new();
    let mut written = Ok(());
    let on_run = |workload: Workload, strategy: Strategy, vcpus: usize| {
        bar.set_message(format!("{workload}, {strategy}, {vcpus} vCPUs"));
        bar.inc(1);
    };
    let on_rows = |new: Vec<Row>| {
        if args.json && written.is_ok() {
            written = bar.suspend(|| report::json(&new, io::stdout().lock()));
        }
        rows.extend(new);
    };
    let ran = bench.run(counter.as_mut(), on_run, on_rows);
    bar.finish_and_clear();
    if !args.json {
        writeln!(io::stdout().lock(), "{}", report::table(&rows))?;
    }
    ran?;
    written?;
    if let Some(file) = plot {
        let svg = report::plot(&rows)?;
        file.write(|out| out.write_all(svg.as_bytes()))?;
    }
    page.finish(&rows, bench.target == Target::Model, args.json)
}

/// Shows rows as `measure` has them: JSON as they come, else one table of all, if
/// `table` makes one; also what there is before `measure` fails.
fn shown<R: Serialize, T: Display, E: Into<Failure>>(
    json: bool,
    progress: Spinner,
    measure: impl FnOnce(&mut dyn FnMut(Vec<R>)) -> Result<(), E>,
    table: impl FnOnce(&[R]) -> Option<T>,
) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let mut written = Ok(());
    let measured = measure(&mut |new| {
        if json && written.is_ok() {
            written = progress.suspend(|| report::json(&new, io::stdout().lock()));
        }
        rows.extend(new);
    });
    drop(progress);
    if let Some(table) = (!json).then(|| table(&rows)).flatten() {
        writeln!(io::stdout().lock(), "{table}")?;
    }
    measured.map_err(Into::into)?;
    Ok(written?)
}

fn devices(args: &Devices) -> Result<(), Failure> {
    need_kvm(&args.vcpus)?;
    let table = if args.hotplug.is_some() { devices::hotplug_table } else { devices::table };
    let measure = |on_rows: &mut dyn FnMut(_)| devices::devices(args, on_rows);
    shown(args.json, spinner("devices"), measure, |rows| Some(table(rows)))
}

fn start(args: &Start) -> Result<(), Failure> {
    need_kvm(&[])?;
    let measure = |on_rows: &mut dyn FnMut(_)| start::start(args, on_rows);
    let table = |rows: &[_]| (!rows.is_empty()).then(|| start::table(rows));
    shown(args.json, spinner("start"), measure, table)
}

fn windows(args: &Windows) -> Result<(), Failure> {
    need_kvm(&[])?;
    let mut counter = counter(Target::Kvm);
    let measure = |on_rows: &mut dyn FnMut(_)| window::windows(args, counter.as_mut(), on_rows);
    shown(args.json, spinner("window"), measure, |rows| Some(window::table(rows)))
}

fn density(args: &Density) -> Result<(), Failure> {
    need_kvm(&[])?;
    let measure = |on_rows: &mut dyn FnMut(_)| density::density(args, |row| on_rows(vec![row]));
    shown(args.json, spinner("density"), measure, |rows| Some(density::table(rows)))
}

impl BenchArgs {
    fn bench(&self) -> Result<Bench, Failure> {
        let target = self.target()?;
        let or = |given: &[Workload], all: &[Workload]| {
            if given.is_empty() { all.to_vec() } else { given.to_vec() }
        };
        Ok(Bench {
            workloads: or(&self.scenario, &Workload::USUAL),
            sizes: match &self.regions[..] {
                [] if self.page.has_page() => Sizes::Swept,
                [] => Sizes::Default,
                given => Sizes::Given(given.iter().map(|size| *size as usize).collect()),
            },
            strategies: self.strategies(target)?,
            vcpus: match (&self.vcpus[..], target) {
                ([], Target::Kvm) => vec![0, 1],
                ([], Target::Model) => vec![0],
                (given, _) => given.to_vec(),
            },
            busy: self.busy,
            pin: !self.no_pin,
            runs: self.runs as usize,
            target,
        })
    }

    fn target(&self) -> Result<Target, Failure> {
        match (self.executor, open_kvm()) {
            (Some(Target::Kvm), Err(why)) => {
                Err(Failure::Usage(format!("this needs KVM: {why}; --executor model needs none")))
            }
            (None, Err(why)) => {
                eprintln!("memslots: {why}; running on the model of KVM, where no time is real");
                Ok(Target::Model)
            }
            (Some(Target::Model), _) => Ok(Target::Model),
            (_, Ok(_)) => Ok(Target::Kvm),
        }
    }

    fn strategies(&self, target: Target) -> Result<Vec<Strategy>, Failure> {
        let has_batch = target.limits()?.batch.is_some();
        let mut strategies = self.strategy.clone();
        if strategies.is_empty() {
            strategies = Strategy::USUAL.to_vec();
            strategies.retain(|strategy| has_batch || !strategy.needs_batch());
            // What that scenario is there to show.
            strategies.extend(self.scenario.contains(&Workload::Pci).then_some(Strategy::Deferred));
        } else if let (Some(strategy), false) =
            (strategies.iter().find(|strategy| strategy.needs_batch()), has_batch)
        {
            eprintln!(
                "memslots: this kernel has no KVM_SET_USER_MEMORY_REGIONS, so {strategy} is \
                 skipped; --executor model shows what it would save"
            );
        }
        strategies.sort_unstable();
        strategies.dedup();
        Ok(strategies)
    }
}

/// Grace periods are counted by the kernel where it lets us; if not, that is
/// worth a word, but no failure.
fn counter(target: Target) -> Option<GraceCounter> {
    if target == Target::Model {
        return None;
    }
    GraceCounter::calibrated(new_vm)
        .inspect_err(|why| eprintln!("memslots: {why}; grace periods are those of the plan"))
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
