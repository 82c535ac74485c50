//! What changes on the machine outside of `target/`: undone where it can be, and
//! said where not.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// What was changed for good.
static CHANGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes a change that stays.
pub(crate) fn changed(what: String) {
    CHANGED.lock().unwrap_or_else(PoisonError::into_inner).push(what);
}

/// Where the machine had tracefs.
#[derive(Debug)]
pub(crate) struct Machine {
    mounts: Vec<PathBuf>,
}

impl Machine {
    pub(crate) fn look() -> Self {
        Self { mounts: mounts() }
    }

    /// Undoes what tests leave behind that were killed, and what counting grace
    /// periods mounts; a line for each change that stays.
    pub(crate) fn restore(self) -> Vec<String> {
        for mount in mounts() {
            remove_stale(&mount);
            if self.mounts.contains(&mount) {
                continue;
            }
            let mut umount = Command::new("umount");
            umount.arg(&mount).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            // A debugfs mounts it by itself when it is looked at.
            if !umount.status().is_ok_and(|status| status.success()) {
                changed(format!("tracefs is mounted on {}", mount.display()));
            }
        }
        said()
    }
}

/// What was [changed], once.
fn said() -> Vec<String> {
    std::mem::take(&mut CHANGED.lock().unwrap_or_else(PoisonError::into_inner))
}

fn mounts() -> Vec<PathBuf> {
    of_tracefs(&fs::read_to_string("/proc/self/mounts").unwrap_or_default())
}

fn of_tracefs(mounts: &str) -> Vec<PathBuf> {
    let place = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        (kind == "tracefs").then(|| PathBuf::from(place.replace("\\040", " ")))
    };
    mounts.lines().filter_map(place).collect()
}

/// Removes instances and probes of processes that are gone: `GraceCounter` of the
/// benchmarks names them `kvm-memslots-PID-N` and `kvm_memslots_PID`.
fn remove_stale(tracefs: &Path) {
    let instances = fs::read_dir(tracefs.join("instances"));
    for instance in instances.into_iter().flatten().flatten() {
        if is_stale(&instance.file_name().to_string_lossy()) {
            let _ = fs::remove_dir(instance.path());
        }
    }
    let probes = tracefs.join("kprobe_events");
    let text = fs::read_to_string(&probes).unwrap_or_default();
    for group in text.lines().filter_map(|line| line.split_once(':')?.1.split('/').next()) {
        if is_stale(&group.replace('_', "-")) {
            let file = fs::OpenOptions::new().append(true).open(&probes);
            let _ = file.and_then(|mut file| file.write_all(format!("-:{group}/").as_bytes()));
        }
    }
}

fn is_stale(name: &str) -> bool {
    let owner = name.strip_prefix("kvm-memslots-").and_then(|rest| rest.split('-').next());
    let owner = owner.and_then(|pid| pid.parse::<u32>().ok());
    owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_the_dead_is_known_by_its_name() {
        // The largest process id is 2^22.
        assert!(is_stale("kvm-memslots-4194305-0") && is_stale("kvm-memslots-4194305"));
        assert!(!is_stale(&format!("kvm-memslots-{}-0", std::process::id())));
        assert!(!is_stale("perf-4194305-0") && !is_stale("kvm-memslots-x-0"));
    }

    #[test]
    fn mounts_of_tracefs_are_found() {
        let mounts = "proc /proc proc rw 0 0\ntracefs /a\\040b tracefs rw 0 0\n";
        assert_eq!(of_tracefs(mounts), [PathBuf::from("/a b")]);
    }

    /// Nothing is restored here: a tracefs that others mount meanwhile is theirs.
    #[test]
    fn what_stays_is_said_once() {
        changed("a thing for this test".to_owned());
        let first = said();
        assert!(first.iter().any(|line| line == "a thing for this test"), "{first:?}");
        assert!(!said().iter().any(|line| line == "a thing for this test"));
    }
}
