//! Where the workspace is and what cargo says of it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// The root of the workspace.
pub(crate) fn root() -> &'static Path {
    // kernel/xtask
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("."))
}

/// `target/` or what stands in for it, where tasks keep what they fetch and
/// build.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The cargo that runs this, in the root of the workspace.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// What git says of the workspace; nothing where it can't.
pub(crate) fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).current_dir(root()).output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(said)
}

/// A member of the workspace.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Where its `Cargo.toml` is.
    pub(crate) dir: PathBuf,
    /// Whether it goes to a registry.
    pub(crate) published: bool,
    /// The Rust it promises to build with.
    pub(crate) rust_version: Option<String>,
    /// What cargo builds of it: kind (`bin`, `test`, ...) and name.
    pub(crate) targets: Vec<(String, String)>,
}

/// The members of the workspace.
pub(crate) fn packages() -> Result<Vec<Package>> {
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("can't run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    parse_packages(&output.stdout)
}

fn parse_packages(metadata: &[u8]) -> Result<Vec<Package>> {
    let metadata: Value = serde_json::from_slice(metadata).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let target = |target: &Value| {
        let (kind, name) = (target["kind"][0].as_str()?, target["name"].as_str()?);
        Some((kind.to_owned(), name.to_owned()))
    };
    let parse = |package: &Value| {
        Some(Package {
            name: package["name"].as_str()?.to_owned(),
            version: package["version"].as_str()?.to_owned(),
            dir: Path::new(package["manifest_path"].as_str()?).parent()?.to_owned(),
            // A list of registries, empty for `publish = false`, null for any.
            published: package["publish"].as_array().is_none_or(|to| !to.is_empty()),
            rust_version: package["rust_version"].as_str().map(str::to_owned),
            targets: package["targets"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(target)
                .collect(),
        })
    };
    packages.iter().map(|package| parse(package).context("a package without a name")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn packages_of_metadata() {
        let metadata = br#"{"packages": [
            {"name": "a", "manifest_path": "/w/a/Cargo.toml", "version": "0.1.0", "publish": null, "rust_version": "1.85",
             "targets": [{"kind": ["test"], "name": "t"}]},
            {"name": "b", "manifest_path": "/w/b/Cargo.toml", "version": "0.1.0", "publish": [], "rust_version": null},
            {"name": "c", "manifest_path": "/w/c/Cargo.toml", "version": "0.1.0", "publish": ["here"]}]}"#;
        let package = |name: &str, published, rust_version: Option<&str>| Package {
            name: name.to_owned(),
            version: "0.1.0".to_owned(),
            dir: Path::new("/w").join(name),
            published,
            rust_version: rust_version.map(str::to_owned),
            targets: Vec::new(),
        };
        let a = Package {
            targets: vec![("test".to_owned(), "t".to_owned())],
            ..package("a", true, Some("1.85"))
        };
        assert_eq!(
            parse_packages(metadata).unwrap(),
            [a, package("b", false, None), package("c", true, None)]
        );
        assert!(parse_packages(b"{}").is_err());
    }

    /// Packages with the features that a build of `what` gives them.
    fn with_features(what: &[&str]) -> BTreeSet<String> {
        let mut tree = cargo();
        tree.args(["tree", "--offline", "--prefix", "none", "--format", "{p} [{f}]"]).args(what);
        let output = tree.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).unwrap();
        lines.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
    }

    /// Else `cargo xtask test` begins by building this program and what it stands
    /// on, and builds both again as a part of the workspace.
    #[test]
    fn this_is_built_once() {
        let alone = with_features(&["--package", "kvm-memslots-xtask", "--edges", "normal,build"]);
        let all = ["--workspace", "--all-features", "--edges", "normal,build,dev"];
        let all = with_features(&all);
        let other: Vec<_> = alone.difference(&all).collect();
        assert!(other.is_empty(), "features that only kernel/xtask/Cargo.toml has: {other:?}");
    }

    #[test]
    fn root_is_the_workspace() {
        let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[workspace]"));
    }
}
