//! Which tests there are.

use super::super::programs::Source;
use super::super::series::Series;
use super::super::target::{Arch, Target};

/// A selftest of the kernel's tree.
#[derive(Debug, PartialEq)]
pub(super) struct Selftest {
    /// Its name in `tools/testing/selftests/kvm`, or in a folder of one
    /// architecture there, and in the guest's /bin.
    pub(super) name: &'static str,
    args: &'static [&'static str],
    /// The arguments on a debug kernel, which is some ten times slower.
    debug_args: &'static [&'static str],
    /// For the kernel's command line.
    pub(super) append: &'static str,
    /// Where it is run so; everywhere if `None`.
    arch: Option<Arch>,
    /// The series that it comes with.
    pub(super) series: Option<Series>,
    /// Whether it needs what only a debug kernel has.
    debug_only: bool,
    /// What is tried again when one of its vCPUs has derailed.
    pub(super) again: Again,
}

/// What is tried again of a test whose vCPU derails. Where two of them fault
/// and run what they write, one does so now and then under emulation, see
/// [`DERAILED`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Again {
    Nothing,
    All,
    /// One setup. The test takes its number for a last argument, and skips
    /// where there are not so many. Each has a guest of its own.
    Setup,
}

/// What a test says whose vCPU has run something else than what is in its
/// memory, or nothing at all; the kernel's selftests first, then this
/// workspace's. Where the guest's processors run in parallel it happens about
/// once a minute that two vCPUs leave the guest all the time, on kernels
/// without the series and with no memslot changing, too.
pub(super) const DERAILED: [&str; 5] = [
    "Unexpected exit 8 (SHUTDOWN)",
    "Unhandled exception '0x6'",
    "exit: \"Shutdown\"",
    "exit: \"it is lost in an exception\"",
    "what: \"made no progress\"",
];

const X86: Option<Arch> = Some(Arch::X86_64);
const ARM64: Option<Arch> = Some(Arch::Arm64);
const EMULATE: &str = "kvm.force_emulation_prefix=1";
const SHADOW: &str = "kvm_amd.npt=0";

/// One that the kernel has anyway.
const OTHER: Selftest = Selftest {
    name: "",
    args: &[],
    debug_args: &[],
    append: "",
    arch: None,
    series: None,
    debug_only: false,
    again: Again::Nothing,
};

/// One of `series`.
const fn of(series: Series) -> Selftest {
    Selftest { series: Some(series), ..OTHER }
}

const BATCHES: Selftest = of(Series::Batch);
const TRAPS: Selftest = of(Series::Trap);

const RACE: Selftest =
    Selftest { name: "set_memory_regions_race_test", arch: X86, again: Again::Setup, ..BATCHES };
const DIRTY: Selftest =
    Selftest { name: "set_memory_regions_dirty_test", arch: X86, again: Again::All, ..BATCHES };
const FAIL: Selftest =
    Selftest { name: "set_memory_regions_fail_test", debug_only: true, ..BATCHES };
const TRAP: Selftest = Selftest { name: "mem_trap_test", debug_args: &["100", "1000"], ..TRAPS };
const TRAP_RACE: Selftest = Selftest {
    name: "mem_trap_race_test",
    args: &["6000"],
    debug_args: &["1000"],
    again: Again::Setup,
    ..TRAPS
};
const READONLY: Selftest = Selftest { name: "mem_readonly_test", arch: X86, ..TRAP };
const READONLY_RACE: Selftest =
    Selftest { name: "mem_readonly_race_test", args: &["2000"], arch: X86, ..TRAP_RACE };
const SLEEPING_FAULT: Selftest =
    Selftest { name: "memslot_sleeping_fault_test", ..of(Series::Waits) };
// The debug kernel alone has NUMA: for others to have it would be to measure
// another kernel.
const MIGRATION: Selftest = Selftest {
    name: "memslot_migration_test",
    debug_args: &["100"],
    append: "numa=fake=2",
    arch: X86,
    debug_only: true,
    ..of(Series::Waits)
};
// Without the last part, which changes no slots: its guest has 10 s to touch all
// of its memory, and needs more on a busy machine.
const PERF: Selftest = Selftest {
    name: "memslot_perf_test",
    args: &["-s", "256", "-l", "1", "-e", "4"],
    debug_args: &["-s", "128", "-l", "1", "-e", "4"],
    ..OTHER
};
const DIRTY_LOG: Selftest = Selftest {
    name: "dirty_log_test",
    args: &["-i", "4", "-I", "10"],
    debug_args: &["-i", "3", "-I", "10"],
    arch: X86,
    ..OTHER
};

pub(super) const SELFTESTS: [Selftest; 34] = [
    Selftest {
        name: "set_memory_regions_test",
        args: &["50"],
        debug_args: &["20", "2048"],
        ..BATCHES
    },
    Selftest { name: "set_memory_regions_x86_test", arch: X86, ..BATCHES },
    // 84 ways to change the layout, 10,080 batches.
    Selftest { args: &["120"], debug_args: &["2"], append: EMULATE, ..RACE },
    Selftest { args: &["10"], debug_args: &["2"], append: SHADOW, ..RACE },
    Selftest { args: &["10"], debug_args: &["1"], arch: ARM64, ..RACE },
    Selftest { args: &["40"], debug_args: &["3"], ..DIRTY },
    Selftest { args: &["20"], debug_args: &["3"], append: SHADOW, ..DIRTY },
    Selftest { args: &["10"], debug_args: &["2"], arch: ARM64, ..DIRTY },
    FAIL,
    Selftest { append: SHADOW, arch: X86, ..FAIL },
    TRAP,
    Selftest { append: SHADOW, arch: X86, ..TRAP },
    // With and without NPT some 55,000 flips; with 12000 for an argument,
    // twice that.
    Selftest { append: EMULATE, arch: X86, ..TRAP_RACE },
    Selftest { args: &["3000"], arch: ARM64, ..TRAP_RACE },
    Selftest { append: SHADOW, arch: X86, ..TRAP_RACE },
    Selftest { append: EMULATE, ..READONLY },
    Selftest { append: SHADOW, ..READONLY },
    Selftest { append: EMULATE, ..READONLY_RACE },
    Selftest { append: SHADOW, ..READONLY_RACE },
    Selftest { name: "irqfd_no_irqbypass_test", ..of(Series::Irqfd) },
    SLEEPING_FAULT,
    Selftest { append: SHADOW, arch: X86, ..SLEEPING_FAULT },
    MIGRATION,
    Selftest { append: "numa=fake=2 kvm_amd.npt=0", ..MIGRATION },
    Selftest { name: "irqfd_deassign_test", arch: X86, ..of(Series::Waits) },
    Selftest { name: "guest_memfd_bind_race_test", arch: X86, ..of(Series::Fixes) },
    Selftest { name: "mmio_spte_sync_test", append: SHADOW, arch: X86, ..of(Series::Fixes) },
    Selftest { name: "pre_fault_memory_delete_test", arch: X86, ..of(Series::Fixes) },
    Selftest { name: "set_memory_region_test", ..OTHER },
    Selftest {
        name: "memslot_modification_stress_test",
        args: &["-i", "200", "-b", "16M"],
        debug_args: &["-i", "20", "-b", "16M"],
        ..OTHER
    },
    PERF,
    DIRTY_LOG,
    Selftest { args: &["-i", "3", "-I", "10"], append: SHADOW, ..DIRTY_LOG },
    // Of a dozen guest modes, those of 48 bits with 4K and with 64K pages.
    Selftest {
        args: &["-i", "4", "-I", "10", "-m", "3", "-m", "5"],
        debug_args: &["-i", "3", "-I", "10", "-m", "3"],
        arch: ARM64,
        ..DIRTY_LOG
    },
];

impl Selftest {
    /// Whether `target`, patched `with` these series, has it, and what it needs.
    pub(super) fn fits(&self, target: &Target, with: &[Series]) -> bool {
        self.arch.is_none_or(|arch| arch == target.arch)
            && self.series.is_none_or(|series| with.contains(&series))
            && (target.debug || !self.debug_only)
    }

    /// Its arguments on `target`.
    pub(super) fn args(&self, target: &Target) -> &'static [&'static str] {
        if target.debug { self.debug_args } else { self.args }
    }
}

const fn test(package: &'static str, name: &'static str) -> Source {
    Source { package, kind: "test", name }
}

/// The workspace's tests that use KVM.
pub(super) const TESTS: [Source; 15] = [
    test("kvm-memslots-uapi", "probe"),
    test("kvm-memslots-shim", "kvm"),
    test("kvm-memslots", "spaces"),
    test("kvm-memslots", "bad_input"),
    test("kvm-memslots", "seccomp"),
    test("kvm-memslots-bench", "deferred"),
    test("kvm-memslots-bench", "devices"),
    test("kvm-memslots-bench", "differential"),
    test("kvm-memslots-bench", "dirty_log"),
    test("kvm-memslots-bench", "flash"),
    test("kvm-memslots-bench", "gate"),
    test("kvm-memslots-bench", "grace"),
    test("kvm-memslots-bench", "guest"),
    test("kvm-memslots-bench", "pci"),
    test("kvm-memslots-bench", "replay"),
];

/// The VMM that boots Linux.
pub(super) const BOOT_LINUX: Source =
    Source { package: "kvm-memslots-examples", kind: "bin", name: "boot-linux" };

#[cfg(test)]
mod tests {
    use super::*;

    /// In one guest they are all in /bin.
    #[test]
    fn programs_have_names_of_their_own() {
        let mut all: Vec<&str> = SELFTESTS.iter().map(|test| test.name).collect();
        all.sort_unstable();
        all.dedup();
        all.extend(TESTS.iter().map(|test| test.name));
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
