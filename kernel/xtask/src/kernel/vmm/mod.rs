//! `cargo xtask vmm`: VMMs from the registries, as they are and with their KVM
//! backend on this workspace's library, run and compared.

mod counts;
mod guest;
mod host;
mod lab;
mod source;
mod table;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args as ClapArgs, ValueEnum};

use super::Qemu;
use crate::run;
use table::Measured;

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
    #[command(flatten)]
    qemu: Qemu,
}

/// A VMM that is published as a crate.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Vmm {
    /// virtio-pci devices, split irqchip, its own KVM bindings
    Alioth,
}

/// What a VMM makes its changes with.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Way {
    /// Its own calls
    Today,
    /// This workspace's library, by `kernel/vmm/NAME.patch`
    Ours,
}

impl Way {
    const ALL: [Self; 2] = [Self::Today, Self::Ours];

    const fn name(self) -> &'static str {
        match self {
            Self::Today => "today",
            Self::Ours => "ours",
        }
    }
}

/// Where a VMM runs.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Kernel {
    /// This machine's
    Host,
    /// The lab's, without any series
    Lab,
    /// The lab's, with all series
    LabPatched,
}

impl Kernel {
    const ALL: [Self; 3] = [Self::Host, Self::Lab, Self::LabPatched];

    const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Lab => "lab",
            Self::LabPatched => "lab, patched",
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
    let Vmm::Alioth = args.name;
    let ways: Vec<Way> =
        Way::ALL.into_iter().filter(|way| args.way.is_none_or(|only| only == *way)).collect();
    let mut built = Vec::new();
    for way in &ways {
        built.push((*way, source::built(*way)?));
    }
    if args.build_only {
        for (way, path) in &built {
            run::say(&format!("{}: {}", way.name(), super::target::shown(path)));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let guest = guest::unpacked()?;
    let mut measured: Vec<Measured> = Vec::new();
    let mut failed = Vec::new();
    let kernels = Kernel::ALL.into_iter();
    for kernel in kernels.filter(|kernel| args.kernel.is_none_or(|only| only == *kernel)) {
        let done = match kernel {
            Kernel::Host => host::run(&built, &guest),
            Kernel::Lab | Kernel::LabPatched => lab::run(kernel, &built, &guest, &args.qemu),
        };
        match done {
            Ok(rows) => measured.extend(rows),
            Err(e) => failed.push(format!("{}: {e:#}", kernel.name())),
        }
    }
    run::say(&format!("\nalioth {}:\n\n{}", source::VERSION, table::table(&measured)));
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    Ok(ExitCode::SUCCESS)
}
