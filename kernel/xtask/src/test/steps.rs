//! The checks that are calls of cargo.

use std::env;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::step::Step;
use super::{api, msrv, programs};
use crate::docs;
use crate::log::{Log, Outcome};
use crate::run;
use crate::workspace::{Package, cargo, git, packages, root, target};

/// Seconds are those of 2 cores.
pub(super) const STEPS: [Step; 12] = [
    Step { name: "fmt", what: "the format of the code", seconds: (1, 1), slow: false, run: fmt },
    Step {
        name: "clippy",
        what: "what clippy warns of, anywhere",
        seconds: (35, 1),
        slow: false,
        run: clippy,
    },
    Step {
        name: "tests",
        what: "unit and integration tests, all features",
        seconds: (190, 80),
        slow: false,
        run: tests,
    },
    Step {
        name: "fuzz",
        what: "random input, a minute a harness; MEMSLOTS_FUZZ_SECONDS for longer",
        seconds: (195, 190),
        slow: true,
        run: fuzz,
    },
    Step {
        name: "doc-tests",
        what: "the examples of the documentation",
        seconds: (5, 5),
        slow: false,
        run: doc_tests,
    },
    Step {
        name: "client-tests",
        what: "the client's tests, no features",
        seconds: (20, 5),
        slow: false,
        run: client_tests,
    },
    Step {
        name: "docs",
        what: "links, sentences and figures of the pages; their commands, run small",
        seconds: (25, 20),
        slow: false,
        run: docs::check,
    },
    Step {
        name: "doc",
        what: "the documentation of the code",
        seconds: (25, 1),
        slow: true,
        run: doc,
    },
    Step {
        name: "api",
        what: "what the published crates offer, against the lists of it",
        seconds: (20, 5),
        slow: true,
        run: api::check,
    },
    Step {
        name: "msrv",
        what: "the libraries, built with the oldest Rust they promise",
        seconds: (60, 1),
        slow: true,
        run: msrv::check,
    },
    Step {
        name: "package",
        what: "the published crates, built from their packages; the C library, installed",
        seconds: (60, 60),
        slow: true,
        run: package,
    },
    Step {
        name: "kernel",
        what: "a kernel with the series, built and tested in guests",
        seconds: (1650, 1150),
        slow: true,
        run: kernel,
    },
];

fn fmt(log: &mut Log) -> Result<Outcome> {
    if !has_subcommand("fmt") {
        return Ok(Outcome::Skipped("no cargo fmt (rustup component add rustfmt)".to_owned()));
    }
    log.command(cargo().args(["fmt", "--all", "--check"]))?;
    Ok(Outcome::Done)
}

fn clippy(log: &mut Log) -> Result<Outcome> {
    if !has_subcommand("clippy") {
        return Ok(Outcome::Skipped("no cargo clippy (rustup component add clippy)".to_owned()));
    }
    let args = ["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
    log.command(cargo().args(args))?;
    Ok(Outcome::Done)
}

/// Unit and integration tests of everything.
fn tests(log: &mut Log) -> Result<Outcome> {
    programs::run(log, &["--workspace", "--all-features"], None)?;
    Ok(Outcome::Done)
}

/// The client as a VMM gets it that asks for no feature. Beside the xtask its
/// dependencies have the features that they have in the workspace, so they are
/// built already.
fn client_tests(log: &mut Log) -> Result<Outcome> {
    let what = ["--package", "kvm-memslots", "--package", "kvm-memslots-xtask"];
    programs::run(log, &what, Some("client"))?;
    Ok(Outcome::Done)
}

/// What reads bytes from outside, and programs with the preload library, with
/// other input for each commit. The harnesses of each of the two run at a time.
fn fuzz(log: &mut Log) -> Result<Outcome> {
    const SECONDS: &str = "MEMSLOTS_FUZZ_SECONDS";
    const SEED: &str = "MEMSLOTS_FUZZ_SEED";
    let args = ["test", "--workspace", "--all-features", "--test", "fuzz", "--test", "random"];
    let mut test = cargo();
    test.args(args).args(["--no-fail-fast", "--", "--show-output"]);
    if env::var_os(SECONDS).is_none() {
        test.env(SECONDS, "60");
        if env::var_os(SEED).is_none() {
            // A run of the same commit finds the same.
            test.env(SEED, commit().to_string());
        }
    }
    run_tests(log, &mut test)
}

/// The first digits of the commit that is checked out as a number; 15 without git.
fn commit() -> u32 {
    let digits = git(&["rev-parse", "--short=8", "HEAD"]);
    digits.and_then(|digits| u32::from_str_radix(digits.get(..8)?, 16).ok()).unwrap_or(15)
}

/// The examples of the documentation.
fn doc_tests(log: &mut Log) -> Result<Outcome> {
    let args = ["test", "--workspace", "--all-features", "--doc", "--no-fail-fast"];
    run_tests(log, cargo().args(args))
}

fn run_tests(log: &mut Log, command: &mut Command) -> Result<Outcome> {
    let tests = log.tally.tests();
    log.command(command)?;
    if log.tally.tests() == tests {
        bail!("not one test ran");
    }
    Ok(Outcome::Done)
}

fn doc(log: &mut Log) -> Result<Outcome> {
    let args = ["doc", "--workspace", "--all-features", "--no-deps"];
    log.command(cargo().args(args).env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(Outcome::Done)
}

/// Packs what goes to a registry and builds it from the packages, each against
/// the packages of the others. Installs the C library.
fn package(log: &mut Log) -> Result<Outcome> {
    // Before 1.90 a package can't be built against one that is not on the
    // registry yet.
    let (version, needed) = (cargo_minor()?, 90);
    if version < needed {
        return Ok(Outcome::Skipped(format!("cargo is 1.{version}, it takes 1.{needed} or later")));
    }
    let published: Vec<Package> =
        packages()?.into_iter().filter(|member| member.published).collect();
    // What comes from a registry never changes for cargo: it would build
    // against what it unpacked or compiled of these packages another time.
    let dir = target().join("packages");
    forget(&dir)?;
    for unpacked in unpacked(&cargo_home()?, &published)? {
        forget(&unpacked)?;
    }
    // Offline, as the index of a registry is asked again for every package,
    // and one answer that fails would fail the check.
    log.command(cargo().args(["fetch", "--locked"]))?;
    let mut package = cargo();
    package.args(["package", "--offline", "--target-dir"]).arg(&dir);
    if !is_clean() {
        package.arg("--allow-dirty");
    }
    for member in &published {
        package.args(["--package", &member.name]);
    }
    log.command(&mut package)?;
    // The C library as its page says, with the features that it has by itself.
    let mut make = Command::new("make");
    make.arg("--directory").arg(root().join("client/capi")).arg("install");
    make.arg(format!("TARGET={}", dir.display()))
        .arg(format!("prefix={}", dir.join("c").display()));
    if run::exists("make") {
        log.command(make.env("CARGO_NET_OFFLINE", "true"))?;
    }
    Ok(Outcome::Done)
}

fn forget(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("can't remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Where cargo unpacks what comes from registries.
fn cargo_home() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("CARGO_HOME").filter(|dir| !dir.is_empty()) {
        return Ok(root().join(dir));
    }
    let home = env::home_dir().context("neither CARGO_HOME nor HOME is set")?;
    Ok(home.join(".cargo"))
}

/// Where any registry's copy of these packages is, or would be.
fn unpacked(home: &Path, packages: &[Package]) -> Result<Vec<PathBuf>> {
    let sources = home.join("registry/src");
    let registries = match std::fs::read_dir(&sources) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.with_context(|| format!("can't read {}", sources.display()))?,
    };
    let mut places = Vec::new();
    for registry in registries {
        let registry = registry.with_context(|| format!("{}", sources.display()))?.path();
        let place =
            |package: &Package| registry.join(format!("{}-{}", package.name, package.version));
        places.extend(packages.iter().map(place));
    }
    Ok(places)
}

/// The series, built and tested in guests; and the words of the documentation, now
/// that the kernel's source is there.
fn kernel(log: &mut Log) -> Result<Outcome> {
    let outcome = crate::kernel::check(&mut log.tally)?;
    if matches!(outcome, Outcome::Done) {
        docs::check_words(log)?;
    }
    Ok(outcome)
}

/// The 95 of cargo 1.95.0.
fn cargo_minor() -> Result<u32> {
    let output = cargo().arg("--version").output().context("can't run cargo")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let minor = said.split('.').nth(1).and_then(|minor| minor.parse().ok());
    minor.with_context(|| format!("cargo says it is {:?}", said.trim()))
}

fn has_subcommand(name: &str) -> bool {
    let output = cargo().args([name, "--version"]).stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success())
}

/// Whether what is in the tree is what was committed.
fn is_clean() -> bool {
    git(&["status", "--porcelain"]).is_some_and(|changed| changed.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_was_unpacked_of_a_package_is_found_in_every_registry() {
        let home = tempfile::tempdir().unwrap();
        let package =
            Package { name: "a".to_owned(), version: "0.1.0".to_owned(), ..Package::default() };
        let found = || unpacked(home.path(), std::slice::from_ref(&package)).unwrap();
        assert!(found().is_empty());
        let mut places = Vec::new();
        for registry in ["-0123", "index-4567"] {
            places.push(home.path().join("registry/src").join(registry).join("a-0.1.0"));
            std::fs::create_dir_all(places.last().unwrap()).unwrap();
        }
        let mut found = found();
        found.sort();
        assert_eq!(found, places);

        for place in found {
            forget(&place).unwrap();
            forget(&place).unwrap();
            assert!(!place.exists());
        }
    }
}
