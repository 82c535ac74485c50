//! The series of `kernel/patches`, each for one thing, and on which others each
//! stands.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use super::places::{all_patches, shown};

/// A series, in the order in which they are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Series {
    /// Faults of the kernel as it is
    Fixes,
    /// Waits that go away for everybody, without ABI
    Waits,
    /// `KVM_IRQFD_FLAG_NO_IRQBYPASS`
    Irqfd,
    /// `KVM_SET_USER_MEMORY_REGIONS`
    Batch,
    /// `KVM_MEM_TRAP`
    Trap,
}

impl Series {
    pub(super) const ALL: [Self; 5] =
        [Self::Fixes, Self::Waits, Self::Irqfd, Self::Batch, Self::Trap];

    /// Names its folder.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fixes => "fixes",
            Self::Waits => "waits",
            Self::Irqfd => "irqfd",
            Self::Batch => "batch",
            Self::Trap => "trap",
        }
    }

    /// Where its patches for Linux `version` are.
    pub(super) fn dir(self, version: &str) -> PathBuf {
        all_patches().join(format!("linux-{version}")).join(self.name())
    }

    /// What it can't be applied without, and itself, in order. The file `base`
    /// in its folder has the names of those that it stands on, one a line.
    pub(super) fn with_bases(self, version: &str) -> Result<Vec<Self>> {
        let path = self.dir(version).join("base");
        let shown = shown(&path);
        let text = fs::read_to_string(&path).with_context(|| format!("no series: {shown}"))?;
        let mut all = vec![self];
        for line in text.lines() {
            let Some(base) = Self::ALL.into_iter().find(|series| series.name() == line) else {
                bail!("{shown}: {line:?} is no series");
            };
            if base >= self {
                bail!("{shown}: {line} is not before {}", self.name());
            }
            all.extend(base.with_bases(version)?);
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::patch;
    use super::*;

    #[test]
    fn each_version_has_all_series_with_a_cover_letter() {
        for version in patch::versions().unwrap() {
            for series in Series::ALL {
                let all = series.with_bases(&version).unwrap();
                assert_eq!(all.last(), Some(&series));
                let dir = series.dir(&version);
                assert!(dir.join("0000-cover-letter.patch").exists(), "{}", dir.display());
                assert!(!patch::series(&dir).unwrap().is_empty());
            }
        }
    }

    #[test]
    fn what_stands_on_the_batch_comes_with_it() {
        for version in patch::versions().unwrap() {
            assert!(Series::Trap.with_bases(&version).unwrap().contains(&Series::Batch));
            assert_eq!(Series::Irqfd.with_bases(&version).unwrap(), [Series::Irqfd]);
        }
    }

    #[test]
    fn a_version_without_series() {
        let e = Series::Fixes.with_bases("0.1").unwrap_err();
        assert!(format!("{e:#}").contains("linux-0.1"), "{e:#}");
    }
}
