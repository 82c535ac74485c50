//! Tests in a guest: the kernel's selftests, and the workspace's tests that
//! use KVM.

mod attempt;
mod beside;
mod list;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use super::boot::Guest;
use super::build::Kernel;
use super::initrd::{Command, Program};
use super::programs::{self, Source};
use super::record::Record;
use super::target::{Arch, Target};
use super::{Processors, selftests};
use crate::run;
use crate::tally::Tally;
use list::{Again, BOOT_LINUX, SELFTESTS, TESTS};

/// A test in a guest of its own.
#[derive(Clone)]
struct Case {
    name: String,
    append: &'static str,
    program: &'static str,
    command: Command,
    /// Whether its output is that of Rust's tests.
    rust: bool,
    processors: Processors,
    again: Again,
    /// After how long it has derailed, too: its vCPUs can come to a stop.
    limit: Option<Duration>,
    /// See [`Job::nests`](super::boot::Job::nests).
    nests: bool,
}

/// [`Case::limit`] of a selftest on a debug kernel, and on others.
const DERAILED_AFTER: [Duration; 2] = [Duration::from_mins(20), Duration::from_mins(6)];

/// How a test's processors run, `kernels` for one that the kernel has anyway.
///
/// QEMU's SVM is not sound where two processors use it at once: vCPUs derail,
/// see [`list::DERAILED`], and the kernel itself finds its registers and segments
/// changed. One way is in the source, `helper_vmrun()` and `do_vmexit()` in
/// `target/i386/tcg/sysemu/svm_helper.c` of 7.2 change `interrupt_request`
/// without a lock. On one processor the same tests do none of that. The
/// kernel's own are short of time there (`memslot_perf_test` waits for its
/// vCPU in a loop), and have not been seen to derail.
fn processors(arch: Arch, kernels: bool) -> Processors {
    match arch {
        Arch::X86_64 if !kernels => Processors::Turns,
        Arch::X86_64 | Arch::Arm64 => Processors::Parallel,
    }
}

impl Case {
    /// Setup `nth`, if each has a guest of its own.
    fn of_setup(&self, nth: usize) -> Self {
        let mut case = self.clone();
        if self.again == Again::Setup {
            case.name = format!("{}, setup {nth}", self.name);
            case.command.words.push(nth.to_string());
        }
        case
    }
}

/// Whether `filters` let `name` run.
pub(super) fn wanted(name: &str, filters: &[String]) -> bool {
    filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
}

/// The example that boots Linux, on the kernel that runs it.
fn boot_linux() -> Case {
    let words = ["sh", "-c", include_str!("boot_linux.sh")].map(str::to_owned).into();
    Case {
        name: format!("{} {}", BOOT_LINUX.package, BOOT_LINUX.name),
        append: "kvm_amd.vgif=0 kvm_amd.avic=0 kvm_amd.vls=0",
        program: BOOT_LINUX.name,
        command: Command { words, ..Command::default() },
        rust: false,
        processors: Processors::Turns,
        again: Again::Nothing,
        limit: None,
        nests: true,
    }
}

/// The tests that `target` has and `filters` let run.
fn cases(target: &Target, filters: &[String]) -> Result<Vec<Case>> {
    let with = target.with()?;
    let [debug, other] = DERAILED_AFTER;
    let derailed_after = if target.debug { debug } else { other };
    let selftests = SELFTESTS.iter().filter(|test| test.fits(target, &with));
    let selftests = selftests.map(|test| {
        let mut words = vec![format!("/bin/{}", test.name)];
        words.extend(test.args(target).iter().map(|&arg| arg.to_owned()));
        let mut name = format!("selftest {}", test.name);
        if !test.append.is_empty() {
            name = format!("{name} ({})", test.append);
        }
        let command = Command { words, ..Command::default() };
        Case {
            name,
            append: test.append,
            program: test.name,
            command,
            rust: false,
            processors: processors(target.arch, test.series.is_none()),
            again: test.again,
            limit: (test.again != Again::Nothing).then_some(derailed_after),
            nests: false,
        }
    });
    let tests = TESTS.iter().map(|test| {
        let program = format!("/bin/{}", test.name);
        let words = vec![program, "--show-output".to_owned()];
        let command = Command { words, ..Command::default() };
        let name = format!("{} {}", test.package, test.name);
        Case {
            name,
            append: "",
            program: test.name,
            command,
            rust: true,
            processors: processors(target.arch, false),
            again: Again::All,
            limit: None,
            nests: false,
        }
    });
    // A debug kernel that boots one, emulated twice, takes longer than a guest may.
    let linux = (target.arch == Arch::X86_64 && !target.debug).then(boot_linux);
    Ok(selftests.chain(tests).chain(linux).filter(|case| wanted(&case.name, filters)).collect())
}

/// Runs the tests that `args` names.
pub(super) fn run(
    target: &Target,
    kernel: &Kernel,
    guest: &Guest,
    args: &super::Test,
) -> Result<ExitCode> {
    let record = Record::begin(&args.chosen, "test", target)?;
    let mut cases = cases(target, &args.chosen.filters)?;
    if cases.is_empty() {
        bail!("no test of this kernel is called so");
    }
    for case in &mut cases {
        case.command.env.clone_from(&args.qemu.env);
    }
    let mut tally = Tally::default();
    let done = run_all(target, kernel, guest, &cases, &mut tally)?;
    for line in tally.lines() {
        run::say(&line);
    }
    if let Some(record) = record {
        let lines: Vec<String> = done.into_iter().chain(tally.lines()).collect();
        let found = format!("```text\n{}\n```", lines.join("\n"));
        record.write(target, &found)?;
    }
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs all tests that `target` has and counts them in `tally`.
pub(super) fn run_counted(
    target: &Target,
    kernel: &Kernel,
    guest: &Guest,
    tally: &mut Tally,
) -> Result<()> {
    run_all(target, kernel, guest, &cases(target, &[])?, tally).map(|_| ())
}

/// A line for each that was run.
fn run_all(
    target: &Target,
    kernel: &Kernel,
    guest: &Guest,
    cases: &[Case],
    tally: &mut Tally,
) -> Result<Vec<String>> {
    let programs = build(target, kernel, cases)?;
    let done = beside::run(guest, cases, &programs, tally);
    run::say(&format!("\n==> summary, Linux {}", target.name()));
    for line in &done {
        run::say(line);
    }
    Ok(done)
}

fn build(target: &Target, kernel: &Kernel, cases: &[Case]) -> Result<Vec<Program>> {
    let needed = |name: &str, rust| cases.iter().any(|c| c.rust == rust && c.program == name);
    let selftests = SELFTESTS.iter().filter(|test| needed(test.name, false));
    let mut names: Vec<&str> = selftests.map(|test| test.name).collect();
    names.sort_unstable();
    names.dedup();
    let mut programs = Vec::new();
    if !names.is_empty() {
        programs = selftests::build(target, kernel, &names)?;
    }
    let mut tests: Vec<Source> = TESTS.into_iter().filter(|test| needed(test.name, true)).collect();
    tests.extend(needed(BOOT_LINUX.name, false).then_some(BOOT_LINUX));
    if !tests.is_empty() {
        programs.extend(programs::build(&tests, target.arch)?);
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::series::Series;
    use super::attempt::log_name;
    use super::*;

    fn target(vanilla: bool) -> Target {
        Target { vanilla, ..Target::of("6.12") }
    }

    fn names(vanilla: bool, filters: &[&str]) -> Vec<String> {
        let filters: Vec<String> = filters.iter().map(|&filter| filter.to_owned()).collect();
        cases(&target(vanilla), &filters).unwrap().into_iter().map(|case| case.name).collect()
    }

    #[test]
    fn a_kernel_without_the_series_has_not_its_tests() {
        assert!(names(false, &[]).iter().any(|name| name.contains("memory_regions")));
        assert!(!names(true, &[]).iter().any(|name| name.contains("memory_regions")));
        assert!(names(true, &[]).iter().any(|name| name.contains("memory_region_test")));
    }

    #[test]
    fn a_series_has_its_own_tests_and_those_of_what_it_stands_on() {
        let has = |series, test: &str| {
            let target = Target { series: Some(series), ..target(false) };
            cases(&target, &[]).unwrap().iter().any(|case| case.program == test)
        };
        assert!(has(Series::Irqfd, "irqfd_no_irqbypass_test"));
        assert!(!has(Series::Irqfd, "set_memory_regions_test"));
        assert!(has(Series::Batch, "set_memory_regions_test"));
        assert!(!has(Series::Batch, "mem_trap_test"));
        assert!(has(Series::Trap, "set_memory_regions_test") && has(Series::Trap, "mem_trap_test"));
        assert!(has(Series::Irqfd, "memslot_perf_test"));
    }

    #[test]
    fn what_needs_a_debug_kernel_runs_there_only_and_other_tests_for_less_time() {
        let debug = Target { debug: true, ..target(false) };
        let fails = |target: &Target| cases(target, &["fail_test".to_owned()]).unwrap().len();
        assert_eq!((fails(&target(false)), fails(&debug)), (0, 2));

        let race = |target: &Target| {
            let races = cases(target, &["regions_race_test (kvm.force".to_owned()]).unwrap();
            races.into_iter().map(|case| case.command.words).collect::<Vec<_>>()
        };
        assert_eq!(race(&target(false)), [["/bin/set_memory_regions_race_test", "120"]]);
        assert_eq!(race(&debug), [["/bin/set_memory_regions_race_test", "2"]]);
    }

    #[test]
    fn tests_are_chosen_by_parts_of_their_names() {
        assert_eq!(names(false, &["shim", "nothing"]), ["kvm-memslots-shim kvm"]);
        assert_eq!(names(false, &["nothing"]), [""; 0]);
        let shadow = "selftest set_memory_regions_race_test (kvm_amd.npt=0)";
        assert_eq!(names(false, &["regions_race_test (kvm_amd"]), [shadow]);
    }

    #[test]
    fn what_vcpus_race_in_takes_turns_on_x86() {
        let all = cases(&target(false), &[]).unwrap();
        let turns = |case: &Case| case.processors == Processors::Turns;
        assert!(all.iter().all(|case| turns(case) || case.again == Again::Nothing));
        assert!(!turns(&case("memslot_perf_test")));
        let arm64 = cases(&Target { arch: Arch::Arm64, ..target(false) }, &[]).unwrap();
        assert!(!arm64.iter().any(turns));
    }

    #[test]
    fn setups_are_told_apart_by_their_last_argument() {
        let setup = case("trap_race_test").of_setup(3);
        assert_eq!(setup.command.words.last().map(String::as_str), Some("3"));
        assert!(setup.name.ends_with(", setup 3"));
        let whole = case("dirty_test");
        assert_eq!(whole.of_setup(3).command.words, whole.command.words);
    }

    #[test]
    fn parameters_of_one_architecture_are_not_for_another() {
        let all = cases(&Target { arch: Arch::Arm64, ..target(false) }, &[]).unwrap();
        assert!(all.iter().any(|case| case.program == "set_memory_regions_test"));
        assert!(all.iter().all(|case| case.append.is_empty()));
    }

    #[test]
    fn linux_boots_where_its_vmm_runs() {
        let boots = |arch| {
            let target = Target { arch, ..target(true) };
            cases(&target, &["boot-linux".to_owned()]).unwrap().iter().filter(|c| c.nests).count()
        };
        assert_eq!((boots(Arch::X86_64), boots(Arch::Arm64)), (1, 0));
    }

    pub(super) fn case(filter: &str) -> Case {
        cases(&target(false), &[filter.to_owned()]).unwrap().swap_remove(0)
    }

    #[test]
    fn each_test_has_a_log_of_its_own() {
        let name = "selftest set_memory_regions_test (kvm_amd.npt=0)";
        assert_eq!(log_name(name), "test-selftest-set_memory_regions_test-kvm_amd-npt-0");
        let mut logs: Vec<String> = names(false, &[]).iter().map(|name| log_name(name)).collect();
        let count = logs.len();
        logs.sort();
        logs.dedup();
        assert_eq!(logs.len(), count);
    }
}
