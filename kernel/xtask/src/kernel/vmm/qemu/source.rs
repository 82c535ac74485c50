//! QEMU's source from Debian, patched and built, with the C library where the
//! patch asks for it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt;
use crate::kernel::logged;
use crate::kernel::vmm::which::Way;
use crate::workspace;

/// Another one needs another patch.
const VERSION: &str = "7.2";
const PATCH: &str = include_str!("../../../../../vmm/qemu.patch");
const DEVICES: &str = include_str!("devices.mak");
const PROGRAM: &str = "qemu-system-x86_64";

/// What building it takes beside a compiler.
const PACKAGES: [&str; 8] = [
    "dpkg-dev",
    "meson",
    "ninja-build",
    "pkg-config",
    "patch",
    "libglib2.0-dev",
    "libpixman-1-dev",
    "libfdt-dev",
];

/// Static, so that it runs in the lab, too.
const CONFIGURE: [&str; 12] = [
    "--meson=meson",
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    "--without-default-devices",
    "--with-devices-x86_64=memslots",
    "--enable-system",
    "--enable-kvm",
    "--enable-fdt=system",
    "--disable-tcg",
    "--disable-tools",
    "--disable-docs",
    "--static",
];

/// Where everything of it is kept.
pub(super) fn base() -> PathBuf {
    workspace::target().join("vmm").join(format!("qemu-{VERSION}"))
}

/// The version in all its parts, of the source that is there.
pub(in crate::kernel::vmm) fn version() -> Result<String> {
    version_in(&base().join("source"))
}

fn version_in(source: &Path) -> Result<String> {
    let path = source.join("VERSION");
    let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    // Debian's has an epoch.
    Ok(text.trim().rsplit(':').next().unwrap_or_default().to_owned())
}

/// The program, static, built if it is not.
///
/// Both ways have one folder with the source and one with what is built, so that
/// the second is a matter of a few files.
pub(in crate::kernel::vmm) fn built(way: Way) -> Result<PathBuf> {
    let base = base();
    let program = base.join(format!("qemu-{}", way.name()));
    // As it is, it is always the same; ours changes with the library.
    let stamp = base.join("qemu-today.stamp");
    let today = format!("{VERSION}\n{}\n{DEVICES}", CONFIGURE.join("\n"));
    if way == Way::Today
        && program.exists()
        && fs::read_to_string(&stamp).is_ok_and(|is| is == today)
    {
        return Ok(program);
    }
    let (source, build) = (base.join("source"), base.join("build"));
    if !source.exists() {
        fetch(&base, &source)?;
    }
    patched(way, &source, &base.join("patched"))?;
    let prefix = base.join("prefix");
    if way == Way::Ours {
        library(&prefix)?;
    }
    if !build.join("build.ninja").exists() {
        configure(&source, &build, &prefix)?;
    }
    // Ninja does not look at libraries.
    let linked = build.join(PROGRAM);
    let _ = fs::remove_file(&linked);
    let mut ninja = Command::new("ninja");
    ninja.current_dir(&build).arg(PROGRAM).env("PATH", path()?);
    let log = base.join(format!("build-{}.log", way.name()));
    logged::run(&format!("building QEMU, {}", way.name()), &mut ninja, &log, false)?;
    // What another command runs stays whole.
    let new = base.join("qemu-new");
    let mut strip = Command::new("strip");
    strip.arg("-o").args([&new, &linked]);
    logged::run("stripping it", &mut strip, &log, true)?;
    fs::rename(&new, &program).with_context(|| format!("{}", program.display()))?;
    if way == Way::Today {
        fs::write(&stamp, today).with_context(|| format!("{}", stamp.display()))?;
    }
    Ok(program)
}

/// A folder with a BIOS, and what QEMU loads beside it, from Debian.
pub(super) fn firmware() -> Result<PathBuf> {
    let root = base().join("firmware");
    if !root.exists() {
        let apt = apt::Private::update(&base().join("apt-binary"))?;
        let unpacking = base().join("unpacking");
        let _ = fs::remove_dir_all(&unpacking);
        fs::create_dir_all(&unpacking).with_context(|| format!("{}", unpacking.display()))?;
        apt.unpack_alone(&["seabios", "qemu-system-data"], &unpacking)?;
        fs::rename(&unpacking, &root).with_context(|| format!("{}", root.display()))?;
    }
    Ok(root.join("usr/share"))
}

fn fetch(base: &Path, source: &Path) -> Result<()> {
    if !apt::available() {
        bail!("QEMU's source comes from Debian, and there is no apt here");
    }
    if apt::may_install() {
        apt::install(&PACKAGES)?;
    }
    let dir = base.join("apt");
    let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let suite = codename(&release).context("/etc/os-release has no VERSION_CODENAME")?;
    let mirror = apt::Private::update(&dir)?.mirror()?.context("apt knows no archive of Debian")?;
    let apt = apt::Private::sources_of_suite(&dir, &mirror, suite)?;
    // Not `source` until it is whole, and the right one.
    let unpacking = base.join("unpacking");
    let _ = fs::remove_dir_all(&unpacking);
    apt.source("qemu", &unpacking)?;
    let is = version_in(&unpacking)?;
    if !is.starts_with(&format!("{VERSION}.")) {
        bail!("{suite} has QEMU {is}, and kernel/vmm/qemu.patch is for {VERSION}");
    }
    let devices = unpacking.join("configs/devices/x86_64-softmmu/memslots.mak");
    fs::write(&devices, DEVICES).with_context(|| format!("{}", devices.display()))?;
    fs::rename(&unpacking, source).with_context(|| format!("{}", source.display()))
}

/// The suite that `release`, an `os-release`, is of.
fn codename(release: &str) -> Option<&str> {
    release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).map(str::trim)
}

/// Has the source in `dir` as `way` wants it. `applied` is the patch that it has.
fn patched(way: Way, dir: &Path, applied: &Path) -> Result<()> {
    let wanted = (way == Way::Ours).then_some(PATCH);
    let is = fs::read_to_string(applied).ok();
    if is.as_deref() == wanted {
        return Ok(());
    }
    let log = applied.with_extension("log");
    let patch = |args: &[&str], file: &Path| {
        let mut patch = Command::new("patch");
        patch.current_dir(dir).args(["-p1", "--force"]).args(args).arg("--input").arg(file);
        logged::run("patching QEMU", &mut patch, &log, true)
    };
    if is.is_some() {
        patch(&["--reverse"], applied)?;
        fs::remove_file(applied).with_context(|| format!("{}", applied.display()))?;
    }
    if let Some(wanted) = wanted {
        let new = applied.with_extension("new");
        fs::write(&new, wanted).with_context(|| format!("{}", new.display()))?;
        patch(&[], &new)?;
        fs::rename(&new, applied).with_context(|| format!("{}", applied.display()))?;
    }
    Ok(())
}

/// Installs the C library in `prefix`, as its README says.
fn library(prefix: &Path) -> Result<()> {
    let mut make = Command::new("make");
    make.arg("-C").arg(workspace::root().join("client/capi")).arg("install");
    make.arg(format!("prefix={}", prefix.display()));
    make.arg(format!("TARGET={}", workspace::target().display()));
    // Headers that stay as they are have nothing compiled again.
    make.arg("INSTALL=install -C");
    logged::run("installing the C library", &mut make, &prefix.with_extension("log"), false)
}

fn configure(source: &Path, build: &Path, prefix: &Path) -> Result<()> {
    fs::create_dir_all(build).with_context(|| format!("{}", build.display()))?;
    let mut configure = Command::new(source.join("configure"));
    configure.current_dir(build).args(CONFIGURE).env("PATH", path()?);
    // Meson keeps it, for when the patch asks for the library.
    configure.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
    let log = build.with_extension("log");
    logged::run("configuring QEMU", &mut configure, &log, false)
        .with_context(|| format!("building takes (Debian) {}", PACKAGES.join(", ")))
}

/// Debian's Python before any other: Debian's meson needs it.
fn path() -> Result<String> {
    Ok(format!("/usr/bin:{}", env::var("PATH").context("PATH")?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_suite_of_a_machine() {
        let release = "NAME=\"Debian\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(codename(release), Some("bookworm"));
        assert_eq!(codename("ID=debian\n"), None);
    }

    /// Each way gets its own source out of the other's.
    #[test]
    fn patched_and_back() {
        if !crate::run::exists("patch") {
            eprintln!("SKIPPED patched_and_back: no patch (Debian: patch)");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let applied = dir.path().join("applied");
        let source = dir.path().join("source");
        // Of each file that it changes, what the patch says was there.
        for file in PATCH.split("\n--- a/").skip(usize::from(!PATCH.starts_with("--- a/"))) {
            let (name, hunks) = file.split_once('\n').unwrap();
            let path = source.join(name.trim_start_matches("--- a/").split('\t').next().unwrap());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut text = Vec::new();
            for line in hunks.lines().skip(1) {
                if let Some(header) = line.strip_prefix("@@ -") {
                    let first: usize = header.split([',', ' ']).next().unwrap().parse().unwrap();
                    while text.len() + 1 < first {
                        text.push(String::from("other"));
                    }
                } else if let Some(was) = line.strip_prefix([' ', '-']) {
                    text.push(was.to_owned());
                }
            }
            fs::write(&path, text.join("\n") + "\n").unwrap();
        }
        let read = || fs::read_to_string(source.join("accel/kvm/kvm-all.c")).unwrap();
        let before = read();
        patched(Way::Today, &source, &applied).unwrap();
        assert_eq!(read(), before);
        for _ in 0..2 {
            patched(Way::Ours, &source, &applied).unwrap();
            assert!(read().contains("kvm_memslots_commit("));
        }
        patched(Way::Today, &source, &applied).unwrap();
        assert_eq!(read(), before);
    }
}
