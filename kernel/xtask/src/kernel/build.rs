//! A kernel, built out of tree.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::make::Make;
use super::target::Target;
use super::{config, patch, target, tools};
use crate::run;

/// A kernel that is built.
pub(super) struct Kernel {
    /// What QEMU boots.
    pub(super) image: PathBuf,
    /// What it was built with.
    pub(super) make: Make,
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
    let _ = fs::remove_file(kernel.make.log());
    config::configure(target, &kernel.make)?;
    kernel.make.run(&format!("building Linux {}", target.name()), &[goal])?;
    if !kernel.image.exists() {
        bail!("make {goal} made no {}", kernel.image.display());
    }
    fs::write(&stamp, hash).context("built.stamp")?;
    run::say(&format!("built {}", target::shown(&kernel.image)));
    Ok(kernel)
}
