//! Whether the library crates build with the Rust they promise to build with.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt;
use crate::log::{Log, Outcome};
use crate::rustc::{self, Rustc, starts_with_version};
use crate::workspace::{Package, cargo, packages, target};

/// `cargo check` of the library crates with the oldest Rust they promise.
pub(super) fn check(log: &mut Log) -> Result<Outcome> {
    let (version, packages) = promised(packages()?)?;
    let rustc = match find(log, &version) {
        Ok(rustc) => rustc,
        Err(e) => return Ok(Outcome::Skipped(format!("no Rust {version} to be had: {e:#}"))),
    };
    let mut check = cargo();
    check.args(["check", "--all-features", "--target-dir"]).arg(dir().join("build"));
    for package in &packages {
        check.args(["--package", package]);
    }
    rustc.drive(&mut check);
    log.command(&mut check)?;
    Ok(Outcome::Done)
}

/// The one version that packages of the workspace promise, and which they are.
fn promised(packages: Vec<Package>) -> Result<(String, Vec<String>)> {
    let promises = packages.into_iter().filter_map(|p| p.rust_version.map(|v| (v, p.name)));
    let (versions, names): (Vec<String>, Vec<String>) = promises.unzip();
    let version = versions.first().context("no package has a rust-version")?;
    if versions.iter().any(|v| v != version) {
        bail!("packages promise different versions of Rust: {versions:?}");
    }
    Ok((version.clone(), names))
}

fn dir() -> PathBuf {
    target().join("msrv")
}

/// The compiler in use, rustup's, the one unpacked before, or Debian's.
fn find(log: &mut Log, version: &str) -> Result<Rustc> {
    let unpacked = dir().join(format!("rust-{version}"));
    let found = [Some(Rustc::in_use()), rustup(version), Rustc::unpacked(&unpacked)];
    if let Some(rustc) = found.into_iter().flatten().find(|rustc| rustc.is(version)) {
        return Ok(rustc);
    }
    if !apt::available() {
        bail!("rustup has no such toolchain (rustup toolchain install {version}), no apt here");
    }
    log.say(&format!("no toolchain {version}: unpacking Debian's to {}", unpacked.display()));
    let apt = apt::Private::update(&dir().join("apt"))?;
    let all = rustc::Package::all(&apt)?;
    let package = all.iter().find(|package| package.is(version));
    package.context("the archive has no such rustc")?.unpack(&apt, None, &unpacked)
}

/// The compiler of rustup's toolchain, which is not installed if it is not
/// there.
fn rustup(version: &str) -> Option<Rustc> {
    let list = Command::new("rustup").args(["toolchain", "list"]).output().ok()?;
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let toolchain = list
        .lines()
        .filter_map(|line| line.split(' ').next())
        .find(|t| starts_with_version(t, version))?;
    let args = ["which", "rustc", "--toolchain", toolchain];
    let which = Command::new("rustup").args(args).output().ok()?;
    which.status.success().then(|| Rustc::own(String::from_utf8_lossy(&which.stdout).trim()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_promise_is_one() {
        let package = |name: &str, version: Option<&str>| Package {
            name: name.to_owned(),
            published: true,
            rust_version: version.map(str::to_owned),
            ..Package::default()
        };
        let packages =
            vec![package("a", Some("1.85")), package("b", None), package("c", Some("1.85"))];
        let expected = ("1.85".to_owned(), vec!["a".to_owned(), "c".to_owned()]);
        assert_eq!(promised(packages).unwrap(), expected);
        assert!(promised(vec![package("a", Some("1.85")), package("b", Some("1.86"))]).is_err());
        assert!(promised(vec![package("a", None)]).is_err());
    }
}
