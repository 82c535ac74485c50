//! make, as the kernel's tree wants it called.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::target::{Arch, Target};
use super::{logged, target, tools};

/// make, for one source tree and one build directory.
pub(super) struct Make {
    pub(super) source: PathBuf,
    pub(super) build: PathBuf,
    log: PathBuf,
    arch: Arch,
    ccache: bool,
}

impl Make {
    /// For a kernel as `target` is, in `build`.
    pub(super) fn new(
        target: &Target,
        source: PathBuf,
        build: PathBuf,
        log: PathBuf,
    ) -> Result<Self> {
        fs::create_dir_all(&build).with_context(|| format!("{}", build.display()))?;
        Ok(Self { source, build, log, arch: target.arch, ccache: tools::on_path("ccache") })
    }

    /// Runs make with `goals`, or settings.
    pub(super) fn run(&self, what: &str, goals: &[&str]) -> Result<()> {
        logged::run(what, self.out_of_tree().args(goals), &self.log, true)
    }

    /// Where its output goes.
    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// make, from the source tree to the build directory.
    pub(super) fn out_of_tree(&self) -> Command {
        let mut make = self.command(&self.source);
        make.arg(format!("O={}", self.build.display()));
        make
    }

    /// make for the same architecture, in a folder of the source tree.
    pub(super) fn command(&self, dir: &Path) -> Command {
        let mut make = Command::new("make");
        let cross = self.arch.cross();
        let ccache = if self.ccache { "ccache " } else { "" };
        // Of a make or cargo around this.
        make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").env("LC_ALL", "C");
        if self.ccache {
            if std::env::var_os("CCACHE_DIR").is_none() {
                make.env("CCACHE_DIR", target::dir().join("ccache"));
            }
            // All targets share what they have in common.
            make.env("CCACHE_BASEDIR", target::dir());
        }
        make.arg("-C").arg(dir).arg(format!("-j{}", jobs()));
        make.arg(format!("ARCH={}", self.arch.name()));
        make.arg(format!("CROSS_COMPILE={cross}")).arg(format!("CC={ccache}{cross}gcc"));
        make
    }
}

fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
