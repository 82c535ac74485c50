//! A kernel's source, as Debian has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{logged, target};
use crate::{apt, run};

/// Packages with source are called so, and the version.
const PACKAGE: &str = "linux-source-";

/// The unpacked source of `version` without any patch of ours, fetched if it
/// is not there.
pub(super) fn pristine(version: &str) -> Result<PathBuf> {
    let dir = target::dir().join("source").join(version);
    if !dir.exists() {
        fetch(version, &dir).with_context(|| {
            format!(
                "no source of Linux {version}; KSRC=DIR in the environment uses a tree of yours"
            )
        })?;
    }
    Ok(dir)
}

/// Whether `dir` is a kernel's source tree.
pub(super) fn check(dir: &Path) -> Result<()> {
    if dir.join("virt/kvm/kvm_main.c").exists() && dir.join("Makefile").exists() {
        return Ok(());
    }
    bail!("{} is no source tree of Linux", dir.display())
}

fn fetch(version: &str, to: &Path) -> Result<()> {
    let package = format!("{PACKAGE}{version}");
    let apt = archive()?;
    if apt.versions(&package)?.is_empty() {
        bail!("the archive has no {package}; it has {}", versions(&apt)?.join(", "));
    }
    let log = target::dir().join("source").join(format!("{version}.log"));
    // Not `to` until it is whole.
    let unpacking = target::dir().join("source").join(format!("{version}.unpacking"));
    let _ = fs::remove_dir_all(&unpacking);
    fs::create_dir_all(&unpacking).with_context(|| format!("{}", unpacking.display()))?;
    apt.unpack(&[&package], &unpacking)?;
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&unpacking).arg("-xf");
    tar.arg(unpacking.join(format!("usr/src/{package}.tar.xz")));
    logged::run(&format!("unpacking {package}"), &mut tar, &log, false)?;
    let tree = unpacking.join(&package);
    check(&tree)?;
    fs::rename(&tree, to).with_context(|| format!("{}", to.display()))?;
    fs::remove_dir_all(&unpacking).with_context(|| format!("{}", unpacking.display()))
}

/// The newest version that the archive has.
pub(super) fn newest() -> Result<String> {
    let newest = versions(&archive()?)?.pop().context("the archive has no source of Linux")?;
    run::say(&format!("newest: {newest}"));
    Ok(newest)
}

fn archive() -> Result<apt::Private> {
    if !apt::available() {
        bail!("no apt here to fetch {PACKAGE}VERSION with");
    }
    apt::Private::update(&target::dir().join("apt"))
}

/// Versions that the archive has, in order.
fn versions(apt: &apt::Private) -> Result<Vec<String>> {
    Ok(parse_versions(&apt.names(PACKAGE)?))
}

fn parse_versions(names: &[String]) -> Vec<String> {
    let mut versions: Vec<String> = names
        .iter()
        .filter_map(|name| name.strip_prefix(PACKAGE))
        .filter(|version| target::is_version(version))
        .map(str::to_owned)
        .collect();
    versions.sort_by_key(|version| target::numbers(version));
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_order_of_release() {
        let names = ["linux-source-6.12", "linux-source-7.3", "linux-source", "linux-source-6.1"];
        let names = names.map(str::to_owned);
        assert_eq!(parse_versions(&names), ["6.1", "6.12", "7.3"]);
    }

    #[test]
    fn a_folder_that_is_no_tree() {
        let e = check(Path::new("/nonexistent")).map_err(|e| e.to_string());
        assert_eq!(e, Err("/nonexistent is no source tree of Linux".to_owned()));
    }
}
