//! VMMs in the lab: a kernel with the series, the VMM in it, its guest in that.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::counts::{Counts, hexadecimal};
use super::guest::VmmGuest;
use super::table::Measured;
use super::{Kernel, Way};
use crate::kernel::boot::{self, Guest, Job};
use crate::kernel::initrd::{Command, GuestFile, Program};
use crate::kernel::target::{Arch, Target};
use crate::kernel::{Qemu, build};
use crate::run;

const SCRIPT: &str = include_str!("run.sh");

/// For the lab's kernel: what QEMU emulates of SVM is used as little as can be,
/// as interrupts of guests get lost (see the script).
const APPEND: &str = "kvm_amd.vgif=0 kvm_amd.avic=0 kvm_amd.vls=0";

/// Runs each of `built` in turn, in one boot of the lab.
pub(super) fn run(
    on: Kernel,
    built: &[(Way, PathBuf)],
    guest: &VmmGuest,
    qemu: &Qemu,
) -> Result<Vec<Measured>> {
    let target = Target {
        version: "6.12".to_owned(),
        arch: Arch::X86_64,
        debug: false,
        vanilla: on == Kernel::Lab,
        series: None,
        slow_gp: false,
        ksrc: None,
    };
    boot::available(&target)?;
    let kernel = build::kernel(&target)?;
    let lab = Guest::new(&target, &kernel, qemu.clone())?;
    let file = |path: &str, from: &PathBuf| -> Result<GuestFile> {
        let content = fs::read(from).with_context(|| format!("{}", from.display()))?;
        Ok(GuestFile { path: path.to_owned(), content, executable: false })
    };
    let script = GuestFile {
        path: "bin/vmm".to_owned(),
        content: SCRIPT.as_bytes().to_owned(),
        executable: true,
    };
    let files =
        vec![script, file("vmm/kernel", &guest.kernel)?, file("vmm/initrd", &guest.initrd)?];
    let mut programs = Vec::new();
    for (_, path) in built {
        programs.push(Program::of(path, target.arch)?);
    }
    let all: Vec<String> = built.iter().map(|(way, _)| format!("vmm {}", way.name())).collect();
    let words = ["sh", "-c", &all.join(" && ")].map(str::to_owned).to_vec();
    let command = Command { words, env: qemu.env.clone() };
    let programs = programs.iter().collect();
    let job = Job { programs, files, append: APPEND, ..Job::new("vmm", command) };
    let mut lines = Vec::new();
    let ended = lab.run(&job, |line| {
        run::say(line);
        lines.push(line.to_owned());
    })?;
    if ended.status != 0 {
        bail!("ended with status {}", ended.status);
    }
    Ok(built.iter().map(|(way, _)| measured(*way, on, &lines)).collect())
}

/// What the script said of `way`.
fn measured(way: Way, on: Kernel, lines: &[String]) -> Measured {
    let mut row = Measured::new(way, on);
    let mut counts = Counts::default();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["VMM", name, rest @ ..] = &words[..] else { continue };
        if *name != way.name() {
            continue;
        }
        match rest {
            ["ioctl", request, times] => {
                if let (Some(request), Ok(times)) = (hexadecimal(request), times.parse()) {
                    counts.add(request, times);
                }
            }
            ["grace", number] => row.grace_periods = number.parse().ok(),
            ["up", number] => row.up = hundredths(number),
            ["done", number] => row.done = hundredths(number),
            ["lost", number] if *number != "0" => row.note = format!("{number} records lost"),
            ["exits", number] if *number != "0" => row.note = format!("{number} kicks exited"),
            _ => {}
        }
    }
    row.counts = counts;
    row
}

fn hundredths(number: &str) -> Option<f64> {
    number.parse::<f64>().ok().map(|hundredths| hundredths / 100.0)
}

#[cfg(test)]
mod tests {
    use super::super::counts::Kind;
    use super::*;

    #[test]
    fn what_the_script_says() {
        let said = "booting\nVMM today up 1234\nVMM today ioctl 0x4040ae79 56\n\
                    VMM ours ioctl 0x4040ae79 7\nVMM today grace 99\nVMM today lost 0\n\
                    VMM today exits 0\nVMM ours exits 3\n\
                    VMM today done 2000\nVMM today said VMM-GUEST done";
        let lines: Vec<String> = said.lines().map(str::to_owned).collect();
        let row = measured(Way::Today, Kernel::Lab, &lines);
        assert_eq!((row.up, row.done, row.grace_periods), (Some(12.34), Some(20.0), Some(99)));
        assert_eq!(row.counts.of(Kind::Ioeventfd), 56);
        assert_eq!(measured(Way::Ours, Kernel::Lab, &lines).counts.of(Kind::Ioeventfd), 7);
        assert!(row.note.is_empty());
        assert_eq!(measured(Way::Ours, Kernel::Lab, &lines).note, "3 kicks exited");
    }
}
