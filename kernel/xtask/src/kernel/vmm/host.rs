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

/// What strace wrote of a run.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Traced {
    pub(super) counts: Counts,
    /// How often `KVM_RUN` was called.
    pub(super) runs: usize,
    /// Seconds from a VM's making to its first `KVM_RUN`, of `strace -ttt`.
    pub(super) set_up: Option<f64>,
}

/// What is in the file `trace`.
pub(super) fn traced(trace: &Path) -> Result<Traced> {
    let text = fs::read_to_string(trace).with_context(|| format!("{}", trace.display()))?;
    Ok(read(&text))
}

fn read(text: &str) -> Traced {
    // They have neither direction nor size.
    const CREATE_VM: &str = ", 0xae01";
    const RUN: &str = ", 0xae80";
    let mut counts = Counts::default();
    text.lines().for_each(|line| counts.strace(line));
    let first = |request: &str| -> Option<f64> {
        let line = text.lines().find(|line| line.contains(request))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let set_up = first(RUN).zip(first(CREATE_VM)).map(|(run, made)| run - made);
    Traced { counts, runs: text.lines().filter(|line| line.contains(RUN)).count(), set_up }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_a_vm_to_its_first_run() {
        let text = "17 100.25 ioctl(3, 0xae00, 0) = 12\n17 100.50 ioctl(3, 0xae01, 0) = 4\n\
                    18 100.75 ioctl(5, 0xae80, 0 <unfinished ...>\n18 101.0 ioctl(5, 0xae80, 0) = 0";
        let traced = read(text);
        assert_eq!((traced.runs, traced.set_up), (2, Some(0.25)));
        assert_eq!(read("17 100.25 ioctl(3, 0xae01, 0) = 4").set_up, None);
        assert_eq!(read("17 ioctl(3, 0xae01, 0) = 4\n17 ioctl(5, 0xae80, 0) = 0").set_up, None);
    }
}
