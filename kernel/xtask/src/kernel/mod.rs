//! `cargo xtask kernel`: kernels with the series of `kernel/patches`, fetched,
//! built, and booted in QEMU with nested KVM, to run programs in.

mod boot;
mod build;
mod config;
mod console;
mod elf;
mod initrd;
mod logged;
mod patch;
mod source;
mod target;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args as ClapArgs, Subcommand};

use crate::run;
use boot::Guest;
use initrd::{Command, Program};
use target::{Arch, Target};

/// What to do, with which kernel.
#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    stage: Stage,
}

#[derive(Subcommand)]
enum Stage {
    /// Unpack the kernel's source and apply the series
    Fetch(Which),
    /// Build the kernel
    Build(Which),
    /// Boot the kernel in QEMU, run a program in it, end with its status
    Boot(Boot),
}

/// Which kernel. `KSRC=DIR` in the environment builds that tree as it is.
#[derive(ClapArgs, Clone)]
struct Which {
    /// Version of the kernel, `newest` for the newest that the archive has
    #[arg(long, value_name = "VERSION", default_value = "6.12")]
    linux: String,
    /// Architecture of the guest
    #[arg(long, value_enum, default_value_t = Arch::X86_64)]
    arch: Arch,
    /// With KASAN, lockdep, object debugging and fault injection
    #[arg(long)]
    debug: bool,
    /// Without the series
    #[arg(long)]
    vanilla: bool,
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

/// How to boot.
#[derive(ClapArgs, Clone)]
struct Qemu {
    /// Add to the kernel's command line, e.g. `kvm_amd.npt=0`
    #[arg(long, value_name = "PARAMETERS", default_value = "")]
    append: String,
    /// After how many seconds a guest that has not ended hangs
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    timeout: u64,
    /// Memory of the guest, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 3072)]
    memory: u32,
}

/// Does what `args` say.
pub(crate) fn run(args: &Args) -> ExitCode {
    let done = match &args.stage {
        Stage::Fetch(which) => fetch(which),
        Stage::Build(which) => build(which),
        Stage::Boot(args) => boot(args),
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
    let kernel = build::kernel(&target)?;
    let guest = Guest::new(&target, &kernel, args.qemu.clone())?;
    let ended = guest.run(&programs, &Command { words, env: Vec::new() }, run::say)?;
    run::say(&format!("exit status {} after {:.1} s", ended.status, ended.took.as_secs_f64()));
    Ok(u8::try_from(ended.status).map_or(ExitCode::FAILURE, ExitCode::from))
}

impl Which {
    /// What is to be built.
    fn target(&self) -> Result<Target> {
        let version = match self.linux.as_str() {
            "newest" => source::newest()?,
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
            ksrc: std::env::var_os("KSRC").filter(|dir| !dir.is_empty()).map(PathBuf::from),
        })
    }
}

impl Qemu {
    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}
