//! A VMM's source from the registry that cargo has, patched and built.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::kernel::logged;
use crate::kernel::target::Arch;
use crate::kernel::vmm::which::Way;
use crate::workspace;

/// Another one needs another patch.
pub(super) const VERSION: &str = "0.12.0";
const PROGRAM: &str = "alioth-cli";
const LIBRARY: &str = "alioth";
const PATCH: &str = include_str!("../../../../../vmm/alioth.patch");

/// Where everything of it is kept.
pub(super) fn base() -> PathBuf {
    workspace::target().join("vmm").join(format!("{LIBRARY}-{VERSION}"))
}

/// The program, static, built if it is not.
pub(in crate::kernel::vmm) fn built(way: Way) -> Result<PathBuf> {
    let dir = base().join(way.name());
    prepared(way, &dir)?;
    let mut cargo = workspace::cargo();
    // Only what is linked says where it is: the target folder is that of both
    // ways, which share what they depend on.
    cargo.current_dir(&dir).args(["build", "--release", "--package", PROGRAM]);
    cargo.args(["--target", Arch::X86_64.triple(), "--target-dir"]).arg(base().join("build"));
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", "-C target-feature=+crt-static");
    logged::run(
        &format!("building {LIBRARY}, {}", way.name()),
        &mut cargo,
        &dir.join("build.log"),
        false,
    )?;
    let linked = base().join("build").join(Arch::X86_64.triple()).join("release").join(LIBRARY);
    let program = dir.join(format!("{LIBRARY}-{}", way.name()));
    fs::copy(&linked, &program).with_context(|| format!("{}", linked.display()))?;
    Ok(program)
}

/// A workspace in `dir` with the published source, patched if `way` says so.
fn prepared(way: Way, dir: &Path) -> Result<()> {
    let stamp = dir.join("stamp");
    let wanted = match way {
        Way::Today => "as published".to_owned(),
        Way::Ours => format!("{:016x}", hash(PATCH)),
    };
    if fs::read_to_string(&stamp).is_ok_and(|is| is == wanted) {
        return Ok(());
    }
    let published = fetched()?;
    let _ = fs::remove_dir_all(dir);
    for package in [LIBRARY, PROGRAM] {
        copy(&published.join(package), &dir.join(package))?;
    }
    // What the authors built it with.
    fs::copy(dir.join(PROGRAM).join("Cargo.lock"), dir.join("Cargo.lock")).context("Cargo.lock")?;
    fs::write(dir.join("Cargo.toml"), manifest(way)).context("Cargo.toml")?;
    if way == Way::Ours {
        let patch = dir.join("our.patch");
        fs::write(&patch, PATCH).context("our.patch")?;
        let mut command = Command::new("patch");
        command.current_dir(dir.join(LIBRARY)).args(["-p1", "--force", "--input"]).arg(&patch);
        logged::run("patching", &mut command, &dir.join("patch.log"), false)?;
    }
    fs::write(&stamp, wanted).context("stamp")
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// The workspace: both packages, and ours where the patch asks for it.
fn manifest(way: Way) -> String {
    let mut lines = vec![
        format!("[workspace]\nmembers = [\"{LIBRARY}\", \"{PROGRAM}\"]\nresolver = \"3\"\n"),
        format!("[patch.crates-io]\n{LIBRARY} = {{ path = \"{LIBRARY}\" }}"),
    ];
    if way == Way::Ours {
        let all = [
            ("kvm-memslots", "client"),
            ("kvm-memslots-shim", "shim"),
            ("kvm-memslots-uapi", "uapi"),
        ];
        lines.extend(all.map(|(name, folder)| {
            let path = workspace::root().join(folder).display().to_string();
            format!("{name} = {{ path = {path:?} }}")
        }));
    }
    lines.join("\n") + "\n"
}

/// The folder with both packages as published, fetched if they are not there.
fn fetched() -> Result<PathBuf> {
    let dir = base().join("fetch");
    let vendor = dir.join("vendor");
    if vendor.join(PROGRAM).exists() && vendor.join(LIBRARY).exists() {
        return Ok(vendor);
    }
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("src")).with_context(|| format!("{}", dir.display()))?;
    fs::write(dir.join("src/lib.rs"), "").context("src/lib.rs")?;
    // A program as a dependency is of no use but to be fetched.
    let manifest = format!(
        "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
         [dependencies]\n{PROGRAM} = \"={VERSION}\"\n{LIBRARY} = \"={VERSION}\"\n\n[workspace]\n"
    );
    fs::write(dir.join("Cargo.toml"), manifest).context("Cargo.toml")?;
    let mut cargo = workspace::cargo();
    cargo.current_dir(&dir).args(["vendor", "--quiet", "vendor"]);
    logged::run(
        &format!("fetching {LIBRARY} {VERSION}"),
        &mut cargo,
        &dir.join("fetch.log"),
        false,
    )?;
    if !vendor.join(PROGRAM).exists() {
        bail!("cargo vendor left no {PROGRAM} in {}", vendor.display());
    }
    Ok(vendor)
}

/// Copies a folder, without what cargo keeps there for itself.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("{}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("{}", from.display()))? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&from, &to)?;
        } else if entry.file_name() != ".cargo-checksum.json" {
            fs::copy(&from, &to).with_context(|| format!("{}", from.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_way_has_our_crates() {
        assert!(!manifest(Way::Today).contains("kvm-memslots"));
        let ours = manifest(Way::Ours);
        assert!(ours.contains("kvm-memslots = { path = "), "{ours}");
        for line in ours.lines().filter(|line| line.starts_with("kvm-memslots")) {
            let path = line.split('"').nth(1).unwrap_or_default();
            assert!(Path::new(path).join("Cargo.toml").exists(), "{line}");
        }
    }

    /// A patch is a diff of ours, not a copy of theirs.
    #[test]
    fn the_patch_is_small() {
        let count = |sign: &str, header: &str| {
            PATCH.lines().filter(|line| line.starts_with(sign) && !line.starts_with(header)).count()
        };
        assert!(count("+", "+++") < 350 && count("-", "---") < 400);
        assert!(PATCH.lines().all(|line| !line.starts_with("+++ /")));
    }
}
