//! QEMU: memory listeners, SMM, a framebuffer that is logged, migration.

mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::counts::Kind;
use super::table::{Columns, Measured};
use super::which::{Kernel, Way};
use super::{guest, host, lab, said};
use crate::kernel::Qemu;
use crate::run;

pub(super) use source::{built, version};

const SCRIPT: &str = concat!(include_str!("../count.sh"), include_str!("run.sh"));
const RUNS: [&str; 7] = ["resets", "vga", "virtio", "flash", "migrate", "ring", LINUX];
/// Not run on this machine: PVM gets Linux nowhere.
const LINUX: &str = "linux";
/// Of Debian's firmware, what a run of these loads.
const FIRMWARE: [&str; 4] = [
    "seabios/bios-256k.bin",
    "seabios/vgabios-stdvga.bin",
    "qemu/kvmvapic.bin",
    "qemu/linuxboot_dma.bin",
];

pub(super) const COLUMNS: Columns = Columns {
    run: Some("run"),
    kinds: &[
        ("memslot", Kind::Memslot),
        ("batch", Kind::Batch),
        ("get log", Kind::DirtyLog),
        ("clear log", Kind::ClearDirtyLog),
        ("ioeventfd", Kind::Ioeventfd),
        ("irqfd", Kind::Irqfd),
        ("routes", Kind::Routes),
    ],
    set_up: false,
    times: ["booted", "done"],
};

/// Makes each run with each of `built`.
pub(super) fn run(
    on: Kernel,
    built: &[(Way, PathBuf)],
    qemu: &Qemu,
    resets: u32,
) -> Result<Vec<Measured>> {
    let firmware = source::firmware()?;
    if on == Kernel::Host {
        here(built, &firmware, resets)
    } else {
        in_lab(on, built, &firmware, qemu, resets)
    }
}

/// The name of a run in what the script says.
fn name(way: Way, run: &str) -> String {
    format!("{}-{run}", way.name())
}

fn here(built: &[(Way, PathBuf)], firmware: &Path, resets: u32) -> Result<Vec<Measured>> {
    host::available()?;
    let dir = source::base().join("runs");
    fs::create_dir_all(&dir).with_context(|| format!("{}", dir.display()))?;
    let script = dir.join("run.sh");
    fs::write(&script, SCRIPT).with_context(|| format!("{}", script.display()))?;
    let mut rows = Vec::new();
    for run in RUNS.into_iter().filter(|run| *run != LINUX) {
        for (way, program) in built {
            let dir = dir.join(name(*way, run));
            let trace = dir.join("strace.txt");
            let mut command = Command::new("sh");
            command.arg(&script).args([way.name(), run]).args([program, firmware, &dir]);
            command.env("VMM_STRACE", &trace).env("VMM_RESETS", resets.to_string());
            let mut lines = Vec::new();
            run::say(&format!("running QEMU, {}, {run}", way.name()));
            let status = run::streamed(&mut command, |line| {
                run::say(line);
                lines.push(line.to_owned());
            })?;
            if !status.success() {
                bail!("{}: {status}", run::shown(&command));
            }
            let mut row = Measured::new(*way, Kernel::Host, run);
            said::read(&mut row, &name(*way, run), &lines);
            row.counts = host::traced(&trace)?.counts;
            rows.push(row);
        }
    }
    Ok(rows)
}

fn in_lab(
    on: Kernel,
    built: &[(Way, PathBuf)],
    firmware: &Path,
    qemu: &Qemu,
    resets: u32,
) -> Result<Vec<Measured>> {
    let mut files = vec![lab::script("vmm", SCRIPT)];
    for name in FIRMWARE {
        files.push(lab::file(&format!("firmware/{name}"), &firmware.join(name))?);
    }
    let guest = guest::unpacked()?;
    files.push(lab::file("vmm/kernel", &guest.kernel)?);
    files.push(lab::file("vmm/initrd", &guest.initrd)?);
    let programs: Vec<PathBuf> = built.iter().map(|(_, path)| path.clone()).collect();
    let lines = lab::run(on, ["sh", "-c", &all(built, resets)], &programs, files, qemu)?;
    let mut rows = Vec::new();
    for run in RUNS {
        for (way, _) in built {
            let mut row = Measured::new(*way, on, run);
            said::read(&mut row, &name(*way, run), &lines);
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Makes all runs, in the lab's shell.
fn all(built: &[(Way, PathBuf)], resets: u32) -> String {
    let mut all = vec![format!("export VMM_RESETS={resets}")];
    for run in RUNS {
        for (way, program) in built {
            let program = program.file_name().unwrap_or_default().to_string_lossy();
            let way = way.name();
            all.push(format!("vmm {way} {run} /bin/{program} /firmware /tmp/{way}-{run}"));
        }
    }
    all.join(" && ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_has_a_folder_and_a_name_of_its_own() {
        let built = [(Way::Today, "/a/qemu-today".into()), (Way::Ours, "/a/qemu-ours".into())];
        let all = all(&built, 3);
        let commands: Vec<&str> = all.split(" && ").collect();
        assert_eq!(commands.len(), 1 + RUNS.len() * 2);
        assert_eq!(commands[0], "export VMM_RESETS=3");
        assert_eq!(commands[2], "vmm ours resets /bin/qemu-ours /firmware /tmp/ours-resets");
        assert_eq!(name(Way::Ours, "vga"), "ours-vga");
    }

    /// The script knows each run, and what it counts is what the table shows.
    #[test]
    fn the_script_makes_each_run() {
        let cases = SCRIPT.lines().filter_map(|line| line.strip_suffix(')'));
        let cases: Vec<&str> = cases.flat_map(|case| case.split(" | ")).collect();
        assert!(RUNS.iter().all(|run| cases.contains(run)), "{cases:?}");
    }
}
