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

/// A VMM that is published as crates.
#[derive(Debug)]
pub(in crate::kernel::vmm) struct Published {
    /// The crate that it is known as, and its only version that the patch is for.
    pub(super) name: &'static str,
    pub(in crate::kernel::vmm) version: &'static str,
    /// Dependencies that make cargo fetch all of it.
    pub(super) fetched: &'static str,
    /// Those of its packages that are built in a workspace, and so can be changed.
    pub(super) packages: &'static [&'static str],
    /// The package whose program runs, and the program.
    pub(super) program: (&'static str, &'static str),
    /// The package that is patched, and the patch.
    pub(super) patch: (&'static str, &'static str),
    /// Of what is only a library, the program that starts it: its manifest and
    /// what it does.
    pub(super) own: Option<(&'static str, &'static str)>,
}

impl Published {
    /// Where everything of it is kept.
    pub(super) fn base(&self) -> PathBuf {
        workspace::target().join("vmm").join(format!("{}-{}", self.name, self.version))
    }

    /// The program, static, built if it is not.
    pub(in crate::kernel::vmm) fn built(&self, way: Way) -> Result<PathBuf> {
        let dir = self.base().join(way.name());
        self.prepared(way, &dir)?;
        let (package, binary) = self.program;
        let mut cargo = workspace::cargo();
        // Only what is linked says where it is: the target folder is that of both
        // ways, which share what they depend on.
        cargo.current_dir(&dir).args(["build", "--release", "--package", package]);
        cargo.args(["--target", Arch::X86_64.triple(), "--target-dir"]);
        cargo.arg(self.base().join("build"));
        cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
        cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
        let log = dir.join("build.log");
        logged::run(&format!("building {}, {}", self.name, way.name()), &mut cargo, &log, false)?;
        let triple = Arch::X86_64.triple();
        let linked = self.base().join("build").join(triple).join("release").join(binary);
        let program = dir.join(format!("{}-{}", self.name, way.name()));
        fs::copy(&linked, &program).with_context(|| format!("{}", linked.display()))?;
        Ok(program)
    }

    /// A workspace in `dir` with the published source, patched if `way` says so.
    fn prepared(&self, way: Way, dir: &Path) -> Result<()> {
        let stamp = dir.join("stamp");
        let own = self.own.map(|(manifest, main)| hash(manifest) ^ hash(main)).unwrap_or_default();
        let wanted = match way {
            Way::Today => format!("as published, {own:016x}"),
            Way::Ours => format!("{:016x}, {own:016x}", hash(self.patch.1)),
        };
        if fs::read_to_string(&stamp).is_ok_and(|is| is == wanted) {
            return Ok(());
        }
        let (fetched, vendor) = self.fetched()?;
        let _ = fs::remove_dir_all(dir);
        for package in self.packages {
            copy(&vendor.join(package), &dir.join(package))?;
        }
        let (package, _) = self.program;
        let mut lock = dir.join(package).join("Cargo.lock");
        if let Some((manifest, main)) = self.own {
            let own = dir.join(package);
            fs::create_dir_all(own.join("src")).with_context(|| format!("{}", own.display()))?;
            fs::write(own.join("Cargo.toml"), manifest).context("Cargo.toml")?;
            fs::write(own.join("src/main.rs"), main).context("main.rs")?;
            lock = fetched.join("Cargo.lock");
        }
        // What the authors built it with, where they say.
        fs::copy(&lock, dir.join("Cargo.lock")).context("Cargo.lock")?;
        fs::write(dir.join("Cargo.toml"), self.manifest(way)).context("Cargo.toml")?;
        if way == Way::Ours {
            let (package, text) = self.patch;
            let patch = dir.join("our.patch");
            fs::write(&patch, text).context("our.patch")?;
            let mut command = Command::new("patch");
            command.current_dir(dir.join(package)).args(["-p1", "--force", "--input"]).arg(&patch);
            logged::run("patching", &mut command, &dir.join("patch.log"), false)?;
        }
        fs::write(&stamp, wanted).context("stamp")
    }

    /// The workspace: its packages, and ours where the patch asks for them.
    fn manifest(&self, way: Way) -> String {
        let mut members = self.packages.to_vec();
        if self.own.is_some() {
            members.push(self.program.0);
        }
        let mut lines = vec![
            format!("[workspace]\nmembers = {members:?}\nresolver = \"3\"\n"),
            "[patch.crates-io]".to_owned(),
        ];
        // A program is nobody's dependency.
        let libraries = self.packages.iter().filter(|package| **package != self.program.0);
        lines.extend(libraries.map(|package| format!("{package} = {{ path = {package:?} }}")));
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

    /// The folder in which all was fetched, if it was not, and that with the
    /// packages as published.
    fn fetched(&self) -> Result<(PathBuf, PathBuf)> {
        let dir = self.base().join("fetch");
        let vendor = dir.join("vendor");
        let here = |package: &&str| vendor.join(package).exists();
        if self.packages.iter().all(here) {
            return Ok((dir, vendor));
        }
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("src")).with_context(|| format!("{}", dir.display()))?;
        fs::write(dir.join("src/lib.rs"), "").context("src/lib.rs")?;
        // A program as a dependency is of no use but to be fetched.
        let manifest = format!(
            "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
             [dependencies]\n{}\n[workspace]\n",
            self.fetched
        );
        fs::write(dir.join("Cargo.toml"), manifest).context("Cargo.toml")?;
        let mut cargo = workspace::cargo();
        cargo.current_dir(&dir).args(["vendor", "--quiet", "vendor"]);
        let log = dir.join("fetch.log");
        let what = format!("fetching {} {}", self.name, self.version);
        logged::run(&what, &mut cargo, &log, false)?;
        if let Some(missing) = self.packages.iter().find(|package| !here(package)) {
            bail!("cargo vendor left no {missing} in {}", vendor.display());
        }
        Ok((dir, vendor))
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
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
    use super::super::{alioth, libkrun};
    use super::*;

    const ALL: [&Published; 2] = [&alioth::SPEC.published, &libkrun::SPEC.published];

    #[test]
    fn only_our_way_has_our_crates() {
        for published in ALL {
            assert!(!published.manifest(Way::Today).contains("kvm-memslots"));
            let ours = published.manifest(Way::Ours);
            assert!(ours.contains("kvm-memslots = { path = "), "{ours}");
            for line in ours.lines().filter(|line| line.starts_with("kvm-memslots")) {
                let path = line.split('"').nth(1).unwrap_or_default();
                assert!(Path::new(path).join("Cargo.toml").exists(), "{line}");
            }
        }
    }
}
