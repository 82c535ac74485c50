//! What changes on the machine outside of `target/`: undone where it can be, and
//! said where not.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What others may find changed, as names.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    /// Where something is mounted, and what kind of thing.
    mounts: BTreeSet<String>,
    /// Debian's packages that are installed.
    packages: BTreeSet<String>,
    /// Rustup's toolchains, and the components of the one in use.
    rust: BTreeSet<String>,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let installed = |line: &str| line.strip_suffix(" installed").map(str::to_owned);
        let words = |line: &str| line.split(' ').next().map(str::to_owned);
        let format = "--showformat=${binary:Package} ${db:Status-Status}\n";
        let mut rust = lines("rustup", &["toolchain", "list"], words);
        rust.extend(lines("rustup", &["component", "list", "--installed"], words));
        Self {
            mounts: mounts(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()),
            packages: lines("dpkg-query", &["--show", format], installed),
            rust,
        }
    }

    /// Undoes what tests leave behind that were killed, and what counting grace
    /// periods mounts; a line for each change that stays.
    pub(crate) fn restore(self) -> Vec<String> {
        for mount in of_tracefs(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()) {
            remove_stale(&mount);
            if self.mounts.contains(&format!("tracefs on {}", mount.display())) {
                continue;
            }
            let mut umount = Command::new("umount");
            umount.arg(&mount).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            // A debugfs mounts it by itself when it is looked at.
            let _stays = umount.status();
        }
        self.changes(&Self::look())
    }

    /// A line for each kind of change since.
    fn changes(&self, now: &Self) -> Vec<String> {
        let kinds = [
            ("mounts", &self.mounts, &now.mounts),
            ("Debian's packages", &self.packages, &now.packages),
            ("rustup's toolchains and components", &self.rust, &now.rust),
        ];
        let mut said = Vec::new();
        for (what, before, now) in kinds {
            for (how, these, those) in [("new", now, before), ("gone", before, now)] {
                let different: Vec<&str> = these.difference(those).map(String::as_str).collect();
                if !different.is_empty() {
                    said.push(format!("{what}, {how}: {}", different.join(", ")));
                }
            }
        }
        said
    }
}

/// What `of` makes of the lines that a program prints; nothing where there is no such
/// program.
fn lines(program: &str, args: &[&str], of: impl Fn(&str) -> Option<String>) -> BTreeSet<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    said.unwrap_or_default().lines().filter_map(of).collect()
}

/// `KIND on PLACE`.
fn mounts(mounts: &str) -> BTreeSet<String> {
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        Some(format!("{kind} on {}", place.replace("\\040", " ")))
    };
    mounts.lines().filter_map(mount).collect()
}

fn of_tracefs(text: &str) -> Vec<PathBuf> {
    let all = mounts(text);
    all.iter().filter_map(|mount| mount.strip_prefix("tracefs on ")).map(PathBuf::from).collect()
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

    /// As `mount`, `apt-get install` and `rustup component add` leave it.
    #[test]
    fn what_stays_is_listed_by_name() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let before = Machine {
            mounts: mounts("proc /proc proc rw 0 0\n"),
            packages: set(&["gcc", "make"]),
            rust: set(&["stable", "rustfmt"]),
        };
        let after = Machine {
            mounts: mounts("proc /proc proc rw 0 0\ntracefs /a\\040b tracefs rw 0 0\n"),
            packages: set(&["g++", "gcc", "libstdc++-12-dev"]),
            rust: set(&["stable", "rustfmt", "clippy"]),
        };
        let expected = [
            "mounts, new: tracefs on /a b",
            "Debian's packages, new: g++, libstdc++-12-dev",
            "Debian's packages, gone: make",
            "rustup's toolchains and components, new: clippy",
        ];
        assert_eq!(before.changes(&after), expected);
        assert!(after.changes(&after).is_empty());
    }

    /// Whatever this machine has, two looks see the same of it, and see something.
    #[test]
    fn a_look_finds_what_is_there() {
        let machine = Machine::look();
        assert!(machine.mounts.iter().any(|mount| mount == "proc on /proc"), "{machine:?}");
        for (program, found) in [("dpkg-query", &machine.packages), ("rustup", &machine.rust)] {
            assert_eq!(crate::run::exists(program), !found.is_empty(), "{program}");
        }
    }
}
