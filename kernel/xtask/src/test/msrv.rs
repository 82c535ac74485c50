//! Whether the library crates build with the Rust they promise to build with.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{Log, Outcome};
use crate::apt;
use crate::workspace::{Package, cargo, packages, root, target};

/// A compiler of the promised version.
struct Rustc {
    program: PathBuf,
    /// Where its libraries are, if it does not find them itself.
    libraries: Option<PathBuf>,
}

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
    log.command(rustc.with_environment(&mut check).env("RUSTC", &rustc.program))?;
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

impl Rustc {
    fn own(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), libraries: None }
    }

    fn with_environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        match &self.libraries {
            Some(libraries) => command.env("LD_LIBRARY_PATH", libraries),
            // Set by `cargo run`, for another toolchain.
            None => command.env_remove("LD_LIBRARY_PATH"),
        }
    }

    /// Whether it runs and is `version`.
    fn is(&self, version: &str) -> bool {
        let mut command = Command::new(&self.program);
        self.with_environment(&mut command).current_dir(root()).arg("--version");
        let output = command.output();
        output.is_ok_and(|output| is_version(&String::from_utf8_lossy(&output.stdout), version))
    }
}

/// Whether `rustc 1.85.0 (...)` is a `1.85`.
fn is_version(said: &str, version: &str) -> bool {
    said.split(' ').nth(1).is_some_and(|is| starts_with_version(is, version))
}

/// Whether `is` is `version` or `version.PATCH`, whatever follows.
fn starts_with_version(is: &str, version: &str) -> bool {
    is.strip_prefix(version).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The compiler in use, rustup's, the one unpacked before, or Debian's.
fn find(log: &mut Log, version: &str) -> Result<Rustc> {
    let in_use = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let unpacked = dir().join(format!("rust-{version}"));
    let found = [Some(Rustc::own(in_use)), rustup(version), debian_rustc(&unpacked)];
    if let Some(rustc) = found.into_iter().flatten().find(|rustc| rustc.is(version)) {
        return Ok(rustc);
    }
    if !apt::available() {
        bail!("rustup has no such toolchain (rustup toolchain install {version}), no apt here");
    }
    log.say(&format!("no toolchain {version}: unpacking Debian's to {}", unpacked.display()));
    fetch_debian(version, &unpacked)?;
    let rustc = debian_rustc(&unpacked).context("the package has no /usr/bin/rustc")?;
    if !rustc.is(version) {
        bail!("{} does not run, or is no {version}", rustc.program.display());
    }
    Ok(rustc)
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

/// Debian's compiler as unpacked in `unpacked`.
fn debian_rustc(unpacked: &Path) -> Option<Rustc> {
    let program = unpacked.join("usr/bin/rustc");
    let multiarch = fs::read_dir(unpacked.join("usr/lib")).ok()?.filter_map(Result::ok);
    let libraries = multiarch.map(|entry| entry.path()).find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().contains("-linux-gnu"))
    })?;
    program.exists().then_some(Rustc { program, libraries: Some(libraries) })
}

/// Unpacks Debian's compiler of `version`, with its libraries. Which package
/// has that version differs from release to release: `rustc`, or `rustc-web`,
/// which follows the browsers.
fn fetch_debian(version: &str, to: &Path) -> Result<()> {
    let apt = apt::Private::update(&dir().join("apt"))?;
    for package in ["rustc", "rustc-web"] {
        if apt.versions(package)?.iter().any(|is| starts_with_version(is, version)) {
            apt.pin("rust", &format!("{version}.*"))?;
            // Not `to` until it is whole.
            let unpacking = to.with_extension("unpacking");
            let _ = fs::remove_dir_all(&unpacking);
            fs::create_dir_all(&unpacking)?;
            apt.unpack(package, &unpacking)?;
            let _ = fs::remove_dir_all(to);
            return fs::rename(&unpacking, to).with_context(|| format!("{}", to.display()));
        }
    }
    bail!("neither rustc nor rustc-web of the archive is {version}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn versions() {
        assert!(is_version("rustc 1.85.0 (4d91de4e4 2025-02-17) (built from a tarball)", "1.85"));
        assert!(!is_version("rustc 1.95.0 (59807616e 2026-04-14)", "1.85"));
        assert!(!is_version("", "1.85"));
        assert!(starts_with_version("1.85.0+dfsg3-1~deb12u3", "1.85"));
        assert!(starts_with_version("1.85-x86_64-unknown-linux-gnu", "1.85"));
        assert!(!starts_with_version("1.850.0", "1.85"));
        assert!(!starts_with_version("1.8.0", "1.85"));
    }

    #[test]
    fn the_promise_is_one() {
        let package = |name: &str, version: Option<&str>| Package {
            name: name.to_owned(),
            published: true,
            rust_version: version.map(str::to_owned),
        };
        let packages =
            vec![package("a", Some("1.85")), package("b", None), package("c", Some("1.85"))];
        let expected = ("1.85".to_owned(), vec!["a".to_owned(), "c".to_owned()]);
        assert_eq!(promised(packages).unwrap(), expected);
        assert!(promised(vec![package("a", Some("1.85")), package("b", Some("1.86"))]).is_err());
        assert!(promised(vec![package("a", None)]).is_err());
    }
}
