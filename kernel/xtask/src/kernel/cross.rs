//! What it takes to build programs of the workspace for the guest's
//! architecture, where that is not the machine's.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::target::{self, Arch};
use super::tools;
use crate::rustc::{Package, Rustc};
use crate::{apt, run};

/// How cargo builds for an architecture.
#[derive(Debug)]
pub(super) struct Toolchain {
    triple: &'static str,
    /// Compiler and linker, if not those in use.
    cross: Option<(Rustc, String)>,
}

impl Toolchain {
    /// For `arch`, installed or unpacked if it is not there.
    pub(super) fn of(arch: Arch) -> Result<Self> {
        let triple = arch.triple();
        if arch.is_own() {
            return Ok(Self { triple, cross: None });
        }
        tools::for_programs(arch)?;
        let rustc = rustc(arch).with_context(|| format!("no rustc that builds for {triple}"))?;
        Ok(Self { triple, cross: Some((rustc, format!("{}gcc", arch.cross()))) })
    }

    /// Makes `cargo` build with it.
    pub(super) fn drive(&self, cargo: &mut Command) {
        cargo.args(["--target", self.triple]);
        if let Some((rustc, linker)) = &self.cross {
            rustc.drive(cargo);
            cargo.env(linker_variable(self.triple), linker);
        }
    }
}

/// The variable in which cargo looks for the linker.
fn linker_variable(triple: &str) -> String {
    format!("CARGO_TARGET_{}_LINKER", triple.to_uppercase().replace('-', "_"))
}

/// A compiler that has the standard library for `arch`: the one in use, or
/// Debian's.
fn rustc(arch: Arch) -> Result<Rustc> {
    let triple = arch.triple();
    let unpacked = target::dir().join(format!("rust-{}", arch.name()));
    let found = [Some(Rustc::in_use()), Rustc::unpacked(&unpacked)];
    if let Some(rustc) = found.into_iter().flatten().find(|rustc| rustc.has_std(triple)) {
        return Ok(rustc);
    }
    if !apt::available() {
        bail!("rustup target add {triple} installs its library, and there is no apt here");
    }
    run::say(&format!("unpacking Debian's Rust for {triple} to {}", target::shown(&unpacked)));
    let apt = apt::Private::update(&target::dir().join("apt"))?;
    let foreign = foreign_apt(arch)?;
    let mut both = Vec::new();
    for package in Package::all(&apt)? {
        if package.has_std(&foreign)? {
            both.push(package);
        }
    }
    // What the workspace's tests depend on follows new versions.
    let newest = both.iter().max_by_key(|package| package.release());
    let newest = newest.context("the archive has none whose library it has for both")?;
    let rustc = newest.unpack(&apt, Some(&foreign), &unpacked)?;
    if rustc.has_std(triple) { Ok(rustc) } else { bail!("Debian's package lacks the library") }
}

/// apt for an architecture that the machine does not have.
pub(super) fn foreign_apt(arch: Arch) -> Result<apt::Private> {
    let debian = arch.debian();
    apt::Private::update_foreign(&target::dir().join(format!("apt-{debian}")), debian)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_is_told_how() {
        let gcc = "aarch64-linux-gnu-gcc".to_owned();
        let toolchain = Toolchain {
            triple: Arch::Arm64.triple(),
            cross: Some((Rustc::own("/opt/rustc"), gcc)),
        };
        let mut cargo = Command::new("cargo");
        toolchain.drive(&mut cargo);
        let shown = run::shown(&cargo);
        assert!(shown.contains("--target aarch64-unknown-linux-gnu"), "{shown}");
        assert!(shown.contains("RUSTC=/opt/rustc"), "{shown}");
        let linker = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc";
        assert!(shown.contains(linker), "{shown}");
    }

    #[test]
    fn for_the_machine_itself_nothing_is_changed() {
        let mut cargo = Command::new("cargo");
        Toolchain { triple: "x", cross: None }.drive(&mut cargo);
        assert_eq!(run::shown(&cargo), "cargo --target x");
    }
}
