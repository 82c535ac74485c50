//! Which kernel is meant, and where what belongs to it is kept.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args as ClapArgs, ValueEnum};

pub(super) use super::places::{dir, shown};
use super::series::Series;
use crate::workspace;

/// An architecture that the lab knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Arch {
    /// AMD, as SVM is what QEMU emulates
    #[value(name = "x86_64")]
    X86_64,
    /// Virtualization by EL2
    #[value(name = "arm64")]
    Arm64,
}

impl Arch {
    /// As in `kernel/lab` and for make's `ARCH`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Arm64 => "arm64",
        }
    }

    /// make's target, and where in the build directory it ends up.
    pub(super) fn image(self) -> (&'static str, &'static str) {
        match self {
            Self::X86_64 => ("bzImage", "arch/x86/boot/bzImage"),
            Self::Arm64 => ("Image", "arch/arm64/boot/Image"),
        }
    }

    /// The prefix of the cross compiler; empty where this machine's own does.
    pub(super) fn cross(self) -> &'static str {
        match self {
            _ if self.is_own() => "",
            Self::X86_64 => "x86_64-linux-gnu-",
            Self::Arm64 => "aarch64-linux-gnu-",
        }
    }

    /// Whether this machine runs its programs.
    pub(super) fn is_own(self) -> bool {
        match self {
            Self::X86_64 => cfg!(target_arch = "x86_64"),
            Self::Arm64 => cfg!(target_arch = "aarch64"),
        }
    }

    /// As Rust calls it.
    pub(super) fn triple(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// As Debian calls it.
    pub(super) fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// `e_machine` of its programs.
    pub(super) fn elf_machine(self) -> u16 {
        match self {
            Self::X86_64 => 62,
            Self::Arm64 => 183,
        }
    }
}

/// A kernel to be built. `KSRC=DIR` in the environment builds that tree as it is.
#[derive(Debug, Clone, ClapArgs)]
#[allow(clippy::struct_excessive_bools)] // Options of the command line.
pub(super) struct Target {
    /// Version of the kernel, `newest` for the newest that Debian has, of those
    /// with series, or of all with --vanilla
    #[arg(long = "linux", value_name = "VERSION", default_value = "6.12")]
    pub(super) version: String,
    /// Architecture of the guest
    #[arg(long, value_enum, default_value_t = Arch::X86_64)]
    pub(super) arch: Arch,
    /// With KASAN, lockdep, object debugging and fault injection
    #[arg(long)]
    pub(super) debug: bool,
    /// With `CONFIG_JUMP_LABEL`, for what static keys cost: code is patched while
    /// it runs, which some selftests do not survive under emulation
    #[arg(long)]
    pub(super) jump_labels: bool,
    /// Without any series
    #[arg(long)]
    pub(super) vanilla: bool,
    /// With one series, and those that it stands on, only [default: all]
    #[arg(long, value_enum, value_name = "NAME", conflicts_with = "vanilla")]
    pub(super) series: Option<Series>,
    /// With a patch of the lab's: `srcutree.lab_expedited_ms=MS` on the
    /// kernel's command line makes each expedited grace period last that long
    #[arg(long)]
    pub(super) slow_gp: bool,
    /// A tree that is built as it is, instead of a fetched one.
    #[arg(skip)]
    pub(super) ksrc: Option<PathBuf>,
}

impl Target {
    /// Linux `version` with all series, on x86.
    pub(super) fn of(version: &str) -> Self {
        Self {
            version: version.to_owned(),
            arch: Arch::X86_64,
            debug: false,
            jump_labels: false,
            vanilla: false,
            series: None,
            slow_gp: false,
            ksrc: None,
        }
    }

    /// Names what it shares with kernels that differ in their patches:
    /// `6.12-x86_64-debug`.
    pub(super) fn tree_name(&self) -> String {
        let mut name = if self.ksrc.is_some() { "ksrc".to_owned() } else { self.version.clone() };
        name.push('-');
        name.push_str(self.arch.name());
        if self.debug {
            name.push_str("-debug");
        }
        if self.jump_labels {
            name.push_str("-jump-labels");
        }
        name
    }

    /// Names its folder: `6.12-x86_64-debug-vanilla`.
    pub(super) fn name(&self) -> String {
        let mut name = self.tree_name();
        if self.vanilla && self.ksrc.is_none() {
            name.push_str("-vanilla");
        }
        if let Some(series) = self.series {
            name.push('-');
            name.push_str(series.name());
        }
        if self.slow_gp && self.ksrc.is_none() {
            name.push_str("-slow-gp");
        }
        name
    }

    /// Where its source is kept, and what is compiled of it. What belongs to
    /// one kernel alone is in [`dir`](Self::dir).
    pub(super) fn tree(&self) -> PathBuf {
        dir().join(self.tree_name())
    }

    /// Where it is kept itself, with its selftests and its logs.
    pub(super) fn dir(&self) -> PathBuf {
        dir().join(self.name())
    }

    /// The series that it is patched with, in order; of a tree of somebody's
    /// own, those that it should have.
    pub(super) fn with(&self) -> Result<Vec<Series>> {
        match self.series {
            _ if self.vanilla => Ok(Vec::new()),
            Some(series) => series.with_bases(&self.version),
            None => Ok(Series::ALL.to_vec()),
        }
    }

    /// The same without any series, also where it is a tree of somebody's own.
    pub(super) fn without_series(&self) -> Self {
        Self { vanilla: true, series: None, ksrc: None, ..self.clone() }
    }

    /// The lab's own patch, for kernels that are measured, not shown.
    pub(super) fn lab_patch(&self) -> Option<PathBuf> {
        let path = || workspace::root().join("kernel/lab/patches/slow-grace-periods.patch");
        (self.slow_gp && self.ksrc.is_none()).then(path)
    }

    /// The configuration fragments, in the order in which they are merged.
    pub(super) fn fragments(&self) -> Vec<PathBuf> {
        let lab = workspace::root().join("kernel/lab");
        let mut fragments = vec![lab.join(format!("{}.config", self.arch.name()))];
        if self.debug {
            fragments.push(lab.join("debug.config"));
        }
        if self.jump_labels {
            fragments.push(lab.join("jump_labels.config"));
        }
        fragments
    }
}

/// Whether `version` is one as in `linux-source-6.12`.
pub(super) fn is_version(version: &str) -> bool {
    numbers(version).is_some_and(|numbers| numbers.len() == 2)
}

/// 6.12 as `[6, 12]`, for it is newer than 6.2.
pub(super) fn numbers(version: &str) -> Option<Vec<u32>> {
    version.split('.').map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target::of("6.12")
    }

    #[test]
    fn each_kernel_has_a_folder_of_its_own() {
        assert_eq!(target().name(), "6.12-x86_64");
        let all = Target { arch: Arch::Arm64, debug: true, vanilla: true, ..target() };
        assert_eq!(all.name(), "6.12-arm64-debug-vanilla");
        assert_eq!(Target { ksrc: Some("/linux".into()), ..all }.name(), "ksrc-arm64-debug");
        assert_eq!(Target { slow_gp: true, ..target() }.name(), "6.12-x86_64-slow-gp");
        let batch = Target { series: Some(Series::Batch), ..target() };
        assert_eq!(batch.name(), "6.12-x86_64-batch");
        let patching = Target { jump_labels: true, ..batch };
        assert_eq!(patching.name(), "6.12-x86_64-jump-labels-batch");
    }

    #[test]
    fn what_differs_in_patches_only_shares_a_tree() {
        let patched = Target { slow_gp: true, series: Some(Series::Batch), ..target() };
        let vanilla = Target { vanilla: true, ..target() };
        assert_eq!((patched.tree(), vanilla.tree()), (target().tree(), target().tree()));
        assert_ne!(Target { debug: true, ..target() }.tree(), target().tree());
        assert_ne!(Target { jump_labels: true, ..target() }.tree(), target().tree());
    }

    #[test]
    fn series_of_a_kernel() {
        let with = |target: Target| target.with().map_err(|e| e.to_string());
        assert_eq!(with(target()), Ok(Series::ALL.to_vec()));
        assert_eq!(with(Target { vanilla: true, ..target() }), Ok(Vec::new()));
        let irqfd = Target { series: Some(Series::Irqfd), ..target() };
        assert_eq!(with(irqfd), Ok(vec![Series::Irqfd]));
    }

    #[test]
    fn versions() {
        assert!(is_version("6.12") && is_version("7.3"));
        assert!(
            !is_version("6") && !is_version("6.12.1") && !is_version("../..") && !is_version("")
        );
        assert!(numbers("6.12") > numbers("6.2"));
    }

    #[test]
    fn the_lab_has_what_is_named() {
        let debug = Target { debug: true, jump_labels: true, ..target() };
        assert_eq!(debug.fragments().len(), 3);
        for fragment in debug.fragments() {
            assert!(fragment.exists(), "{}", fragment.display());
        }
        let slow = Target { slow_gp: true, ..target() };
        assert!(
            slow.lab_patch().is_some_and(|patch| patch.exists()) && debug.lab_patch().is_none()
        );
    }
}
