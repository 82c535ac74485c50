//! Tests in a guest: the kernel's selftests, and the workspace's tests that
//! use KVM.

mod list;

use std::collections::VecDeque;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::boot::{Ended, Guest, Hang, Job};
use super::build::Kernel;
use super::initrd::{Command, Program};
use super::programs::{self, Source};
use super::record::Record;
use super::target::{Arch, Target};
use super::{Processors, selftests};
use crate::run;
use crate::test::remember;
use crate::test::tally::Tally;
use list::{Again, DERAILED, SELFTESTS, TESTS};

/// What the kernel's selftests end with when they can't run.
const KSFT_SKIP: i32 = 4;

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
}

/// The verdict on a test that did not run.
const SKIPPED: &str = "skipped";

/// How often a test may derail before that counts.
const TRIES: u32 = 5;

/// [`Case::limit`] of a selftest on a debug kernel, and on others.
const DERAILED_AFTER: [Duration; 2] = [Duration::from_mins(20), Duration::from_mins(6)];

/// How a test's processors run, `kernels` for one that the kernel has anyway.
///
/// QEMU's SVM is not sound where two processors use it at once: vCPUs derail,
/// see [`DERAILED`], and the kernel itself finds its registers and segments
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
        }
    });
    Ok(selftests.chain(tests).filter(|case| wanted(&case.name, filters)).collect())
}

/// Runs the tests that `args` names.
pub(super) fn run(
    target: &Target,
    kernel: &Kernel,
    guest: &Guest,
    args: &super::Test,
) -> Result<ExitCode> {
    let record = Record::begin(args.record, "test", target, &args.filters)?;
    let mut cases = cases(target, &args.filters)?;
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
        record.write(target, &kernel.make.source, &found)?;
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
    let mut done = Vec::new();
    for case in cases {
        for nth in 0.. {
            let case = case.of_setup(nth);
            run::say(&format!("\n==> {}", case.name));
            let start = Instant::now();
            let skipped = tally.skipped.len();
            let (verdict, tried) = one(guest, &case, &programs, tally);
            if nth > 0 && verdict == SKIPPED {
                // There are no more, which is not worth counting.
                tally.skipped.truncate(skipped);
                break;
            }
            let took = start.elapsed().as_secs_f64();
            let again = if tried == 1 { String::new() } else { format!(", try {tried}") };
            done.push(format!("{took:>7.1} s  {:<13} {}", format!("{verdict}{again}"), case.name));
            if case.again != Again::Setup || verdict == SKIPPED {
                break;
            }
        }
    }
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
    let tests: Vec<Source> = TESTS.into_iter().filter(|test| needed(test.name, true)).collect();
    if !tests.is_empty() {
        programs.extend(programs::build(&tests, target.arch)?);
    }
    Ok(programs)
}

/// A file's name, without extension, for the log of test `name`.
fn log_name(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    format!("test-{}", words.join("-"))
}

/// Runs one test and counts it, a program of Rust's tests as its tests; how it
/// ended, and at which try.
fn one(guest: &Guest, case: &Case, programs: &[Program], tally: &mut Tally) -> (&'static str, u32) {
    let name = log_name(&case.name);
    let job = Job {
        programs: programs.iter().filter(|program| program.name == case.program).collect(),
        append: case.append,
        limit: case.limit,
        processors: case.processors,
        ..Job::new(&name, case.command.clone())
    };
    let mut tried = 1;
    let mut last = attempt(guest, case, &job);
    while last.derailed(case) && tried < TRIES {
        tried += 1;
        run::say(&format!("DERAILED {}: try {tried} of {TRIES}", case.name));
        last = attempt(guest, case, &job);
    }
    (last.count(case, tally), tried)
}

/// How a test ended, and what it said.
struct Attempt {
    ended: Result<Ended>,
    /// Of a program of Rust's tests.
    tests: Tally,
    /// Whether one of the signs in [`DERAILED`] was there.
    said: bool,
    /// The last lines.
    last: VecDeque<String>,
}

/// Whether a vCPU that has derailed is what a test says.
fn is_sign(line: &str) -> bool {
    DERAILED.iter().any(|sign| line.contains(sign))
}

fn attempt(guest: &Guest, case: &Case, job: &Job<'_>) -> Attempt {
    let (mut tests, mut said, mut last) = (Tally::default(), false, VecDeque::new());
    let ended = guest.run(job, |line| {
        said |= is_sign(line);
        if !case.rust || tests.line(line).is_worth_showing() {
            run::say(line);
            remember(&mut last, line);
        }
    });
    Attempt { ended, tests, said, last }
}

impl Attempt {
    /// Not if the kernel complained, or the test found something else wrong.
    fn derailed(&self, case: &Case) -> bool {
        case.again != Again::Nothing
            && match &self.ended {
                Ok(ended) => ended.status != 0 && self.said,
                Err(e) => case.limit.is_some() && e.downcast_ref::<Hang>().is_some(),
            }
    }

    /// Counts it in `tally`; the verdict.
    fn count(self, case: &Case, tally: &mut Tally) -> &'static str {
        let (tests, failed) = (self.tests.tests(), self.tests.failed);
        tally.add(self.tests);
        let why = match &self.ended {
            Ok(ended) => format!("exit status {}", ended.status),
            Err(e) => format!("{e:#}"),
        };
        match (self.ended.map(|ended| ended.status), case.rust) {
            (Ok(0), true) if tests > 0 && failed == 0 => return "ok",
            (Ok(0), false) => {
                tally.passed += 1;
                return "ok";
            }
            (Ok(KSFT_SKIP), false) => {
                tally.skipped.push(format!("SKIPPED {}: see its output", case.name));
                return SKIPPED;
            }
            // Counted already, by the tests' own result.
            (Ok(_), true) if failed > 0 => {}
            _ => {
                tally.failed += 1;
                tally.failures.push(case.name.clone());
            }
        }
        run::say(&format!("FAILED {}: {why}", case.name));
        let mut lines = self.last;
        lines.push_front(format!("the end of {}: {why}", case.name));
        tally.reasons.push(Vec::from(lines).join("\n    "));
        "FAILED"
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::series::Series;
    use super::*;

    fn target(vanilla: bool) -> Target {
        let version = "6.12".to_owned();
        let arch = Arch::X86_64;
        Target { version, arch, debug: false, vanilla, series: None, slow_gp: false, ksrc: None }
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

    /// How a test ends whose output is `output`.
    fn ends(ended: Result<i32>, output: &str) -> Attempt {
        let ended = ended.map(|status| Ended { status, took: Duration::ZERO });
        let mut tests = Tally::default();
        for line in output.lines() {
            tests.line(line);
        }
        let said = output.lines().any(is_sign);
        Attempt { ended, tests, said, last: output.lines().map(str::to_owned).collect() }
    }

    fn case(filter: &str) -> Case {
        cases(&target(false), &[filter.to_owned()]).unwrap().swap_remove(0)
    }

    #[test]
    fn only_what_derailed_is_tried_again() {
        let (race, api, rust) = (case("race_test"), case("regions_test"), case("bench guest"));
        let [shutdown, _, lost, ..] = DERAILED;
        let derailed = |status, said, case| ends(Ok(status), said).derailed(case);
        assert!(derailed(254, shutdown, &race) && derailed(101, lost, &rust));
        assert!(!derailed(254, "", &race) && !derailed(254, shutdown, &api));
        assert!(!derailed(0, shutdown, &race));
        let hang = || Err(anyhow::Error::from(Hang("no end".to_owned())).context("log"));
        assert!(ends(hang(), "").derailed(&race) && !ends(hang(), "").derailed(&rust));
        let complained = Err(anyhow::anyhow!("the guest's kernel complained"));
        assert!(!ends(complained, shutdown).derailed(&race));
    }

    #[test]
    fn a_failure_is_counted_once_and_says_why() {
        let counted = |attempt: Attempt, filter| {
            let mut tally = Tally::default();
            let verdict = attempt.count(&case(filter), &mut tally);
            (verdict, tally)
        };
        let (verdict, tally) = counted(ends(Ok(0), ""), "race_test");
        assert_eq!((verdict, tally.passed, tally.reasons.len()), ("ok", 1, 0));
        let (verdict, tally) = counted(ends(Ok(KSFT_SKIP), ""), "race_test");
        assert_eq!((verdict, tally.skipped.len()), ("skipped", 1));

        let output = "test a ... FAILED\nthread 'a' panicked\n\
                      test result: FAILED. 3 passed; 1 failed; 0 ignored";
        let (verdict, tally) = counted(ends(Ok(101), output), "bench guest");
        assert_eq!((verdict, tally.passed, tally.failed), ("FAILED", 3, 1));
        assert_eq!(tally.failures, ["a"]);
        assert!(tally.reasons[0].contains("exit status 101\n    test a"), "{:?}", tally.reasons);

        // Without one result, nothing was tested.
        for attempt in [ends(Ok(0), ""), ends(Err(anyhow::anyhow!("no end")), output)] {
            let failed_tests = attempt.tests.failed;
            let (verdict, tally) = counted(attempt, "bench guest");
            assert_eq!((verdict, tally.failed), ("FAILED", failed_tests + 1));
            assert_eq!(tally.reasons.len(), 1);
        }
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
