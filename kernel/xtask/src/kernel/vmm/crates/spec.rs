//! What is particular to a VMM that is published as crates.

use std::path::Path;

use anyhow::Result;

use super::source::Published;

#[derive(Debug)]
pub(in crate::kernel::vmm) struct Spec {
    pub(in crate::kernel::vmm) published: Published,
    /// What starts it on this machine, as a shell reads it.
    pub(super) host: fn(&Place<'_>) -> Result<String>,
    /// What defines `boot` in the lab.
    pub(super) lab: &'static str,
    /// In seconds, on this machine: a guest that boots is up long before.
    pub(super) limit: u32,
    /// Whether it ends at its first `KVM_RUN` and says when, if `KRUN_RUN_TIMED` is set.
    pub(super) timed: bool,
    /// Whether it wants the guest's kernel unpacked.
    pub(super) elf: bool,
}

/// Where a VMM runs, and with what.
#[derive(Debug)]
pub(super) struct Place<'a> {
    /// A folder for what it needs.
    pub(super) dir: &'a Path,
    pub(super) program: &'a Path,
    pub(super) kernel: &'a Path,
    pub(super) initrd: &'a Path,
}
