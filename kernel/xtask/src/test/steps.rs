//! The checks that are calls of cargo.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::{Log, Outcome, Step, msrv};
use crate::workspace::{cargo, packages, root};

pub(super) const STEPS: [Step; 9] = [
    Step { name: "fmt", slow: false, run: fmt },
    Step { name: "clippy", slow: false, run: clippy },
    Step { name: "tests", slow: false, run: tests },
    Step { name: "doc-tests", slow: false, run: doc_tests },
    Step { name: "client-tests", slow: false, run: client_tests },
    Step { name: "doc", slow: false, run: doc },
    Step { name: "msrv", slow: true, run: msrv::check },
    Step { name: "package", slow: true, run: package },
    Step { name: "kernel", slow: true, run: kernel },
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
    cargo_test(log, &["--workspace", "--all-features"])
}

/// The client as a VMM gets it that asks for no feature.
fn client_tests(log: &mut Log) -> Result<Outcome> {
    cargo_test(log, &["--package", "kvm-memslots"])
}

fn cargo_test(log: &mut Log, what: &[&str]) -> Result<Outcome> {
    let targets = ["--lib", "--bins", "--tests", "--examples"];
    // Without --show-output a test that passes can't say that it skipped.
    let args = ["--no-fail-fast", "--", "--show-output"];
    run_tests(log, cargo().arg("test").args(what).args(targets).args(args))
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
/// the packages of the others.
fn package(log: &mut Log) -> Result<Outcome> {
    // Before 1.90 a package can't be built against one that is not on the
    // registry yet.
    let (version, needed) = (cargo_minor()?, 90);
    if version < needed {
        return Ok(Outcome::Skipped(format!("cargo is 1.{version}, it takes 1.{needed} or later")));
    }
    // Offline, as the index of a registry is asked again for every package,
    // and one answer that fails would fail the check.
    log.command(cargo().args(["fetch", "--locked"]))?;
    let mut package = cargo();
    package.args(["package", "--offline"]);
    if !is_clean() {
        package.arg("--allow-dirty");
    }
    for member in packages()?.into_iter().filter(|member| member.published) {
        package.args(["--package", &member.name]);
    }
    log.command(&mut package)?;
    Ok(Outcome::Done)
}

/// The series, built and tested in guests.
fn kernel(log: &mut Log) -> Result<Outcome> {
    crate::kernel::check(&mut log.tally)
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
    let status = Command::new("git").args(["status", "--porcelain"]).current_dir(root()).output();
    status.is_ok_and(|output| output.status.success() && output.stdout.is_empty())
}
