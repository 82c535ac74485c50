//! `cargo xtask results`: what is measured on this machine, in files.

use std::fmt::Write as _;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::builder::PossibleValuesParser;

use crate::run;
use crate::workspace::{cargo, root, target};

/// What to measure. Nothing else should run meanwhile.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// These only
    #[arg(value_name = "NAME", value_parser = PossibleValuesParser::new(names()))]
    names: Vec<String>,
}

/// A file's name, what it shows, and the arguments of `memslots`.
type Measured = (&'static str, &'static str, &'static [&'static str]);

const MEASURED: [Measured; 19] = [
    ("scenarios", "Memory of VMMs, call by call and in sets", &[]),
    ("devices", "Devices attached and detached", &["bench", "devices"]),
    (
        "devices-scattered",
        "Devices whose BARs can't share a slot",
        &["bench", "devices", "--scattered"],
    ),
    (
        "devices-profile",
        "Devices whose BARs can't share a slot: where the time goes",
        &["bench", "devices", "--scattered", "--profile"],
    ),
    ("devices-hotplug", "One device after another", &["bench", "devices", "--hotplug", "0,2,5,20"]),
    ("devices-churn", "Vectors masked and changed", &["bench", "devices", "--churn", "2048"]),
    (
        "devices-churn-profile",
        "Vectors masked and changed: where the time goes",
        &["bench", "devices", "--churn", "2048", "--profile", "--runs", "15"],
    ),
    (
        "devices-decode",
        "BARs with doorbells that go on, off and move",
        &["bench", "devices", "--decode"],
    ),
    ("start", "Whole VMs set up, one and many at once", &["bench", "start"]),
    (
        "start-profile",
        "Whole VMs set up: where the time goes",
        &["bench", "start", "--profile", "--at-once", "1,50"],
    ),
    ("window", "Blobs that come and go beside vCPUs that fault", &["bench", "window"]),
    (
        "window-spin",
        "Blobs that come and go beside vCPUs that spin",
        &["bench", "window", "--busy", "spin", "--sleep", "0"],
    ),
    (
        "window-profile",
        "Blobs that come and go: what of the time is the kernel's",
        &["bench", "window", "--busy", "spin", "--sleep", "0", "--sizes", "64", "--runs", "15"],
    ),
    ("pci", "A guest that enables PCI functions by config writes", &["bench", "pci"]),
    (
        "pci-doorbells",
        "The same, where each function has 4 ioeventfds",
        &["bench", "pci-doorbells", "--vcpus", "0"],
    ),
    ("flash", "A guest that programs flash", &["flash"]),
    ("replay", "The calls of a QEMU that boots UEFI", &["replay", UEFI]),
    (
        "replay-singly",
        "The same, each call a set of its own, with the library and without",
        &["replay", UEFI, "--singly", "--runs", "15", "--strategy", "per-region,shim"],
    ),
    ("doctor", "What the machine offers", &["doctor"]),
];

/// What the library takes by itself: no command of `memslots`, but a benchmark.
const OWN: Measured = (
    "own",
    "What the library takes by itself, beside KVM where it has the same",
    &["bench", "--quiet", "--package", "kvm-memslots-bench", "--bench", "own"],
);

fn names() -> impl Iterator<Item = &'static str> {
    MEASURED.iter().chain([&OWN]).map(|measured| measured.0)
}

/// Calls of a real VMM.
const UEFI: &str = "benches/tests/data/traces/qemu-7.2-aarch64-uefi-boot.trace.gz";

/// Where the files are.
const DIR: &str = "benches/results";

pub(crate) fn run(args: &Args) -> ExitCode {
    match measure(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<()> {
    let wanted = |(name, ..): &&Measured| {
        args.names.is_empty() || args.names.iter().any(|wanted| wanted == name)
    };
    let measured: Vec<_> = MEASURED.iter().chain([&OWN]).filter(wanted).collect();
    if measured.iter().any(|(name, ..)| *name != OWN.0) {
        let build = ["build", "--release", "--package", "kvm-memslots-bench", "--bin", "memslots"];
        let built = cargo().args(build).status().context("can't run cargo build")?;
        if !built.success() {
            bail!("cargo build ended with {built}");
        }
    }
    let dir = root().join(DIR);
    std::fs::create_dir_all(&dir).with_context(|| format!("can't make {DIR}"))?;
    let stamp = stamp()?;
    for (name, what, args) in measured {
        let memslots = || Command::new(target().join("release/memslots"));
        let mut command = if *name == OWN.0 { cargo() } else { memslots() };
        command.args(*args).current_dir(root()).stdin(Stdio::null()).stderr(Stdio::inherit());
        run::say(&format!("$ {}", run::shown(&command)));
        let output = command.output().context("can't run it")?;
        if !output.status.success() {
            bail!("{} ended with {}", run::shown(&command), output.status);
        }
        let table = String::from_utf8(output.stdout).context("what memslots printed")?;
        let page = page(what, &run::shown(&command), &stamp, &table);
        let path = dir.join(format!("{name}.md"));
        std::fs::write(&path, page).with_context(|| format!("can't write {}", path.display()))?;
        run::say(&format!("{DIR}/{name}.md"));
    }
    Ok(())
}

/// What every file says of where and when.
fn stamp() -> Result<Vec<(&'static str, String)>> {
    let said = |program: &str, args: &[&str]| -> Result<String> {
        let output = Command::new(program)
            .args(args)
            .current_dir(root())
            .output()
            .with_context(|| format!("can't run {program}"))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = memory.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    let nested = cpus.lines().any(|line| line.starts_with("flags") && line.contains(" hypervisor"));
    let guest = if nested { ", a guest itself" } else { "" };
    Ok(vec![
        (
            "machine",
            format!(
                "{}, {count} CPUs, {} GiB{guest}",
                model.unwrap_or("unknown processor"),
                kilobytes.unwrap_or(0) >> 20
            ),
        ),
        ("kernel", said("uname", &["-srm"])?),
        ("date", said("date", &["-u", "+%F"])?),
        ("commit", said("git", &["rev-parse", "--short=12", "HEAD"])?),
    ])
}

fn page(what: &str, command: &str, stamp: &[(&str, String)], table: &str) -> String {
    let mut page = format!("# {what}\n\n| | |\n| --- | --- |\n| command | `{command}` |\n");
    for (name, value) in stamp {
        let _ = writeln!(page, "| {name} | {value} |");
    }
    let _ = write!(page, "\n```text\n{}\n```\n", table.trim_end());
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_where_its_table_is_from() {
        let page = page("Speed", "memslots", &[("kernel", "Linux".to_owned())], "| a |\n");
        let expected = "# Speed\n\n| | |\n| --- | --- |\n| command | `memslots` |\n| kernel | Linux |\n\n```text\n| a |\n```\n";
        assert_eq!(page, expected);
    }

    #[test]
    fn the_names_are_those_of_the_files() {
        let names: Vec<_> = names().collect();
        assert!(names.contains(&"own") && names.contains(&"scenarios"));
        assert_eq!(names.iter().collect::<std::collections::HashSet<_>>().len(), names.len());
    }

    #[test]
    fn the_trace_is_there() {
        assert!(root().join(UEFI).exists());
    }
}
