//! The kernel's own selftests for KVM, static.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::build::Kernel;
use super::initrd::Program;
use super::make::Make;
use super::target::{Arch, Target};
use super::{lock, logged, patch, tools};

/// Where the kernel's tree has them.
const FOLDER: &str = "tools/testing/selftests/kvm";

/// Builds the tests called `names` of the kernel's folder of KVM's selftests.
pub(super) fn build(target: &Target, kernel: &Kernel, names: &[&str]) -> Result<Vec<Program>> {
    // Another kernel may have been built there since.
    let _lock = lock::wait(&target.tree())?;
    patch::apply(target)?;
    let folder = kernel.make.source.join(FOLDER);
    let places: Vec<PathBuf> =
        names.iter().map(|name| place(&folder, target.arch, name)).collect::<Result<_>>()?;
    let log = target.dir().join("selftests.log");
    let say = |_: &str| true;
    let what = "building the kernel's selftests";
    let programs = compile(target.arch, &kernel.make, &target.dir(), what, &places, &log, say)?;
    programs.iter().map(|path| Program::of(path, target.arch)).collect()
}

/// Builds the tests at `places` in [`FOLDER`], below `dir`; `said` gets each
/// line of make's. Where they are.
pub(super) fn compile(
    arch: Arch,
    make: &Make,
    dir: &Path,
    what: &str,
    places: &[PathBuf],
    log: &Path,
    said: impl FnMut(&str) -> bool,
) -> Result<Vec<PathBuf>> {
    tools::for_selftests(arch)?;
    let (out, headers) = (dir.join("selftests"), dir.join("headers"));
    fs::create_dir_all(&out).with_context(|| format!("{}", out.display()))?;
    let install = format!("INSTALL_HDR_PATH={}", headers.display());
    make.run("the kernel's headers", &["headers_install", &install])?;

    let programs: Vec<PathBuf> = places.iter().map(|place| out.join(place)).collect();
    let mut command = make.command(&make.source.join(FOLDER));
    command
        .arg(format!("OUTPUT={}", out.display()))
        .arg(format!("KHDR_INCLUDES=-isystem {}", headers.join("include").display()))
        .arg("LDFLAGS=-static -pthread -no-pie")
        .args(&programs);
    logged::read(what, &mut command, log, false, said)?;
    Ok(programs)
}

/// The tests, as places in [`FOLDER`], whose source is among `files` and that
/// `arch` has.
pub(super) fn among(files: impl Iterator<Item = PathBuf>, arch: Arch) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = files
        .filter_map(|file| {
            let place = file.strip_prefix(FOLDER).ok()?.with_extension("");
            let folder = place.parent()?.to_str()?;
            let test = file.to_str()?.ends_with("_test.c") && folders(arch).contains(&folder);
            test.then_some(place)
        })
        .collect();
    places.sort();
    places.dedup();
    places
}

/// Where in `folder` test `name` is: in itself, or in one of its architecture,
/// called so before Linux 6.14 or after.
fn place(folder: &Path, arch: Arch, name: &str) -> Result<PathBuf> {
    let mut places = folders(arch).into_iter().map(|sub| Path::new(sub).join(name));
    places
        .find(|place| folder.join(place).with_extension("c").exists())
        .with_context(|| format!("no {name}.c in {}", folder.display()))
}

/// The folders of [`FOLDER`] that `arch` has tests in.
const fn folders(arch: Arch) -> [&'static str; 3] {
    match arch {
        Arch::X86_64 => ["", "x86", "x86_64"],
        Arch::Arm64 => ["", "arm64", "aarch64"],
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn tests_are_found_in_folders_of_either_name() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["a.c", "x86/b.c", "aarch64/c.c"] {
            fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
            fs::write(dir.path().join(file), "").unwrap();
        }
        let find = |arch, name| place(dir.path(), arch, name).ok();
        assert_eq!(find(Arch::X86_64, "a"), Some("a".into()));
        assert_eq!(find(Arch::X86_64, "b"), Some("x86/b".into()));
        assert_eq!(find(Arch::Arm64, "c"), Some("aarch64/c".into()));
        assert_eq!(find(Arch::Arm64, "b"), None);
    }

    #[test]
    fn tests_among_the_files_of_a_patch() {
        let files = ["a_test.c", "x86/b_test.c", "include/c.h", "lib/d.c", "a_test.c", "Makefile"];
        let files = || files.iter().map(|file| Path::new(FOLDER).join(file));
        let other = || std::iter::once(PathBuf::from("virt/kvm/e_test.c"));
        let found = |arch| among(files().chain(other()), arch);
        assert_eq!(found(Arch::X86_64), [Path::new("a_test"), Path::new("x86/b_test")]);
        assert_eq!(found(Arch::Arm64), [Path::new("a_test")]);
    }
}
