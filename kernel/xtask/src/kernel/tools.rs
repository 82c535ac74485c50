//! What the lab needs of the machine, installed where that is allowed.

use std::path::Path;

use anyhow::{Result, bail};

use super::target::Arch;
use crate::{apt, run};

/// Something that has to be there.
#[derive(Clone, Copy)]
struct Need {
    what: What,
    /// The Debian package that has it.
    package: &'static str,
}

#[derive(Clone, Copy)]
enum What {
    Program(&'static str),
    File(&'static str),
}

const fn program(name: &'static str, package: &'static str) -> Need {
    Need { what: What::Program(name), package }
}

const fn file(path: &'static str, package: &'static str) -> Need {
    Need { what: What::File(path), package }
}

const RSYNC: Need = program("rsync", "rsync");

const BUILD: [Need; 10] = [
    program("gcc", "gcc"),
    program("make", "make"),
    program("patch", "patch"),
    program("xz", "xz-utils"),
    program("flex", "flex"),
    program("bison", "bison"),
    program("bc", "bc"),
    program("ccache", "ccache"),
    file("/usr/include/gelf.h", "libelf-dev"),
    file("/usr/include/openssl/ssl.h", "libssl-dev"),
];

/// The cross compiler for `arch`, if that is not this machine's architecture,
/// and the C library that static programs are linked with.
fn cross(arch: Arch) -> Option<[Need; 2]> {
    match arch {
        _ if arch.is_own() => None,
        Arch::Arm64 => Some([
            program("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
            file("/usr/aarch64-linux-gnu/lib/libc.a", "libc6-dev-arm64-cross"),
        ]),
        Arch::X86_64 => Some([
            program("x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu"),
            file("/usr/x86_64-linux-gnu/lib/libc.a", "libc6-dev-amd64-cross"),
        ]),
    }
}

/// Installs what building a kernel for `arch` takes.
pub(super) fn for_build(arch: Arch) -> Result<()> {
    let mut needs = Vec::from(BUILD);
    needs.extend(cross(arch).into_iter().flatten());
    install(&needs)
}

/// Installs what building programs for `arch` takes beside Rust.
pub(super) fn for_programs(arch: Arch) -> Result<()> {
    install(cross(arch).as_ref().map_or(&[], <[Need; 2]>::as_slice))
}

/// Installs what building the kernel's selftests for `arch` takes.
pub(super) fn for_selftests(arch: Arch) -> Result<()> {
    for_programs(arch)?;
    install(&[RSYNC])
}

/// Installs what checking a series takes.
pub(super) fn for_check() -> Result<()> {
    install(&[program("perl", "perl")])
}

/// Whether sparse is there, installed if that can be done: without it there is
/// still much to check.
pub(super) fn sparse() -> bool {
    let sparse = install(&[program("sparse", "sparse")]);
    if let Err(e) = &sparse {
        run::say(&format!("note: no sparse: {e:#}"));
    }
    sparse.is_ok()
}

/// Why kernels can't be fetched, built and booted on this machine as they are
/// for every run of all checks, if they can't.
pub(super) fn out_of_reach(arch: Arch) -> Option<String> {
    if !arch.is_own() {
        return Some(format!("a kernel for {} is checked on such a machine", arch.name()));
    }
    if !apt::available() {
        return Some("no apt to fetch the kernel's source with".to_owned());
    }
    let mut needs = Vec::from(BUILD);
    needs.extend([RSYNC, emulator(arch)]);
    let missing = missing(&needs);
    if missing.is_empty() || apt::may_install() {
        return None;
    }
    Some(format!("missing; as root: apt-get install {}", missing.join(" ")))
}

/// QEMU's program for `arch`.
pub(super) fn qemu(arch: Arch) -> &'static str {
    match emulator(arch).what {
        What::Program(name) | What::File(name) => name,
    }
}

const fn emulator(arch: Arch) -> Need {
    match arch {
        Arch::X86_64 => program("qemu-system-x86_64", "qemu-system-x86"),
        Arch::Arm64 => program("qemu-system-aarch64", "qemu-system-arm"),
    }
}

/// Installs what booting a kernel for `arch` takes.
pub(super) fn for_boot(arch: Arch) -> Result<()> {
    install(&[emulator(arch)])
}

/// Installs `package` if `there` says no.
pub(super) fn ensure(package: &str, there: impl Fn() -> bool) -> Result<()> {
    if there() {
        return Ok(());
    }
    install_packages(&[package])?;
    if there() { Ok(()) } else { bail!("{package} does not have what is needed of it") }
}

fn install(needs: &[Need]) -> Result<()> {
    let packages = missing(needs);
    if packages.is_empty() {
        return Ok(());
    }
    install_packages(&packages)?;
    let packages = missing(needs);
    if packages.is_empty() {
        return Ok(());
    }
    bail!("installed, but without what is needed: {}", packages.join(" "))
}

/// The packages of those of `needs` that are not there.
fn missing(needs: &[Need]) -> Vec<&'static str> {
    needs.iter().filter(|need| !need.what.is_there()).map(|need| need.package).collect()
}

fn install_packages(packages: &[&str]) -> Result<()> {
    if apt::available() && apt::may_install() {
        return apt::install(packages);
    }
    bail!("missing; as root: apt-get install {}", packages.join(" "))
}

impl What {
    fn is_there(&self) -> bool {
        match self {
            Self::Program(name) => on_path(name),
            Self::File(path) => Path::new(path).exists(),
        }
    }
}

/// Whether there is a program `name`, whichever options it knows.
pub(super) fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_files() {
        assert!(on_path("sh") && What::Program("sh").is_there());
        assert!(!on_path("no-such-program"));
        assert!(What::File("/proc/self/exe").is_there());
        assert!(!What::File("/nonexistent").is_there());
    }
}
