//! VMMs on this machine, their ioctls counted by strace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::guest::VmmGuest;
use crate::kernel::target;
use crate::kernel::vmm::host;
use crate::kernel::vmm::table::Measured;
use crate::kernel::vmm::which::{Kernel, Way};
use crate::run;

/// In seconds: a guest that boots is up long before.
const LIMIT: u32 = 120;
const DISKS: usize = 6;

/// Runs each of `built` once, with what it leaves in `base`.
pub(super) fn run(
    built: &[(Way, PathBuf)],
    guest: &VmmGuest,
    base: &Path,
) -> Result<Vec<Measured>> {
    host::available()?;
    built.iter().map(|(way, program)| one(*way, program, guest, base)).collect()
}

fn one(way: Way, program: &PathBuf, guest: &VmmGuest, base: &Path) -> Result<Measured> {
    let dir = base.join(way.name());
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
    run::say(&format!("running alioth, {} (console: {})", way.name(), target::shown(&console)));
    let start = Instant::now();
    let mut row = Measured::new(way, Kernel::Host, "");
    let status = run::streamed(&mut script, |line| {
        let after = start.elapsed().as_secs_f64();
        if line.contains("VMM-GUEST up") {
            row.up = Some(after);
        } else if line.contains("VMM-GUEST done") {
            row.done = Some(after);
        }
    })?;
    let (counts, runs) = host::counted(&trace)?;
    row.counts = counts;
    if row.done.is_none() {
        row.notes.push(format!("the guest ended after {runs} KVM_RUN, {status}"));
    }
    Ok(row)
}
