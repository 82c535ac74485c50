//! `cargo xtask kernel`: kernels with the series of `kernel/patches`, fetched,
//! built, and booted in QEMU with nested KVM, to run programs in.

mod args;
mod bench;
mod boot;
mod build;
mod check;
mod config;
mod console;
mod cross;
mod elf;
mod initrd;
mod litmus;
mod lock;
mod logged;
mod make;
mod patch;
mod places;
mod programs;
mod record;
mod room;
mod selftests;
mod series;
mod source;
mod target;
mod test;
mod tools;
mod uefi;
pub(crate) mod vmm;

use std::process::ExitCode;

use anyhow::Result;

use crate::log::Outcome;
use crate::run;
use crate::tally::Tally;
pub(crate) use args::Args;
use args::{Bench, Boot, Check, Litmus, Memslots, Processors, Qemu, Stage, Test, Uefi, Which};
use boot::Guest;
use build::Kernel;
use initrd::{Command, Program};
use target::{Arch, Target};

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
        Stage::Litmus(args) => litmus::run(&vanilla(litmus::LINUX), args),
        Stage::Uefi(args) => uefi(args),
    };
    done.unwrap_or_else(|e| {
        eprintln!("xtask kernel: {e:#}");
        ExitCode::FAILURE
    })
}

fn fetch(which: &Which) -> Result<ExitCode> {
    let target = which.target()?;
    let _lock = lock::wait(&target.tree())?;
    patch::apply(&target)?;
    run::say(&format!("source: {}", patch::source(&target)?.display()));
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

/// A kernel of x86 without any series.
fn vanilla(version: &str) -> Target {
    Target {
        version: version.to_owned(),
        arch: Arch::X86_64,
        debug: false,
        vanilla: true,
        series: None,
        slow_gp: false,
        ksrc: None,
    }
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
    let target = Target { vanilla: false, ..vanilla("6.12") };
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
