//! VMMs on this machine, their ioctls counted by strace.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::counts::Counts;
use super::guest::VmmGuest;
use super::table::Measured;
use super::{Kernel, Way};
use crate::{apt, run};

/// In seconds: a guest that boots is up long before.
const LIMIT: u32 = 120;
const DISKS: usize = 6;

/// Runs each of `built` once.
pub(super) fn run(built: &[(Way, PathBuf)], guest: &VmmGuest) -> Result<Vec<Measured>> {
    if !std::path::Path::new("/dev/kvm").exists() {
        bail!("no /dev/kvm");
    }
    if !run::exists("strace") {
        if !(apt::available() && apt::may_install()) {
            bail!("strace counts the ioctls, and is not here (Debian: strace)");
        }
        apt::install(&["strace"])?;
    }
    built.iter().map(|(way, program)| one(*way, program, guest)).collect()
}

fn one(way: Way, program: &PathBuf, guest: &VmmGuest) -> Result<Measured> {
    let dir = super::source::base().join(way.name());
    let (trace, console) = (dir.join("strace.txt"), dir.join("console.txt"));
    let share = dir.join("share");
    fs::create_dir_all(&share).with_context(|| format!("{}", share.display()))?;
    let share = run::quoted(&share.display().to_string());
    let mut devices = vec![format!("--entropy --fs dir,path={share},tag=share,dax_window=8M")];
    for disk in 0..DISKS {
        let path = dir.join(format!("disk{disk}"));
        let file = fs::File::create(&path).with_context(|| format!("{}", path.display()))?;
        file.set_len(1 << 20).context("set_len")?;
        devices.push(format!("--blk file,path={}", run::quoted(&path.display().to_string())));
    }
    let quoted = |path: &PathBuf| run::quoted(&path.display().to_string());
    let vmm = format!(
        "timeout {LIMIT} strace -f -X raw -e trace=ioctl -o {} {} -l warn boot --kernel {} \
         --initramfs {} --cmdline 'console=ttyS0 loglevel=4 panic=-1' \
         --memory size=512M,backend=memfd --cpu count=1 {}",
        quoted(&trace),
        quoted(program),
        quoted(&guest.kernel),
        quoted(&guest.initrd),
        devices.join(" "),
    );
    // It wants a terminal.
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &vmm]).arg(&console);
    run::say(&format!(
        "running alioth, {} (console: {})",
        way.name(),
        super::super::target::shown(&console)
    ));
    let start = Instant::now();
    let mut row = Measured::new(way, Kernel::Host);
    let status = run::streamed(&mut script, |line| {
        let after = start.elapsed().as_secs_f64();
        if line.contains("VMM-GUEST up") {
            row.up = Some(after);
        } else if line.contains("VMM-GUEST done") {
            row.done = Some(after);
        }
    })?;
    let mut counts = Counts::default();
    let text = fs::read_to_string(&trace).with_context(|| format!("{}", trace.display()))?;
    text.lines().for_each(|line| counts.strace(line));
    row.counts = counts;
    if row.done.is_none() {
        // KVM_RUN, which has neither direction nor size.
        let runs = text.lines().filter(|line| line.contains(", 0xae80")).count();
        row.note = format!("the guest ended after {runs} KVM_RUN, {status}");
    }
    Ok(row)
}
