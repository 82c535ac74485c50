//! What a maintainer's tools say of the series: `checkpatch.pl`, a build after
//! each patch, new warnings, sparse.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use super::make::Make;
use super::patch::{self, Patch, Tree};
use super::record::Record;
use super::target::{Arch, Target};
use super::test::wanted;
use super::{config, lock, logged, selftests, source, target, tools};
use crate::run;

/// What `checkpatch.pl` is not asked about: the source has no history in which
/// it could find commits, and the directories of new files have their
/// maintainers.
const NOT_CHECKED: &str = "UNKNOWN_COMMIT_ID,FILE_PATH_CHANGES";

/// Debian's sparse does not know an operator that newer kernels use.
const SPARSE: &str = "CHECK=sparse -D__typeof_unqual__=__typeof__";

/// Checks the patches of `target`'s series that `args` names.
pub(super) fn run(target: &Target, args: &super::Check) -> Result<ExitCode> {
    let filters = args.chosen.filters.as_slice();
    let record = Record::begin(&args.chosen, "check", target)?;
    if target.vanilla || target.ksrc.is_some() {
        bail!("it is the series that is checked: not with --vanilla or KSRC");
    }
    tools::for_build(target.arch)?;
    tools::for_check()?;
    let sparse = tools::sparse();
    // What a series stands on is checked as a series of its own.
    let mut series = Vec::new();
    let mut bases = 0;
    for with in target.with()? {
        if target.series == Some(with) {
            bases = series.len();
        }
        series.extend(patch::of_series(with, &target.version)?);
    }
    let wanted: Vec<usize> =
        (bases..series.len()).filter(|&nth| wanted(&series[nth].name(), filters)).collect();
    if wanted.is_empty() {
        bail!("no patch of this series is called so");
    }
    // A tree of its own, so that what is built for other commands stays.
    let dir = target::dir().join(format!("check-{}", target.tree_name()));
    let _lock = lock::wait(&dir)?;
    let tree = Tree { pristine: source::pristine(&target.version)?, dir: dir.clone() };
    let make = Make::new(target, tree.source(), dir.join("build"), dir.join("check.log"))?;

    let mut wrong = Vec::new();
    tree.apply(&series[..bases])?;
    for &nth in &wanted {
        wrong.extend(style(&tree.source(), &series[nth], &dir.join("checkpatch.log"))?);
    }
    config::configure(target, &make)?;
    let known = compile(&make, target.arch, "the kernel without", &[])?;
    let with_sparse = ["C=2", SPARSE];
    let known_to_sparse = if sparse {
        compile(&make, target.arch, "sparse, the kernel without", &with_sparse)?
    } else {
        BTreeSet::new()
    };
    for &nth in &wanted {
        tree.apply(&series[..=nth])?;
        let name = series[nth].name();
        match compile(&make, target.arch, &name, &[]) {
            Ok(said) => wrong.extend(news(&name, &known, &said)),
            Err(e) => wrong.push(format!("{name} does not build: {e:#}")),
        }
        match selftests(&make, target.arch, &dir, &series[nth]) {
            Ok(said) => wrong.extend(said.into_iter().map(|said| format!("{name}: {said}"))),
            Err(e) => wrong.push(format!("the selftests of {name} do not build: {e:#}")),
        }
    }
    if sparse {
        tree.apply(&series)?;
        let said = compile(&make, target.arch, "sparse, the series", &with_sparse)?;
        wrong.extend(news("sparse", &known_to_sparse, &said));
    }

    let verdict = verdict(target, wanted.len(), sparse, &wrong);
    run::say(&verdict);
    if let Some(record) = record {
        record.write(target, &format!("```text\n{verdict}\n```"))?;
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was checked of how many `patches`, and what is `wrong`, in lines.
fn verdict(target: &Target, patches: usize, sparse: bool, wrong: &[String]) -> String {
    let mut lines: Vec<String> = wrong.iter().map(|wrong| format!("WRONG {wrong}")).collect();
    let by_sparse = if sparse { ", sparse" } else { "" };
    lines.push(format!(
        "{patches} patches on Linux {}: checkpatch, a build after each with W=1, its selftests{by_sparse}: {}",
        target.name(),
        if wrong.is_empty() { "nothing to say".to_owned() } else { wrong.len().to_string() },
    ));
    if !sparse {
        lines.push("NOT CHECKED by sparse, which is not to be had here".to_owned());
    }
    lines.join("\n")
}

/// What `checkpatch.pl` has against `patch`.
fn style(source: &Path, patch: &Patch, log: &Path) -> Result<Vec<String>> {
    let mut checkpatch = Command::new("perl");
    checkpatch.arg(source.join("scripts/checkpatch.pl")).arg("--root").arg(source);
    checkpatch.args(["--strict", "--terse", "--show-types", "--ignore", NOT_CHECKED]);
    // In a repository that has the patch, it is taken for source code.
    checkpatch.arg(&patch.path).current_dir(source);
    let output = checkpatch.output().context("can't run perl")?;
    let said = String::from_utf8_lossy(&output.stdout);
    std::fs::write(log, said.as_bytes()).with_context(|| format!("{}", log.display()))?;
    let said: Vec<String> = objections(&said, &patch.path).map(str::to_owned).collect();
    if !output.status.success() && said.is_empty() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("checkpatch.pl failed on {}: {}", patch.name(), why.trim());
    }
    Ok(said)
}

/// `FILE:LINE: WARNING:TYPE: ...` of `checkpatch.pl --terse`, without the folder
/// of `patch`, as records name no place of a machine.
fn objections<'a>(said: &'a str, patch: &Path) -> impl Iterator<Item = &'a str> {
    let kinds = [": ERROR:", ": WARNING:", ": CHECK:"];
    let folder = patch.parent().map(|folder| format!("{}/", folder.display())).unwrap_or_default();
    said.lines()
        .filter(move |line| kinds.iter().any(|kind| line.contains(kind)))
        .map(move |line| line.strip_prefix(&folder).unwrap_or(line))
}

/// Builds KVM; what the compiler warned of, without line numbers.
fn compile(make: &Make, arch: Arch, what: &str, args: &[&str]) -> Result<BTreeSet<String>> {
    let goal = match arch {
        Arch::X86_64 => "arch/x86/kvm/",
        Arch::Arm64 => "arch/arm64/kvm/",
    };
    let mut command = make.out_of_tree();
    command.arg("W=1").args(args).arg(goal);
    let mut warnings = BTreeSet::new();
    let mut checked = 0_usize;
    logged::read(what, &mut command, make.log(), true, |line| {
        warnings.extend(warning(line));
        checked += usize::from(line.trim_start().starts_with("CHECK "));
        true
    })?;
    // kbuild goes on without a checker that it finds too old.
    if args.contains(&SPARSE) && checked == 0 {
        bail!("sparse was not run on any file, see {}", target::shown(make.log()));
    }
    Ok(warnings)
}

/// Builds the selftests that `patch` adds or changes; what the compiler warned
/// of.
fn selftests(make: &Make, arch: Arch, dir: &Path, patch: &Patch) -> Result<BTreeSet<String>> {
    let places = selftests::among(patch.files(), arch);
    let mut warnings = BTreeSet::new();
    if places.is_empty() {
        return Ok(warnings);
    }
    let what = format!("the selftests of {}", patch.name());
    let log = dir.join("selftests.log");
    selftests::compile(arch, make, dir, &what, &places, &log, |line| {
        warnings.extend(warning(line));
        true
    })?;
    Ok(warnings)
}

/// `FILE: warning: ...` of `FILE:LINE:COLUMN: warning: ...`.
fn warning(line: &str) -> Option<String> {
    let (place, text) =
        [": warning: ", ": error: "].iter().find_map(|kind| line.split_once(kind))?;
    let file = place.split(':').next()?;
    // Trees and build directories differ, sources do not.
    let file = file.rsplit_once("/source/").map_or(file, |(_, file)| file);
    Some(format!("{file}: {text}"))
}

/// What is in `said` and not in `known`.
fn news(who: &str, known: &BTreeSet<String>, said: &BTreeSet<String>) -> Vec<String> {
    said.difference(known).map(|warning| format!("{who}: {warning}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_without_their_place() {
        let line = "../source/virt/kvm/kvm_main.c:12:3: warning: unused variable 'x' [-Wunused]";
        let same = "/t/source/virt/kvm/kvm_main.c:99:1: warning: unused variable 'x' [-Wunused]";
        let expected = "virt/kvm/kvm_main.c: unused variable 'x' [-Wunused]";
        assert_eq!(warning(line).as_deref(), Some(expected));
        assert_eq!(warning(same).as_deref(), Some(expected));
        assert_eq!(warning("  CC      virt/kvm/kvm_main.o"), None);
    }

    #[test]
    fn only_what_is_new_counts() {
        let set = |all: &[&str]| all.iter().map(|&one| one.to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(news("0001", &set(&["a", "b"]), &set(&["b", "c"])), ["0001: c"]);
        assert_eq!(news("0001", &set(&["a"]), &set(&[])), [""; 0]);
    }

    #[test]
    fn objections_of_checkpatch() {
        let said = "/a/b.patch:7: WARNING:LONG_LINE: line length of 101\n\
                    /a/b.patch:9: CHECK:SPACING: spaces preferred\n\
                    total: 0 errors, 1 warnings, 1 checks, 20 lines checked\n";
        let said: Vec<&str> = objections(said, Path::new("/a/b.patch")).collect();
        assert_eq!(said.len(), 2);
        assert_eq!(said[1], "b.patch:9: CHECK:SPACING: spaces preferred");
    }
}
