//! The kernel's own selftests for KVM, static.

use std::fs;

use anyhow::{Context as _, Result};

use super::build::Kernel;
use super::initrd::Program;
use super::target::Target;
use super::{logged, tools};

/// Builds the tests called `names` from the kernel's tree.
pub(super) fn build(target: &Target, kernel: &Kernel, names: &[&str]) -> Result<Vec<Program>> {
    tools::for_selftests(target.arch)?;
    let dir = target.dir().join("selftests");
    let headers = target.dir().join("headers");
    fs::create_dir_all(&dir).with_context(|| format!("{}", dir.display()))?;
    let make = &kernel.make;
    let install = format!("INSTALL_HDR_PATH={}", headers.display());
    make.run("the kernel's headers", &["headers_install", &install])?;

    let programs: Vec<_> = names.iter().map(|name| dir.join(name)).collect();
    let mut command = make.command(&make.source.join("tools/testing/selftests/kvm"));
    command
        .arg(format!("OUTPUT={}", dir.display()))
        .arg(format!("KHDR_INCLUDES=-isystem {}", headers.join("include").display()))
        .arg("LDFLAGS=-static -pthread -no-pie")
        .args(&programs);
    let log = target.dir().join("selftests.log");
    logged::run("building the kernel's selftests", &mut command, &log, false)?;
    programs.iter().map(|path| Program::of(path, target.arch)).collect()
}
