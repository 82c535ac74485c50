//! A kernel, built out of tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::target::{Arch, Target};
use super::{config, logged, patch, target, tools};
use crate::run;

/// A kernel that is built.
pub(super) struct Kernel {
    /// What QEMU boots.
    pub(super) image: PathBuf,
    /// What it was built with.
    pub(super) make: Make,
}

/// make, for one source tree and one build directory.
pub(super) struct Make {
    pub(super) source: PathBuf,
    pub(super) build: PathBuf,
    log: PathBuf,
    arch: Arch,
    ccache: bool,
}

/// Builds the kernel of `target`, unless it is built.
pub(super) fn kernel(target: &Target) -> Result<Kernel> {
    tools::for_build(target.arch)?;
    let source = patch::patched(target)?;
    let make =
        Make::new(target, source, target.dir().join("build"), target.dir().join("build.log"))?;
    let (goal, image) = target.arch.image();
    let kernel = Kernel { image: make.build.join(image), make };

    let stamp = target.dir().join("built.stamp");
    let hash = format!("{:016x} {:016x}\n", patch::hash(target)?, config::hash(target)?);
    let built = fs::read_to_string(&stamp).is_ok_and(|is| is == hash) && kernel.image.exists();
    // Of a tree of somebody's own only make knows what has changed.
    if built && target.ksrc.is_none() {
        return Ok(kernel);
    }
    let _ = fs::remove_file(&stamp);
    let _ = fs::remove_file(&kernel.make.log);
    config::configure(target, &kernel.make)?;
    kernel.make.run(&format!("building Linux {}", target.name()), &[goal])?;
    if !kernel.image.exists() {
        bail!("make {goal} made no {}", kernel.image.display());
    }
    fs::write(&stamp, hash).context("built.stamp")?;
    run::say(&format!("built {}", target::shown(&kernel.image)));
    Ok(kernel)
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
