//! This binary as the VMM: one test, run once more with the library.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{common, library};

/// Set for the VMM: where its statistics go.
const STATS: &str = "KVM_MEMSLOTS_PRELOAD_STATS";

/// A test that is the VMM, with the library's settings.
pub(crate) struct Run {
    pub(crate) test: &'static str,
    settings: &'static [(&'static str, &'static str)],
}

impl Run {
    pub(crate) const fn new(
        test: &'static str,
        settings: &'static [(&'static str, &'static str)],
    ) -> Self {
        Self { test, settings }
    }
}

/// Runs `vmm` in a process that has the library; the statistics that the library
/// wrote. `None` in that process itself, or if there is no KVM, which is said.
pub(crate) fn as_vmm(run: &Run, vmm: impl FnOnce() -> Option<()>) -> Option<Value> {
    if std::env::var_os(STATS).is_some() {
        vmm();
        return None;
    }
    let Some(library) = library() else {
        common::skip(run.test, "no libkvm_memslots_preload.so beside this test");
        return None;
    };
    let dir = tempfile::tempdir().unwrap();
    let stats = dir.path().join("stats.json");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", run.test, "--nocapture", "--test-threads=1"])
        .env("LD_PRELOAD", library)
        .env(STATS, &stats)
        .envs(run.settings.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    if let Some(line) = said.lines().find_map(|line| line.split_once("SKIPPED ")) {
        common::skip(run.test, line.1.split_once(": ").map_or("", |(_, why)| why));
        return None;
    }
    // Nothing is written where the settings are wrong.
    if said.contains("it can be ") {
        return None;
    }
    let noted = std::fs::read_to_string(note(&stats)).ok();
    let stats =
        std::fs::read_to_string(&stats).unwrap_or_else(|e| panic!("no statistics: {e}; {said}"));
    let mut stats: Value = serde_json::from_str(&stats).unwrap();
    stats["note"] = noted.into();
    Some(stats)
}

/// What the VMM has to say beside the statistics: `note` in them.
#[cfg(target_arch = "x86_64")]
pub(crate) fn say(text: &str) {
    let stats = std::env::var_os(STATS).unwrap();
    std::fs::write(note(stats.as_ref()), text).unwrap();
}

fn note(stats: &Path) -> PathBuf {
    stats.with_extension("note")
}

/// A child that does what children do before they become something else: closes
/// all descriptors, and ends by `_exit`.
pub(crate) fn fork_and_exit() {
    // SAFETY: the child calls only what is safe after a fork.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        for fd in 3..200 {
            // SAFETY: the child's own.
            unsafe { libc::close(fd) };
        }
        // SAFETY: does not return.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: this process's child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
}
