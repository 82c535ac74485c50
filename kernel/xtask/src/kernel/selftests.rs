//! The kernel's own selftests for KVM, static.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::build::Kernel;
use super::initrd::Program;
use super::target::{Arch, Target};
use super::{logged, tools};

/// Builds the tests called `names` of the kernel's folder of KVM's selftests.
pub(super) fn build(target: &Target, kernel: &Kernel, names: &[&str]) -> Result<Vec<Program>> {
    tools::for_selftests(target.arch)?;
    let dir = target.dir().join("selftests");
    let headers = target.dir().join("headers");
    fs::create_dir_all(&dir).with_context(|| format!("{}", dir.display()))?;
    let make = &kernel.make;
    let install = format!("INSTALL_HDR_PATH={}", headers.display());
    make.run("the kernel's headers", &["headers_install", &install])?;

    let folder = make.source.join("tools/testing/selftests/kvm");
    let programs: Vec<PathBuf> = names
        .iter()
        .map(|name| place(&folder, target.arch, name).map(|place| dir.join(place)))
        .collect::<Result<_>>()?;
    let mut command = make.command(&folder);
    command
        .arg(format!("OUTPUT={}", dir.display()))
        .arg(format!("KHDR_INCLUDES=-isystem {}", headers.join("include").display()))
        .arg("LDFLAGS=-static -pthread -no-pie")
        .args(&programs);
    let log = target.dir().join("selftests.log");
    logged::run("building the kernel's selftests", &mut command, &log, false)?;
    programs.iter().map(|path| Program::of(path, target.arch)).collect()
}

/// Where in `folder` test `name` is: in itself, or in one of its architecture,
/// called so before Linux 6.14 or after.
fn place(folder: &Path, arch: Arch, name: &str) -> Result<PathBuf> {
    let folders = match arch {
        Arch::X86_64 => ["", "x86", "x86_64"],
        Arch::Arm64 => ["", "arm64", "aarch64"],
    };
    let mut places = folders.iter().map(|sub| Path::new(sub).join(name));
    places
        .find(|place| folder.join(place).with_extension("c").exists())
        .with_context(|| format!("no {name}.c in {}", folder.display()))
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
}
