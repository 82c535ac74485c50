//! What runs on this machine take.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::counts::Counts;
use crate::{apt, run};

/// Whether there is KVM, and strace to count with: installed if it may be.
pub(super) fn available() -> Result<()> {
    if !Path::new("/dev/kvm").exists() {
        bail!("no /dev/kvm");
    }
    if !run::exists("strace") {
        if !(apt::available() && apt::may_install()) {
            bail!("strace counts the ioctls, and is not here (Debian: strace)");
        }
        apt::install(&["strace"])?;
    }
    Ok(())
}

/// What strace wrote to `trace`: the ioctls, and how often `KVM_RUN` was called.
pub(super) fn counted(trace: &Path) -> Result<(Counts, usize)> {
    let text = fs::read_to_string(trace).with_context(|| format!("{}", trace.display()))?;
    let mut counts = Counts::default();
    text.lines().for_each(|line| counts.strace(line));
    // KVM_RUN has neither direction nor size.
    Ok((counts, text.lines().filter(|line| line.contains(", 0xae80")).count()))
}
