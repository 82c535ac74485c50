//! A VMM as it is in Debian: QEMU, its libraries, and UEFI.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt;
use crate::kernel::initrd::GuestFile;
use crate::kernel::target::{self, Arch};
use crate::kernel::{cross, programs};

const PACKAGES: [&str; 2] = ["qemu-system-arm", "qemu-efi-aarch64"];
const QEMU: &str = "usr/bin/qemu-system-aarch64";
const FIRMWARE: &str = "usr/share/AAVMF";
/// Also where the guest has it.
const LINKER: &str = "lib/ld-linux-aarch64.so.1";

/// The library that is preloaded, in the guest.
pub(super) const PRELOAD: &str = "/vmm/preload.so";

/// Everything for the guest: under `/vmm` the VMM, its firmware and the library
/// to be preloaded, in `/lib` what they are linked with.
pub(super) fn files(arch: Arch) -> Result<Vec<GuestFile>> {
    let root = unpacked(arch)?;
    let preload = programs::library("kvm-memslots-preload", arch)?;
    let qemu = root.join(QEMU);
    let mut files = vec![
        file("vmm/qemu", &qemu, true)?,
        file(&PRELOAD[1..], &preload, false)?,
        file(LINKER, &root.join(LINKER), true)?,
        firmware("vmm/code.fd", &root.join(FIRMWARE).join("AAVMF_CODE.fd"))?,
        firmware("vmm/vars.fd", &root.join(FIRMWARE).join("AAVMF_VARS.fd"))?,
    ];
    for (name, path) in libraries(&[qemu, preload], &root)? {
        files.push(file(&format!("lib/{name}"), &path, false)?);
    }
    Ok(files)
}

/// Where the packages are unpacked. The machine may not have packages of `arch`.
fn unpacked(arch: Arch) -> Result<PathBuf> {
    let root = target::dir().join(format!("vmm-{}", arch.name()));
    if root.exists() {
        return Ok(root);
    }
    if !apt::available() {
        bail!("{} come from Debian, and there is no apt here", PACKAGES.join(" and "));
    }
    // Not `root` until it is whole.
    let unpacking = root.with_extension("unpacking");
    let _ = fs::remove_dir_all(&unpacking);
    fs::create_dir_all(&unpacking).with_context(|| format!("{}", unpacking.display()))?;
    let apt = if arch.is_own() {
        apt::Private::update(&target::dir().join("apt"))?
    } else {
        cross::foreign_apt(arch)?
    };
    apt.unpack(&PACKAGES, &unpacking)?;
    fs::rename(&unpacking, &root).with_context(|| format!("{}", root.display()))?;
    Ok(root)
}

fn file(path: &str, from: &Path, executable: bool) -> Result<GuestFile> {
    let content = fs::read(from).with_context(|| format!("{}", from.display()))?;
    Ok(GuestFile { path: path.to_owned(), content, executable })
}

/// Without the zeros at its end, most of its 64 MiB; the guest puts them back.
fn firmware(path: &str, from: &Path) -> Result<GuestFile> {
    let mut file = file(path, from, false)?;
    let used = file.content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    file.content.truncate(used);
    Ok(file)
}

/// What `programs` are linked with, and what that is linked with: names and
/// where they are in `root`.
fn libraries(programs: &[PathBuf], root: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut left = programs.to_vec();
    while let Some(program) = left.pop() {
        for name in needed(&program)? {
            if found.contains_key(&name) || LINKER.ends_with(&name) {
                continue;
            }
            let path =
                find(&name, root).with_context(|| format!("{} needs {name}", program.display()))?;
            left.push(path.clone());
            found.insert(name, path);
        }
    }
    Ok(found)
}

fn find(name: &str, root: &Path) -> Result<PathBuf> {
    let dirs = ["lib", "usr/lib"].into_iter().flat_map(|lib| {
        ["aarch64-linux-gnu", "x86_64-linux-gnu", ""].map(|arch| root.join(lib).join(arch))
    });
    let mut paths = dirs.map(|dir| dir.join(name));
    paths.find(|path| path.exists()).with_context(|| format!("no {name} in {}", root.display()))
}

/// The names of the libraries that `program` is linked with.
fn needed(program: &Path) -> Result<Vec<String>> {
    let mut readelf = Command::new("readelf");
    readelf.env("LC_ALL", "C").arg("--dynamic").arg(program);
    let output = readelf.output().context("can't run readelf (Debian: binutils)")?;
    if !output.status.success() {
        bail!("readelf does not read {}", program.display());
    }
    Ok(parse_needed(&String::from_utf8_lossy(&output.stdout)))
}

/// Names in `(NEEDED)  Shared library: [libc.so.6]`.
fn parse_needed(said: &str) -> Vec<String> {
    let name = |line: &str| {
        let (_, name) = line.split_once("(NEEDED)")?.1.split_once('[')?;
        Some(name.split_once(']')?.0.to_owned())
    };
    said.lines().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_needs() {
        let said = "Dynamic section at offset 0x1:\n  Tag        Type       Name/Value\n \
                    0x0000000000000001 (NEEDED)  Shared library: [libaio.so.1]\n \
                    0x0000000000000001 (NEEDED)  Shared library: [libc.so.6]\n \
                    0x000000000000000e (SONAME)  Library soname: [libx.so]\n";
        assert_eq!(parse_needed(said), ["libaio.so.1", "libc.so.6"]);
    }
}
