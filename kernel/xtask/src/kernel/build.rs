//! A kernel, built out of tree.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::make::Make;
use super::target::Target;
use super::{config, lock, patch, target, tools};
use crate::run;

/// A kernel that is built.
pub(super) struct Kernel {
    /// What QEMU boots.
    pub(super) image: PathBuf,
    /// What it was built with.
    pub(super) make: Make,
}

/// Builds the kernel of `target`, unless it is built.
///
/// In a tree with another series that is a matter of the files that differ, and
/// of what includes them.
pub(super) fn kernel(target: &Target) -> Result<Kernel> {
    tools::for_build(target.arch)?;
    let _lock = lock::wait(&target.tree())?;
    let (dir, build) = (target.dir(), target.tree().join("build"));
    let make = Make::new(target, patch::source(target)?, build, dir.join("build.log"))?;
    let (goal, made) = target.arch.image();
    let kernel = Kernel { image: dir.join(goal), make };

    let stamp = dir.join("built.stamp");
    let hash = format!("{:016x} {:016x}\n", patch::hash(target)?, config::hash(target)?);
    let built = fs::read_to_string(&stamp).is_ok_and(|is| is == hash) && kernel.image.exists();
    // Of a tree of somebody's own only make knows what has changed.
    if built && target.ksrc.is_none() {
        return Ok(kernel);
    }
    let _ = fs::remove_file(&stamp);
    let _ = fs::remove_file(kernel.make.log());
    patch::apply(target)?;
    config::configure(target, &kernel.make)?;
    kernel.make.run(&format!("building Linux {}", target.name()), &[goal])?;
    let made = kernel.make.build.join(made);
    fs::copy(&made, &kernel.image)
        .with_context(|| format!("make {goal} made no {}", made.display()))?;
    fs::write(&stamp, hash).context("built.stamp")?;
    run::say(&format!("built {}", target::shown(&kernel.image)));
    Ok(kernel)
}
