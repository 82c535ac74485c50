//! `cargo xtask kernel`: kernels with the series of `kernel/patches`, fetched,
//! built, and booted in QEMU with nested KVM, to run programs in.

mod bench;
mod boot;
mod build;
mod check;
mod config;
mod console;
mod cross;
mod elf;
mod initrd;
mod logged;
mod make;
mod patch;
mod places;
mod programs;
mod record;
mod selftests;
mod series;
mod source;
mod target;
mod test;
mod tools;
mod uefi;
pub(crate) mod vmm;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args as ClapArgs, Subcommand};

use crate::run;
use crate::test::Outcome;
use crate::test::tally::Tally;
use boot::Guest;
use build::Kernel;
use initrd::{Command, Program};
use series::Series;
use target::{Arch, Target};

/// What to do, with which kernel.
#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    stage: Stage,
}

#[derive(Subcommand)]
enum Stage {
    /// Unpack the kernel's source and apply the series of `kernel/patches`
    Fetch(Which),
    /// Build the kernel
    Build(Which),
    /// Check the series as its maintainers would: checkpatch, each patch built,
    /// warnings, sparse
    Check(Check),
    /// Boot the kernel in QEMU, run a program in it, end with its status
    Boot(Boot),
    /// Run the kernel's selftests and the workspace's tests in guests
    Test(Test),
    /// Measure what the series change in guests
    Bench(Bench),
    /// Run any command of `memslots` in a guest, e.g. `memslots -- density`
    Memslots(Memslots),
    /// Boot real UEFI in a real QEMU in an arm64 guest, as it is and with the
    /// preload library, and compare
    Uefi(Uefi),
}

/// Which kernel. `KSRC=DIR` in the environment builds that tree as it is.
#[derive(ClapArgs, Clone)]
struct Which {
    /// Version of the kernel, `newest` for the newest that Debian has, of those
    /// with series, or of all with --vanilla
    #[arg(long, value_name = "VERSION", default_value = "6.12")]
    linux: String,
    /// Architecture of the guest
    #[arg(long, value_enum, default_value_t = Arch::X86_64)]
    arch: Arch,
    /// With KASAN, lockdep, object debugging and fault injection
    #[arg(long)]
    debug: bool,
    /// Without any series
    #[arg(long)]
    vanilla: bool,
    /// With one series, and those that it stands on, only [default: all]
    #[arg(long, value_enum, value_name = "NAME", conflicts_with = "vanilla")]
    series: Option<Series>,
    /// With a patch of the lab's: `srcutree.lab_expedited_ms=MS` on the
    /// kernel's command line makes each expedited grace period last that long
    #[arg(long)]
    slow_gp: bool,
}

#[derive(ClapArgs)]
struct Boot {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    qemu: Qemu,
    /// Also copy this static program or script to /bin
    #[arg(long = "with", value_name = "FILE")]
    with: Vec<PathBuf>,
    /// A static program of this machine, by a path with a `/` in it, which is
    /// copied to /bin, or a command of the guest (busybox); its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(ClapArgs)]
struct Test {
    #[command(flatten)]
    which: Which,
    /// Write what was found to `kernel/results`
    #[arg(long)]
    record: bool,
    #[command(flatten)]
    qemu: Qemu,
    /// Run the tests that have this in their names only [default: all]
    #[arg(value_name = "PART")]
    filters: Vec<String>,
}

#[derive(ClapArgs)]
struct Check {
    #[command(flatten)]
    which: Which,
    /// Write what was found to `kernel/results`
    #[arg(long)]
    record: bool,
    /// Check the patches that have this in their names only, each on top of
    /// those before it, e.g. `0017` [default: all]
    #[arg(value_name = "PATCH")]
    filters: Vec<String>,
}

#[derive(ClapArgs)]
struct Memslots {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    qemu: Qemu,
    /// Arguments for `memslots`
    #[arg(last = true, required = true, value_name = "ARGS")]
    args: Vec<String>,
}

#[derive(ClapArgs)]
struct Bench {
    #[command(flatten)]
    which: Which,
    /// Write what was found to `kernel/results`
    #[arg(long)]
    record: bool,
    #[command(flatten)]
    qemu: Qemu,
    /// Runs of each row that are measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Rows of the table that have this in their names only [default: all]
    #[arg(value_name = "PART")]
    filters: Vec<String>,
    /// Arguments for `memslots bench`: run that instead of the table
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<String>,
}

#[derive(ClapArgs)]
struct Uefi {
    /// Version of the kernel, or `newest`
    #[arg(long, value_name = "VERSION", default_value = "6.12")]
    linux: String,
    /// Each expedited grace period lasts 16 ms
    #[arg(long)]
    slow_gp: bool,
    /// Boots of each way; medians count
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// JSON instead of the table, as the last line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    qemu: Qemu,
    /// Ways that have this in their names only [default: all]
    #[arg(value_name = "PART")]
    filters: Vec<String>,
}

/// How to boot.
#[derive(ClapArgs, Clone)]
struct Qemu {
    /// Set in the environment of what runs in the guest
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Add to the kernel's command line, e.g. `kvm_amd.npt=0`
    #[arg(long, value_name = "PARAMETERS", default_value = "")]
    append: String,
    /// After how many seconds a guest that has not ended hangs
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    timeout: u64,
    /// Memory of the guest, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 3072)]
    memory: u32,
    /// One processor, and a clock that gains 1 ns with each instruction: times
    /// are numbers of instructions, however busy this machine is
    #[arg(long)]
    icount: bool,
    /// How the guest's processors run on this machine's [default: turns for
    /// tests of the series and of this workspace on x86, else parallel]
    #[arg(long, value_enum)]
    processors: Option<Processors>,
}

/// How a guest's processors run.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Processors {
    /// Each whenever it can
    Parallel,
    /// On one of this machine's in turn: what they do is interleaved, but two
    /// instructions are never emulated at once
    Turns,
}

/// Does what `args` say.
pub(crate) fn run(args: &Args) -> ExitCode {
    let done = match &args.stage {
        Stage::Fetch(which) => fetch(which),
        Stage::Build(which) => build(which),
        Stage::Check(args) => args.which.target().and_then(|target| check::run(&target, args)),
        Stage::Boot(args) => boot(args),
        Stage::Test(args) => test(args),
        Stage::Bench(args) => bench(args),
        Stage::Memslots(args) => memslots(args),
        Stage::Uefi(args) => uefi(args),
    };
    done.unwrap_or_else(|e| {
        eprintln!("xtask kernel: {e:#}");
        ExitCode::FAILURE
    })
}

fn fetch(which: &Which) -> Result<ExitCode> {
    let source = patch::patched(&which.target()?)?;
    run::say(&format!("source: {}", source.display()));
    Ok(ExitCode::SUCCESS)
}

fn build(which: &Which) -> Result<ExitCode> {
    let kernel = build::kernel(&which.target()?)?;
    run::say(&format!("kernel: {}", kernel.image.display()));
    Ok(ExitCode::SUCCESS)
}

/// Ends with the command's status.
fn boot(args: &Boot) -> Result<ExitCode> {
    let target = args.which.target()?;
    let mut programs = Vec::new();
    for path in &args.with {
        programs.push(Program::of(path, target.arch)?);
    }
    let mut words = args.command.clone();
    if let Some(first) = words.first_mut().filter(|first| first.contains('/')) {
        let program = Program::of(first.as_ref(), target.arch)?;
        *first = format!("/bin/{}", program.name);
        programs.push(program);
    }
    let (_, guest) = guest(&target, &args.qemu)?;
    let command = Command { words, env: args.qemu.env.clone() };
    guest.show("boot", command, &programs)
}

fn test(args: &Test) -> Result<ExitCode> {
    let target = args.which.target()?;
    let (kernel, guest) = guest(&target, &args.qemu)?;
    test::run(&target, &kernel, &guest, args)
}

fn bench(args: &Bench) -> Result<ExitCode> {
    let target = args.which.target()?;
    if args.args.is_empty() {
        return bench::table(&target, args);
    }
    let (_, guest) = guest(&target, &args.qemu)?;
    let words = [&["bench".to_owned()], &args.args[..]].concat();
    bench::run(&target, &guest, &words, &args.qemu)
}

fn memslots(args: &Memslots) -> Result<ExitCode> {
    let target = args.which.target()?;
    let (_, guest) = guest(&target, &args.qemu)?;
    bench::run(&target, &guest, &args.args, &args.qemu)
}

fn uefi(args: &Uefi) -> Result<ExitCode> {
    let which = Which {
        linux: args.linux.clone(),
        arch: Arch::Arm64,
        debug: false,
        vanilla: false,
        series: None,
        slow_gp: args.slow_gp,
    };
    uefi::run(&which.target()?, args)
}

/// What every run of all checks includes: the oldest kernel that has a series,
/// on x86.
pub(crate) fn check(tally: &mut Tally) -> Result<Outcome> {
    let target = Target {
        version: "6.12".to_owned(),
        arch: Arch::X86_64,
        debug: false,
        vanilla: false,
        series: None,
        slow_gp: false,
        ksrc: None,
    };
    if let Some(why) = tools::out_of_reach(target.arch) {
        return Ok(Outcome::Skipped(why));
    }
    let qemu = Qemu {
        env: Vec::new(),
        append: String::new(),
        timeout: 900,
        memory: 3072,
        icount: false,
        processors: None,
    };
    let (kernel, guest) = guest(&target, &qemu)?;
    test::run_counted(&target, &kernel, &guest, tally)?;
    Ok(Outcome::Done)
}

/// The kernel of `target`, built and ready to be booted.
fn guest(target: &Target, qemu: &Qemu) -> Result<(Kernel, Guest)> {
    // What can't be booted need not be built.
    boot::available(target)?;
    let kernel = build::kernel(target)?;
    let guest = Guest::new(target, &kernel, qemu.clone())?;
    Ok((kernel, guest))
}

impl Which {
    /// What is to be built.
    fn target(&self) -> Result<Target> {
        let ksrc = std::env::var_os("KSRC").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let version = match self.linux.as_str() {
            // Of a tree that is there, nobody has to be asked for the version.
            "newest" if ksrc.is_some() => patch::versions()?.pop().context("there is no series")?,
            "newest" if self.vanilla => source::newest(None)?,
            "newest" => source::newest(Some(&patch::versions()?))?,
            version => version.to_owned(),
        };
        if !target::is_version(&version) {
            bail!("--linux {version}: a version such as 6.12, or newest");
        }
        Ok(Target {
            version,
            arch: self.arch,
            debug: self.debug,
            vanilla: self.vanilla,
            series: self.series,
            slow_gp: self.slow_gp,
            ksrc,
        })
    }
}

/// `NAME=VALUE`, with a name that a shell can export.
fn variable(arg: &str) -> Result<(String, String), String> {
    let (name, value) = arg.split_once('=').ok_or("no = in it")?;
    let fits = |c: char| c == '_' || c.is_ascii_alphanumeric();
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(fits)
    {
        return Err(format!("{name:?} is no name of a variable"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

impl Qemu {
    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables() {
        assert_eq!(variable("A_1=b=c"), Ok(("A_1".to_owned(), "b=c".to_owned())));
        for bad in ["A", "=b", "1A=b", "A B=c", "$(x)=c"] {
            assert!(variable(bad).is_err(), "{bad}");
        }
    }
}
