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
use args::{Bench, Boot, Check, Memslots, Processors, Qemu, Stage, Test, Uefi};
use boot::Guest;
use initrd::{Command, Program};
use target::{Arch, Target};

/// Does what `args` say.
pub(crate) fn run(args: &Args) -> ExitCode {
    let done = match &args.stage {
        Stage::Fetch(asked) => fetch(asked),
        Stage::Build(asked) => build(asked),
        Stage::Check(args) => {
            args::found(&args.target).and_then(|target| check::run(&target, args))
        }
        Stage::Boot(args) => boot(args),
        Stage::Test(args) => test(args),
        Stage::Bench(args) => bench(args),
        Stage::Memslots(args) => memslots(args),
        Stage::Litmus(chosen) => {
            litmus::run(&Target { vanilla: true, ..Target::of(litmus::LINUX) }, chosen)
        }
        Stage::Uefi(args) => uefi(args),
    };
    done.unwrap_or_else(|e| {
        eprintln!("xtask kernel: {e:#}");
        ExitCode::FAILURE
    })
}

fn fetch(asked: &Target) -> Result<ExitCode> {
    let target = args::found(asked)?;
    let _lock = lock::wait(&target.tree())?;
    patch::apply(&target)?;
    run::say(&format!("source: {}", patch::source(&target)?.display()));
    Ok(ExitCode::SUCCESS)
}

fn build(asked: &Target) -> Result<ExitCode> {
    let kernel = build::kernel(&args::found(asked)?)?;
    run::say(&format!("kernel: {}", kernel.image.display()));
    Ok(ExitCode::SUCCESS)
}

/// Ends with the command's status.
fn boot(args: &Boot) -> Result<ExitCode> {
    let target = args::found(&args.target)?;
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
    let (_, guest) = Guest::of(&target, &args.qemu)?;
    let command = Command { words, env: args.qemu.env.clone() };
    guest.show("boot", command, &programs)
}

fn test(args: &Test) -> Result<ExitCode> {
    let target = args::found(&args.target)?;
    let (kernel, guest) = Guest::of(&target, &args.qemu)?;
    test::run(&target, &kernel, &guest, args)
}

fn bench(args: &Bench) -> Result<ExitCode> {
    let target = args::found(&args.target)?;
    if args.args.is_empty() {
        return bench::table(&target, args);
    }
    let (_, guest) = Guest::of(&target, &args.qemu)?;
    let words = [&["bench".to_owned()], &args.args[..]].concat();
    bench::run(&target, &guest, &words, &args.qemu)
}

fn memslots(args: &Memslots) -> Result<ExitCode> {
    let target = args::found(&args.target)?;
    let (_, guest) = Guest::of(&target, &args.qemu)?;
    bench::run(&target, &guest, &args.args, &args.qemu)
}

fn uefi(args: &Uefi) -> Result<ExitCode> {
    let asked = Target { arch: Arch::Arm64, slow_gp: args.slow_gp, ..Target::of(&args.linux) };
    uefi::run(&args::found(&asked)?, args)
}

/// What every run of all checks includes: the oldest kernel that has a series,
/// on x86.
pub(crate) fn check(tally: &mut Tally) -> Result<Outcome> {
    let target = Target::of("6.12");
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
    let (kernel, guest) = Guest::of(&target, &qemu)?;
    test::run_counted(&target, &kernel, &guest, tally)?;
    Ok(Outcome::Done)
}
