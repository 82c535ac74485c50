//! What the commands of the lab take.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args as ClapArgs, Subcommand};

use super::target::Target;
use super::{patch, source, target};

/// What to do, with which kernel.
#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(super) stage: Stage,
}

#[derive(Subcommand)]
pub(super) enum Stage {
    /// Unpack the kernel's source and apply the series of `kernel/patches`
    Fetch(Target),
    /// Build the kernel
    Build(Target),
    /// Check the series as its maintainers would: checkpatch, each patch built on
    /// those before it, warnings, sparse
    Check(Check),
    /// Boot the kernel in QEMU, run a program in it, end with its status
    Boot(Boot),
    /// Run the kernel's selftests and the workspace's tests in guests
    Test(Test),
    /// Measure what the series change in guests
    Bench(Bench),
    /// Run any command of `memslots` in a guest, e.g. `memslots -- density`
    Memslots(Memslots),
    /// Run the litmus tests of `kernel/litmus`, and the kernel's own, against the
    /// kernel's memory model
    Litmus(Chosen),
    /// Boot real UEFI in a real QEMU in an arm64 guest, as it is and with the
    /// preload library, and compare
    Uefi(Uefi),
}

/// What of it to do, and where what was found goes.
#[derive(ClapArgs)]
pub(super) struct Chosen {
    /// Write what was found to `kernel/results`
    #[arg(long)]
    pub(super) record: bool,
    /// Tests, rows or patches that have this in their names only [default: all]
    #[arg(value_name = "PART")]
    pub(super) filters: Vec<String>,
}

#[derive(ClapArgs)]
pub(super) struct Boot {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    pub(super) qemu: Qemu,
    /// Also copy this static program or script to /bin
    #[arg(long = "with", value_name = "FILE")]
    pub(super) with: Vec<PathBuf>,
    /// A static program of this machine, by a path with a `/` in it, which is
    /// copied to /bin, or a command of the guest (busybox); its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(super) command: Vec<String>,
}

#[derive(ClapArgs)]
pub(super) struct Test {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    pub(super) chosen: Chosen,
    #[command(flatten)]
    pub(super) qemu: Qemu,
}

#[derive(ClapArgs)]
pub(super) struct Check {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    pub(super) chosen: Chosen,
}

#[derive(ClapArgs)]
pub(super) struct Memslots {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    pub(super) qemu: Qemu,
    /// Arguments for `memslots`
    #[arg(last = true, required = true, value_name = "ARGS")]
    pub(super) args: Vec<String>,
}

#[derive(ClapArgs)]
pub(super) struct Bench {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    pub(super) chosen: Chosen,
    #[command(flatten)]
    pub(super) qemu: Qemu,
    /// Runs of each row that are measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) runs: u32,
    /// Arguments for `memslots bench`: run that instead of the table
    #[arg(last = true, value_name = "ARGS")]
    pub(super) args: Vec<String>,
}

#[derive(ClapArgs)]
pub(super) struct Uefi {
    /// Version of the kernel, or `newest`
    #[arg(long, value_name = "VERSION", default_value = "6.12")]
    pub(super) linux: String,
    /// Each expedited grace period lasts 16 ms
    #[arg(long)]
    pub(super) slow_gp: bool,
    /// Boots of each way; medians count
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) runs: u32,
    /// JSON instead of the table, as the last line
    #[arg(long, conflicts_with = "record")]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) qemu: Qemu,
    #[command(flatten)]
    pub(super) chosen: Chosen,
}

/// How to boot.
#[derive(ClapArgs, Clone)]
pub(super) struct Qemu {
    /// Set in the environment of what runs in the guest
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(super) env: Vec<(String, String)>,
    /// Add to the kernel's command line, e.g. `kvm_amd.npt=0`
    #[arg(long, value_name = "PARAMETERS", default_value = "")]
    pub(super) append: String,
    /// After how many seconds a guest that has not ended hangs
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pub(super) timeout: u64,
    /// Memory of the guest, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 3072)]
    pub(super) memory: u32,
    /// One processor, and a clock that gains 1 ns with each instruction: times
    /// are numbers of instructions, however busy this machine is
    #[arg(long)]
    pub(super) icount: bool,
    /// How the guest's processors run on this machine's [default: turns for
    /// tests of the series and of this workspace on x86, else parallel]
    #[arg(long, value_enum)]
    pub(super) processors: Option<Processors>,
}

/// How a guest's processors run.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub(super) enum Processors {
    /// Each whenever it can
    Parallel,
    /// On one of this machine's in turn: what they do is interleaved, but two
    /// instructions are never emulated at once
    Turns,
}

/// The kernel that is asked for: `newest` has a version, and `KSRC` counts.
pub(super) fn found(asked: &Target) -> Result<Target> {
    let ksrc = std::env::var_os("KSRC").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let version = match asked.version.as_str() {
        // Of a tree that is there, nobody has to be asked for the version.
        "newest" if ksrc.is_some() => patch::versions()?.pop().context("there is no series")?,
        "newest" if asked.vanilla => source::newest(None)?,
        "newest" => source::newest(Some(&patch::versions()?))?,
        version => version.to_owned(),
    };
    if !target::is_version(&version) {
        bail!("--linux {version}: a version such as 6.12, or newest");
    }
    Ok(Target { version, ksrc, ..asked.clone() })
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
    pub(super) fn timeout(&self) -> Duration {
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
