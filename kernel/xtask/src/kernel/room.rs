//! What this machine has for guests that run beside each other.

use std::fs;

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// Memory that QEMU takes beside a guest's, in MiB.
const OWN_MIB: usize = 256;

/// The processors that this process may use, not always in the same order: the
/// first guests of labs beside each other need not share one.
pub(super) fn processors() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::this()).context("sched_getaffinity")?;
    let mut cpus = Vec::new();
    for cpu in 0..CpuSet::count() {
        if allowed.is_set(cpu).context("sched_getaffinity")? {
            cpus.push(cpu);
        }
    }
    let first = std::process::id() as usize % cpus.len().max(1);
    cpus.rotate_left(first);
    Ok(cpus)
}

/// How many guests with `mib` of memory, and a processor of `cpus` each, may run
/// at once.
pub(super) fn guests(cpus: usize, mib: u32) -> usize {
    fitting(cpus, mib, &fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

/// How many guests with `mib` of memory fit, at most `cpus`, into what `meminfo`
/// says there is. One is run in any case.
fn fitting(cpus: usize, mib: u32, meminfo: &str) -> usize {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = kib.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    let each = (mib as usize).saturating_add(OWN_MIB).saturating_mul(1024);
    (kib.unwrap_or(0) / each).clamp(1, cpus.max(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn processors_are_those_that_this_process_may_use() {
        let allowed = sched_getaffinity(Pid::this()).unwrap();
        let cpus = processors().unwrap();
        assert!(!cpus.is_empty() && cpus.iter().all(|&cpu| allowed.is_set(cpu).unwrap()));
    }

    #[test]
    fn guests_beside_each_other_have_memory() {
        let meminfo = "MemFree: 1 kB\nMemAvailable:   10485760 kB\n";
        assert_eq!(fitting(2, 3072, meminfo), 2);
        assert_eq!(fitting(8, 3072, meminfo), 3);
        assert_eq!(fitting(8, 30720, meminfo), 1);
        assert_eq!(fitting(2, 3072, ""), 1);
    }
}
