//! A kernel's source, as Debian has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::target::Target;
use super::{logged, target};
use crate::{apt, run};

/// Packages with source are called so, and the version.
const PACKAGE: &str = "linux-source-";

/// Debian's suites with newer kernels than a release has.
const FURTHER: [&str; 2] = ["unstable", "stable-backports"];

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

/// What `target` is patched from; of `KSRC`, that.
pub(super) fn unpatched(target: &Target) -> Result<PathBuf> {
    let Some(ksrc) = &target.ksrc else { return pristine(&target.version) };
    let ksrc = fs::canonicalize(ksrc).with_context(|| format!("KSRC={}", ksrc.display()))?;
    check(&ksrc)?;
    Ok(ksrc)
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
    let own = machine()?;
    let mut archive = Vec::new();
    if own.versions(&package)?.is_empty() {
        archive = further(&own)?;
    }
    archive.push(own);
    let Some(apt) = having(&archive, &package)? else {
        bail!("the archive has no {package}; it has {}", listed(&versions(&archive)?));
    };
    let log = target::dir().join("source").join(format!("{version}.log"));
    // Not `to` until it is whole.
    let unpacking = target::dir().join("source").join(format!("{version}.unpacking"));
    let _ = fs::remove_dir_all(&unpacking);
    fs::create_dir_all(&unpacking).with_context(|| format!("{}", unpacking.display()))?;
    apt.unpack_alone(&[&package], &unpacking)?;
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&unpacking).arg("-xf");
    tar.arg(unpacking.join(format!("usr/src/{package}.tar.xz")));
    logged::run(&format!("unpacking {package}"), &mut tar, &log, false)?;
    let tree = unpacking.join(&package);
    check(&tree)?;
    fs::rename(&tree, to).with_context(|| format!("{}", to.display()))?;
    fs::remove_dir_all(&unpacking).with_context(|| format!("{}", unpacking.display()))
}

/// The newest version that the archive has, of those in `series` if that is
/// given.
pub(super) fn newest(series: Option<&[String]>) -> Result<String> {
    let own = machine()?;
    let mut archive = further(&own)?;
    archive.push(own);
    let versions = versions(&archive)?;
    let (version, note) = choose(&versions, series)?;
    if let Some(note) = note {
        run::say(&note);
    }
    run::say(&format!("newest: {version}"));
    Ok(version.to_owned())
}

/// The newest of the archive's `versions`, in order, of those in `series` if
/// that is given, and what to say of it.
fn choose<'a>(
    versions: &'a [String],
    series: Option<&[String]>,
) -> Result<(&'a str, Option<String>)> {
    let newest = versions.last().context("the archive has no source of Linux")?;
    let Some(series) = series else { return Ok((newest, None)) };
    let Some(version) = versions.iter().rfind(|version| series.contains(version)) else {
        bail!(
            "the archive has Linux {}, and there is a series for {}; KSRC=DIR in the environment \
             uses a tree of yours, --vanilla does without the series",
            listed(versions),
            listed(series)
        );
    };
    let note = format!("note: the archive has Linux {newest}, for which there is no series yet");
    Ok((version, (version != newest).then_some(note)))
}

fn listed(versions: &[String]) -> String {
    if versions.is_empty() { "none".to_owned() } else { versions.join(", ") }
}

/// The suites that the machine has.
fn machine() -> Result<apt::Private> {
    if !apt::available() {
        bail!("no apt here to fetch {PACKAGE}VERSION with");
    }
    apt::Private::update(&target::dir().join("apt"))
}

/// The suites with newer kernels, of the mirror that `machine` has.
fn further(machine: &apt::Private) -> Result<Vec<apt::Private>> {
    let Some(mirror) = machine.mirror()? else {
        run::say("note: no mirror of Debian among the machine's sources of packages");
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for suite in FURTHER {
        let dir = target::dir().join(format!("apt-{suite}"));
        match apt::Private::of_suite(&dir, &mirror, suite) {
            Ok(apt) => found.push(apt),
            Err(e) => run::say(&format!("note: no suite {suite}: {e:#}")),
        }
    }
    Ok(found)
}

/// The first of `archive` that has `package`.
fn having<'a>(archive: &'a [apt::Private], package: &str) -> Result<Option<&'a apt::Private>> {
    for apt in archive {
        if !apt.versions(package)?.is_empty() {
            return Ok(Some(apt));
        }
    }
    Ok(None)
}

/// Versions that `archive` has, in order.
fn versions(archive: &[apt::Private]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for apt in archive {
        names.extend(apt.names(PACKAGE)?);
    }
    Ok(parse_versions(&names))
}

fn parse_versions(names: &[String]) -> Vec<String> {
    let mut versions: Vec<String> = names
        .iter()
        .filter_map(|name| name.strip_prefix(PACKAGE))
        .filter(|version| target::is_version(version))
        .map(str::to_owned)
        .collect();
    versions.sort_by_key(|version| target::numbers(version));
    versions.dedup();
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_order_of_release() {
        let names = ["6.12", "7.3", "", "6.1", "6.12", "6.12-rt"];
        let names = names.map(|version| format!("{PACKAGE}{version}"));
        assert_eq!(parse_versions(&names), ["6.1", "6.12", "7.3"]);
    }

    /// The version chosen, and whether something was said.
    fn chosen(versions: &[&str], series: Option<&[&str]>) -> Result<(String, bool), String> {
        let owned = |versions: &[&str]| versions.iter().map(|&v| v.to_owned()).collect::<Vec<_>>();
        let versions = owned(versions);
        choose(&versions, series.map(owned).as_deref())
            .map(|(version, note)| (version.to_owned(), note.is_some()))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn the_newest_is_one_with_a_series() {
        let series = Some(&["6.12", "7.2"][..]);
        let is = |version: &str, said| Ok((version.to_owned(), said));
        assert_eq!(chosen(&["6.1", "6.12", "7.2"], series), is("7.2", false));
        assert_eq!(chosen(&["6.12", "7.2", "7.3"], series), is("7.2", true));
        assert_eq!(chosen(&["6.12", "7.3"], series), is("6.12", true));
        assert_eq!(chosen(&["6.12", "7.2", "7.3"], None), is("7.3", false));
    }

    #[test]
    fn no_version_with_a_series() {
        let e = chosen(&["6.1", "7.3"], Some(&["7.2"])).err().unwrap_or_default();
        assert!(e.contains("6.1, 7.3") && e.contains("for 7.2") && e.contains("KSRC="), "{e}");
        assert!(chosen(&[], Some(&["7.2"])).is_err() && chosen(&[], None).is_err());
        let e = chosen(&["7.3"], Some(&[])).err().unwrap_or_default();
        assert!(e.contains("for none"), "{e}");
    }

    #[test]
    fn a_folder_that_is_no_tree() {
        let e = check(Path::new("/nonexistent")).map_err(|e| e.to_string());
        assert_eq!(e, Err("/nonexistent is no source tree of Linux".to_owned()));
    }
}
