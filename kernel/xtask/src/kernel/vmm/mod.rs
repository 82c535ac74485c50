//! `cargo xtask vmm`: VMMs from the registries, as they are and with their KVM
//! backend on this workspace's library, run and compared.

mod counts;
mod crates;
mod guest;
#[cfg(test)]
mod guides;
mod host;
mod lab;
mod qemu;
mod record;
mod said;
mod table;
mod which;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args as ClapArgs, ValueEnum};

use super::Qemu;
use crate::run;
use crates::Spec;
use record::Record;
use table::{Columns, Measured};
use which::{Kernel, Way};

/// Which VMM, how, and where.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// The VMM
    #[arg(value_enum, value_name = "NAME")]
    name: Vmm,
    /// As it is, or with our patch [default: both]
    #[arg(long, value_enum)]
    way: Option<Way>,
    /// On which kernel [default: all]
    #[arg(long, value_enum)]
    kernel: Option<Kernel>,
    /// Stop when they are built
    #[arg(long)]
    build_only: bool,
    /// How often QEMU's guest is reset
    #[arg(long, value_name = "TIMES", default_value_t = RESETS)]
    resets: u32,
    /// Write what was measured to kernel/results
    #[arg(long)]
    record: bool,
    #[command(flatten)]
    qemu: Qemu,
}

const RESETS: u32 = 8;

/// A VMM that the registries have.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Vmm {
    /// virtio-pci devices, split irqchip, its own KVM bindings: a crate
    Alioth,
    /// The control, a layout that never changes: crates
    Libkrun,
    /// Memory listeners, SMM, a framebuffer, migration: Debian's source, in C
    Qemu,
}

impl Vmm {
    const fn name(self) -> &'static str {
        match self {
            Self::Alioth => "alioth",
            Self::Libkrun => "libkrun",
            Self::Qemu => "qemu",
        }
    }

    const fn columns(self) -> &'static Columns {
        match self {
            Self::Alioth | Self::Libkrun => &crates::COLUMNS,
            Self::Qemu => &qemu::COLUMNS,
        }
    }

    /// What is built by cargo, from crates.
    const fn crates(self) -> Option<&'static Spec> {
        match self {
            Self::Alioth => Some(crates::ALIOTH),
            Self::Libkrun => Some(crates::LIBKRUN),
            Self::Qemu => None,
        }
    }

    fn built(self, way: Way) -> Result<PathBuf> {
        self.crates().map_or_else(|| qemu::built(way), |spec| spec.published.built(way))
    }

    fn version(self) -> Result<String> {
        self.crates().map_or_else(qemu::version, |spec| Ok(spec.published.version.to_owned()))
    }

    fn run(self, on: Kernel, built: &[(Way, PathBuf)], args: &Args) -> Result<Vec<Measured>> {
        match self.crates() {
            Some(spec) => spec.run(on, built, &args.qemu),
            None => qemu::run(on, built, &args.qemu, args.resets),
        }
    }
}

/// Does what `args` say.
pub(crate) fn run(args: &Args) -> ExitCode {
    all(args).unwrap_or_else(|e| {
        eprintln!("xtask vmm: {e:#}");
        ExitCode::FAILURE
    })
}

fn all(args: &Args) -> Result<ExitCode> {
    let vmm = args.name;
    let ways: Vec<Way> =
        Way::ALL.into_iter().filter(|way| args.way.is_none_or(|only| only == *way)).collect();
    let mut built = Vec::new();
    for way in &ways {
        built.push((*way, vmm.built(*way)?));
    }
    if args.build_only {
        for (way, path) in &built {
            run::say(&format!("{}: {}", way.name(), super::target::shown(path)));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let options = [
        ("way", args.way.map(|way| way.name().to_owned())),
        ("kernel", args.kernel.map(|kernel| kernel.option().to_owned())),
        ("resets", (args.resets != RESETS).then(|| args.resets.to_string())),
        ("icount", args.qemu.icount.then(String::new)),
    ];
    let record = Record::begin(vmm.name(), &options);
    let mut measured: Vec<Measured> = Vec::new();
    let mut failed = Vec::new();
    let kernels = Kernel::ALL.into_iter();
    for kernel in kernels.filter(|kernel| args.kernel.is_none_or(|only| only == *kernel)) {
        match vmm.run(kernel, &built, args) {
            Ok(rows) => measured.extend(rows),
            Err(e) => failed.push(format!("{}: {e:#}", kernel.name())),
        }
    }
    let version = vmm.version()?;
    let found = table::table(vmm.columns(), &measured);
    run::say(&format!("\n{} {version}:\n\n{found}", vmm.name()));
    failed.extend(measured.iter().filter_map(Measured::failure));
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    if args.record {
        record.write(&version, &found)?;
    }
    Ok(ExitCode::SUCCESS)
}
