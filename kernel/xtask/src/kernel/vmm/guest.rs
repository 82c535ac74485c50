//! What the VMM's guest is: Debian's kernel for clouds, its modules for virtio,
//! busybox.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::kernel::initrd::{self, GuestFile};
use crate::kernel::target::Arch;
use crate::{apt, run, workspace};

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

impl VmmGuest {
    /// The same with its kernel as the ELF file that is in it, for VMMs that unpack
    /// none of how Debian packs it.
    pub(super) fn elf(self) -> Result<Self> {
        let image = fs::read(&self.kernel).with_context(|| format!("{}", self.kernel.display()))?;
        let packed = payload(&image).context("not a bzImage with an LZ4 payload")?;
        if !run::exists("lz4") {
            if !(apt::available() && apt::may_install()) {
                bail!("lz4 unpacks the guest's kernel, and is not here (Debian: lz4)");
            }
            apt::install(&["lz4"])?;
        }
        let elf = self.initrd.with_file_name("vmlinux");
        let file = self.initrd.with_file_name("vmlinux.lz4");
        fs::write(&file, packed).with_context(|| format!("{}", file.display()))?;
        let mut command = Command::new("lz4");
        command.args(["-d", "-f", "-q"]).arg(&file).arg(&elf);
        let status = command.status().context("lz4")?;
        if !status.success() {
            bail!("{}: {status}", run::shown(&command));
        }
        Ok(Self { kernel: elf, ..self })
    }
}

/// What is packed in a bzImage (`Documentation/arch/x86/boot.rst`), if by LZ4:
/// the real-mode code's sectors are before it, and its size in the end behind.
fn payload(image: &[u8]) -> Option<&[u8]> {
    const SETUP_SECTORS: usize = 0x1f1;
    const OFFSET: usize = 0x248;
    const LENGTH: usize = 0x24c;
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let start = (usize::from(*image.get(SETUP_SECTORS)?) + 1) * 512 + word(OFFSET)?;
    let packed = image.get(start..)?.get(..word(LENGTH)?.checked_sub(4)?)?;
    packed.starts_with(&[0x02, 0x21, 0x4c, 0x18]).then_some(packed)
}

/// The guest, fetched from Debian if it is not there.
pub(super) fn unpacked() -> Result<VmmGuest> {
    let dir = workspace::target().join("vmm").join("guest");
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

    #[test]
    fn what_a_kernel_image_has_packed() {
        let mut image = vec![0; 4 * 512];
        assert_eq!(payload(&image), None);
        image[0x1f1] = 1;
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&12_u32.to_le_bytes());
        assert_eq!(payload(&image), None, "packed in another way");
        image[1040..1044].copy_from_slice(&[0x02, 0x21, 0x4c, 0x18]);
        assert_eq!(payload(&image), Some(&[0x02, 0x21, 0x4c, 0x18, 0, 0, 0, 0][..]));
        image[0x24c..0x250].copy_from_slice(&9000_u32.to_le_bytes());
        assert_eq!(payload(&image), None, "cut short");
    }
}
