//! One at a time in a source tree: kernels that differ in their patches share
//! it.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::target;
use crate::run;

/// Waits until nobody else has `dir`, and says so if that takes time. The lock ends
/// with whoever holds it, however that ends.
pub(super) fn wait(dir: &Path) -> Result<Flock<File>> {
    if let Some(lock) = now(dir)? {
        return Ok(lock);
    }
    run::say(&format!("waiting for another build in {}", target::shown(dir)));
    let lock = Flock::lock(open(dir)?, FlockArg::LockExclusive);
    lock.map_err(|(_, e)| e).with_context(|| format!("flock {}", dir.display()))
}

/// `None` if somebody has it.
fn now(dir: &Path) -> Result<Option<Flock<File>>> {
    match Flock::lock(open(dir)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(e).with_context(|| format!("flock {}", dir.display())),
    }
}

fn open(dir: &Path) -> Result<File> {
    fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
    File::open(dir).with_context(|| format!("{}", dir.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, other) = (dir.path().join("tree"), dir.path().join("other"));
        let first = now(&tree).unwrap();
        assert!(first.is_some());
        assert!(now(&tree).unwrap().is_none());
        assert!(now(&other).unwrap().is_some());
        drop(first);
        drop(wait(&tree).unwrap());
        assert!(now(&tree).unwrap().is_some());
    }
}
