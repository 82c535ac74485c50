//! The workspace's own programs and tests, static, for the guest; and its
//! libraries, for what is linked dynamically there.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::cross::Toolchain;
use super::initrd::Program;
use super::target::Arch;
use super::{logged, target};
use crate::workspace;

/// A target of cargo's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Source {
    pub(super) package: &'static str,
    /// `bin` or `test`.
    pub(super) kind: &'static str,
    pub(super) name: &'static str,
}

/// Builds `sources`, for `arch`, optimised: the guest's processors are
/// emulated.
pub(super) fn build(sources: &[Source], arch: Arch) -> Result<Vec<Program>> {
    let toolchain = Toolchain::of(arch)?;
    let mut built = Vec::new();
    // `cargo test --bin` builds the unit tests of a binary, not the binary.
    for (kind, subcommand) in [("bin", &["build"][..]), ("test", &["test", "--no-run"])] {
        let sources: Vec<&Source> = sources.iter().filter(|source| source.kind == kind).collect();
        if !sources.is_empty() {
            let mut cargo = workspace::cargo();
            cargo.args(subcommand);
            toolchain.drive(&mut cargo);
            built.extend(link(cargo, &sources)?);
        }
    }
    sources.iter().map(|source| program(source, &built, arch)).collect()
}

/// Builds the shared library of `package` for `arch`; where it is.
pub(super) fn library(package: &str, arch: Arch) -> Result<PathBuf> {
    let mut cargo = workspace::cargo();
    cargo.arg("build");
    Toolchain::of(arch)?.drive(&mut cargo);
    cargo.args(["--release", "--lib", "--package", package]);
    cargo.args(["--message-format", "json-render-diagnostics", "--target-dir"]);
    // Not that of the static programs, whose flags are others.
    cargo.arg(target::dir().join("cargo-dynamic"));
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("RUSTFLAGS");
    let mut found = None;
    let log = target::dir().join("cargo-dynamic.log");
    logged::read(&format!("building {package}"), &mut cargo, &log, false, |line| {
        let Some(message) = message(line) else { return true };
        found = shared(&message, package).or(found.take());
        false
    })?;
    found.with_context(|| format!("cargo built no shared library of {package}"))
}

/// The shared library of `package` that `message` is about.
fn shared(message: &Value, package: &str) -> Option<PathBuf> {
    if message["reason"] != "compiler-artifact"
        || self::package(message["package_id"].as_str()?) != Some(package)
    {
        return None;
    }
    let files = message["filenames"].as_array()?.iter().filter_map(Value::as_str);
    let mut files = files.map(PathBuf::from);
    files.find(|file| file.extension().is_some_and(|is| is == "so"))
}

/// Runs `cargo` for `sources`; what it links.
fn link(mut cargo: Command, sources: &[&Source]) -> Result<Vec<Executable>> {
    // Some tests need them, and are left out without.
    cargo.args(["--release", "--all-features"]);
    cargo.args(["--message-format", "json-render-diagnostics", "--target-dir"]);
    cargo.arg(target::dir().join("cargo"));
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", "-C target-feature=+crt-static");
    // A guest has no debugger, and unpacks each of them by an emulated processor.
    cargo
        .env("CARGO_PROFILE_RELEASE_DEBUG", "none")
        .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
    for Source { package, kind, name } in sources {
        cargo.args(["--package", package]).arg(format!("--{kind}")).arg(name);
    }
    let mut linked = Vec::new();
    let log = target::dir().join("cargo.log");
    logged::read("building static programs", &mut cargo, &log, false, |line| {
        let Some(message) = message(line) else { return true };
        linked.extend(executable(&message));
        false
    })?;
    Ok(linked)
}

/// The program that `built` has for `source`.
fn program(source: &Source, built: &[Executable], arch: Arch) -> Result<Program> {
    let Source { package, kind, name } = source;
    let is = |e: &&Executable| e.package == *package && e.kind == *kind && e.name == *name;
    let executable = built
        .iter()
        .find(is)
        .with_context(|| format!("cargo built no {kind} {name} of {package}"))?;
    Program::of(&executable.path, arch).map(|program| program.named(name))
}

/// What cargo has linked.
#[derive(Debug, PartialEq)]
struct Executable {
    package: String,
    kind: String,
    name: String,
    path: PathBuf,
}

/// A message of cargo's, if `line` is one.
fn message(line: &str) -> Option<Value> {
    line.starts_with("{\"reason\"").then(|| serde_json::from_str(line).ok()).flatten()
}

fn executable(message: &Value) -> Option<Executable> {
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    let path = message["executable"].as_str()?.into();
    let target = &message["target"];
    let test = message["profile"]["test"].as_bool()? && target["kind"][0] == "bin";
    // The unit tests of a binary, which has the same name.
    if test {
        return None;
    }
    Some(Executable {
        package: package(message["package_id"].as_str()?)?.to_owned(),
        kind: target["kind"][0].as_str()?.to_owned(),
        name: target["name"].as_str()?.to_owned(),
        path,
    })
}

/// The name in `path+file:///a/shim#kvm-memslots-shim@0.1.0` or, where the
/// folder is called as the package is, `path+file:///a/shim#0.1.0`.
fn package(id: &str) -> Option<&str> {
    let (url, fragment) = id.rsplit_once('#')?;
    match fragment.split_once('@') {
        Some((name, _)) => Some(name),
        None => url.rsplit('/').next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(test: bool, kind: &str, executable: &str) -> String {
        format!(
            "{{\"reason\":\"compiler-artifact\",\"package_id\":\
             \"path+file:///w/shim#kvm-memslots-shim@0.1.0\",\"target\":{{\"kind\":[\"{kind}\"],\
             \"name\":\"kvm\"}},\"profile\":{{\"test\":{test}}},\"executable\":{executable}}}"
        )
    }

    fn read(line: &str) -> Option<Executable> {
        message(line).as_ref().and_then(executable)
    }

    #[test]
    fn executables_of_messages() {
        let expected = Executable {
            package: "kvm-memslots-shim".to_owned(),
            kind: "test".to_owned(),
            name: "kvm".to_owned(),
            path: "/w/kvm-1".into(),
        };
        assert_eq!(read(&artifact(true, "test", "\"/w/kvm-1\"")), Some(expected));
        assert_eq!(read(&artifact(true, "test", "null")), None);
        assert_eq!(read(&artifact(true, "bin", "\"/w/kvm-1\"")), None);
        assert!(read(&artifact(false, "bin", "\"/w/kvm-1\"")).is_some());
        assert_eq!(read("{\"reason\":\"build-finished\",\"success\":true}"), None);
        assert_eq!(read("   Compiling x"), None);
    }

    #[test]
    fn shared_libraries_of_messages() {
        let line = "{\"reason\":\"compiler-artifact\",\"package_id\":\
                    \"path+file:///w/preload#kvm-memslots-preload@0.1.0\",\
                    \"filenames\":[\"/w/libx.rlib\",\"/w/libx.so\"]}";
        let read = |package| message(line).and_then(|message| shared(&message, package));
        assert_eq!(read("kvm-memslots-preload"), Some("/w/libx.so".into()));
        assert_eq!(read("kvm-memslots"), None);
    }

    #[test]
    fn names_of_packages() {
        assert_eq!(
            package("path+file:///w/shim#kvm-memslots-shim@0.1.0"),
            Some("kvm-memslots-shim")
        );
        assert_eq!(package("path+file:///w/shim#0.1.0"), Some("shim"));
        assert_eq!(package("shim"), None);
    }
}
