//! What the VMM's guest is: Debian's kernel for clouds, its modules for virtio,
//! busybox.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::apt;
use crate::kernel::initrd::{self, GuestFile};
use crate::kernel::target::Arch;

const INIT: &str = include_str!("init.sh");

/// In an order in which each finds what it needs.
const MODULES: [&str; 8] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "rng-core",
    "virtio-rng",
];

/// A kernel and its first file system.
#[derive(Debug)]
pub(super) struct VmmGuest {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
}

/// The guest, in a folder of `base`, fetched from Debian if it is not there.
pub(super) fn unpacked(base: &Path) -> Result<VmmGuest> {
    let dir = base.join("guest");
    let root = dir.join("root");
    if !root.exists() {
        fetch(&dir, &root)?;
    }
    let kernel = only(&root.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    let initrd = dir.join("initrd.cpio");
    fs::write(&initrd, initrd::plain(&files(&root)?))
        .with_context(|| format!("{}", initrd.display()))?;
    Ok(VmmGuest { kernel, initrd })
}

fn fetch(dir: &Path, root: &Path) -> Result<()> {
    if !apt::available() {
        bail!("the guest's kernel comes from Debian, and there is no apt here");
    }
    let apt = apt::Private::update(&dir.join("apt"))?;
    let kernel = newest(apt.names("linux-image-")?).context("Debian has no kernel for clouds")?;
    // Not `root` until it is whole.
    let unpacking = dir.join("unpacking");
    let _ = fs::remove_dir_all(&unpacking);
    fs::create_dir_all(&unpacking).with_context(|| format!("{}", unpacking.display()))?;
    apt.unpack_alone(&[&kernel], &unpacking)?;
    fs::rename(&unpacking, root).with_context(|| format!("{}", root.display()))
}

/// Of the names of packages, that of the newest kernel for clouds.
fn newest(names: Vec<String>) -> Option<String> {
    let numbers = |name: &str| -> Option<Vec<u32>> {
        let version = name.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64")?;
        // Those of backports have more than numbers in their names, packages that
        // only depend on others have fewer.
        let numbers: Option<Vec<u32>> =
            version.split(['.', '-']).map(|number| number.parse().ok()).collect();
        numbers.filter(|numbers| numbers.len() == 4)
    };
    let all = names.into_iter().filter_map(|name| Some((numbers(&name)?, name)));
    all.max().map(|(_, name)| name)
}

fn files(root: &Path) -> Result<Vec<GuestFile>> {
    let file = |path: &str, content: Vec<u8>, executable| GuestFile {
        path: path.to_owned(),
        content,
        executable,
    };
    let mut files = vec![
        file("init", INIT.as_bytes().to_owned(), true),
        file("bin/busybox", initrd::busybox(Arch::X86_64)?.content().to_owned(), true),
    ];
    let mut order = String::new();
    for module in MODULES {
        // What the kernel has built in is no file.
        if let Some(path) = find(&root.join("lib/modules"), &format!("{module}.ko"))? {
            let content = fs::read(&path).with_context(|| format!("{}", path.display()))?;
            files.push(file(&format!("modules/{module}.ko"), content, false));
            order.push_str(module);
            order.push_str(".ko\n");
        }
    }
    files.push(file("modules/order", order.into_bytes(), false));
    Ok(files)
}

/// The file called `name` somewhere below `dir`.
fn find(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir).with_context(|| format!("{}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&entry.path(), name)? {
                return Ok(Some(found));
            }
        } else if entry.file_name() == name {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn only(dir: &Path, is: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("{}", dir.display()))?;
    let mut all = entries.flatten().filter(|entry| is(&entry.file_name().to_string_lossy()));
    let found = all.next().with_context(|| format!("not in {}", dir.display()))?;
    Ok(found.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-48-cloud-amd64",
            "linux-image-6.1.0-49-amd64",
            "linux-image-6.12.9+bpo-cloud-amd64",
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64-dbg",
            "linux-image-cloud-amd64",
        ];
        let newest = newest(names.map(str::to_owned).to_vec());
        assert_eq!(newest.as_deref(), Some("linux-image-6.1.0-48-cloud-amd64"));
    }
}
