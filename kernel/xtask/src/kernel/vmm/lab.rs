//! VMMs in the lab: a kernel with the series, the VMM in it, its guest in that.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::which::Kernel;
use crate::kernel::boot::{self, Guest, Job};
use crate::kernel::initrd::{Command, GuestFile, Program};
use crate::kernel::target::Target;
use crate::kernel::{Qemu, build};
use crate::run;

/// For the lab's kernel: what QEMU emulates of SVM is used as little as can be,
/// as interrupts of guests get lost (see the script of a crate's run). On a busy machine
/// the kernel would take its timer for broken.
const APPEND: &str = "kvm_amd.vgif=0 kvm_amd.avic=0 kvm_amd.vls=0 no_timer_check";

/// A file of this machine's, for the lab's file system.
pub(super) fn file(path: &str, from: &Path) -> Result<GuestFile> {
    let content = fs::read(from).with_context(|| format!("{}", from.display()))?;
    Ok(GuestFile { path: path.to_owned(), content, executable: false })
}

/// What makes the runs: `/bin/vmm`, and what it is made of.
pub(super) fn script(name: &str, text: &str) -> GuestFile {
    let content = text.as_bytes().to_owned();
    GuestFile { path: format!("bin/{name}"), content, executable: true }
}

/// Runs `words` in one boot of the lab's kernel, with `programs` in its `/bin`;
/// the lines that they say.
pub(super) fn run(
    on: Kernel,
    words: [&str; 3],
    programs: &[PathBuf],
    files: Vec<GuestFile>,
    qemu: &Qemu,
) -> Result<Vec<String>> {
    let target = Target { vanilla: on == Kernel::Lab, ..Target::of("6.12") };
    boot::available(&target)?;
    let kernel = build::kernel(&target)?;
    let lab = Guest::new(&target, &kernel, qemu.clone())?;
    let programs: Vec<Program> =
        programs.iter().map(|path| Program::of(path, target.arch)).collect::<Result<_>>()?;
    let command = Command { words: words.map(str::to_owned).to_vec(), env: qemu.env.clone() };
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
    Ok(lines)
}
