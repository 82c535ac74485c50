//! What the series change, measured in guests: the batch ioctl against single
//! calls, and what selftests tell of times.

mod first;
mod instructions;
mod load;
mod rows;
mod table;
mod told;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use super::boot::{Guest, Job};
use super::initrd::{Command, Program};
use super::programs::{self, Source};
use super::record::{self, Record};
use super::series::Series;
use super::target::Target;
use super::test::wanted;
use super::{build, selftests, target};
use crate::run;
use instructions::Counted;
use load::Load;
use rows::{Boot, Row};
use table::Measured;
use told::{Compared, Told};

const MEMSLOTS: Source = Source { package: "kvm-memslots-bench", kind: "bin", name: "memslots" };

/// Runs `memslots` with `args`.
pub(super) fn run(
    target: &Target,
    guest: &Guest,
    args: &[String],
    qemu: &super::Qemu,
) -> Result<ExitCode> {
    let programs = programs::build(&[MEMSLOTS], target.arch)?;
    let words = [&["/bin/memslots".to_owned()], args].concat();
    let command = Command { words, env: qemu.env.clone() };
    guest.show("bench", command, &programs)
}

/// Measures the rows that `args` names, what is compared in one boot each, and
/// shows them beside what is wanted of them.
pub(super) fn table(target: &Target, args: &super::Bench) -> Result<ExitCode> {
    if target.vanilla {
        bail!("the tables are about the series, which this kernel does not have: bench -- ARGS");
    }
    let record = Record::begin(&args.chosen, "bench", target)?;
    let filters = &args.chosen.filters;
    // What a series stands on has a table of its own.
    let batch = target.series.is_none_or(|series| series == Series::Batch);
    let boots = if batch { rows::boots(filters) } else { Vec::new() };
    let told = told::of(target)?;
    let asked: Vec<&Told> =
        told.iter().copied().filter(|told| wanted(&told.name(), filters)).collect();
    let work = if batch { instructions::work(filters) } else { Vec::new() };
    let first = first::asked(target, filters)?;
    if boots.is_empty() && asked.is_empty() && work.is_empty() && !first {
        if filters.is_empty() {
            run::say("nothing of this series is measured on this architecture");
            return Ok(ExitCode::SUCCESS);
        }
        let rows = if batch { rows::boots(&[]) } else { Vec::new() };
        let mut all: Vec<String> = rows.iter().flat_map(Boot::names).collect();
        let counted = if batch { instructions::work(&[]) } else { Vec::new() };
        all.extend(counted.iter().map(|work| work.name()));
        all.extend(told.iter().map(|told| told.name()));
        if first::asked(target, &[])? {
            all.push(first::NAME.to_owned());
        }
        bail!("no row is called so; there are:\n  {}", all.join("\n  "));
    }
    let mut failed = Vec::new();
    let mut measured = Vec::new();
    if !boots.is_empty() {
        let programs = programs::build(&[MEMSLOTS], target.arch)?;
        for boot in &boots {
            if let Err(e) = measure(target, args, boot, &programs, &mut measured) {
                run::say(&format!("FAILED {}: {e:#}", boot.machine));
                failed.push(boot.machine.to_owned());
            }
        }
    }
    let mut compared = Vec::new();
    for told in asked {
        match compare(target, args, told) {
            Ok(more) => compared.extend(more),
            Err(e) => {
                run::say(&format!("FAILED {}: {e:#}", told.name()));
                failed.push(told.name());
            }
        }
    }
    if first {
        match first::measure(target, args) {
            Ok(more) => compared.extend(more),
            Err(e) => {
                run::say(&format!("FAILED {}: {e:#}", first::NAME));
                failed.push(first::NAME.to_owned());
            }
        }
    }
    let counted = match instructions::count(target, args, &work) {
        Ok(counted) => counted,
        Err(e) => {
            run::say(&format!("FAILED instructions: {e:#}"));
            failed.push("instructions".to_owned());
            Vec::new()
        }
    };
    let missed = measured.iter().filter(|row| !row.reached()).count()
        + compared.iter().filter(|row| !row.reached()).count()
        + counted.iter().filter(|row| !row.reached()).count();
    let mut found = Vec::new();
    if !measured.is_empty() {
        found.push(format!("Medians of {} runs:", args.runs));
        found.push(table::table(&measured));
    }
    if !compared.is_empty() {
        let too = if first { " and `memslots doctor`" } else { "" };
        found.push(format!("By selftests{too}:"));
        found.push(record::markdown(&told::HEADER, compared.iter().map(Compared::cells)));
    }
    if !counted.is_empty() {
        found.push("Instructions of one emulated processor, idle VM, a slot:".to_owned());
        found.push(record::markdown(&instructions::HEADER, counted.iter().map(Counted::cells)));
    }
    found.push(match missed {
        0 => "All rows are as wanted.".to_owned(),
        missed => format!("{missed} rows are not as wanted."),
    });
    let found = found.join("\n\n");
    run::say(&format!("\nLinux {}\n\n{found}", target.name()));
    if !failed.is_empty() {
        bail!("no figures from: {}", failed.join(", "));
    }
    if let Some(record) = record {
        record.write(target, &found)?;
    }
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a selftest that compares, on the kernel without the series, too, if it
/// takes that.
fn compare(target: &Target, args: &super::Bench, told: &Told) -> Result<Vec<Compared>> {
    super::boot::available(target)?;
    let kernel = build::kernel(target)?;
    let programs = selftests::build(target, &kernel, &[told.program])?;
    let kernels = told.kernels(target)?;
    if kernels.len() > 1 && target.ksrc.is_some() {
        bail!("KSRC is one tree, and this takes the kernel without the series, too");
    }
    let said: Result<Vec<Vec<String>>> =
        kernels.iter().map(|kernel| tell(kernel, args, told, &programs)).collect();
    let said = said?;
    if kernels.len() < 3 {
        return told.compared(&said[0], said.get(1).map_or(&[], Vec::as_slice));
    }
    let mut compared = Vec::new();
    for (kernels, said) in kernels.windows(2).zip(said.windows(2)) {
        let rows = told.compared(&said[0], &said[1])?;
        compared.extend(rows.into_iter().map(|row| row.between(&kernels[0], &kernels[1], target)));
    }
    Ok(compared)
}

/// What the selftest says on the kernel of `target`.
fn tell(
    target: &Target,
    args: &super::Bench,
    told: &Told,
    programs: &[Program],
) -> Result<Vec<String>> {
    let qemu = super::Qemu { icount: args.qemu.icount || told.icount, ..args.qemu.clone() };
    let (_, guest) = Guest::of(target, &qemu)?;
    let mut words = vec![format!("/bin/{}", told.program)];
    words.extend(told.args.iter().map(|&arg| arg.to_owned()));
    let command = Command { words, env: args.qemu.env.clone() };
    run::say(&format!("\n==> {}", told.name()));
    let name = format!("bench-{}", told.name().trim_end().replace([' ', '=', '.'], "-"));
    let programs = programs.iter().collect();
    guest.lines(&Job { programs, append: told.append, ..Job::new(&name, command) })
}

/// Boots once for all rows of `boot`.
fn measure(
    target: &Target,
    args: &super::Bench,
    boot: &Boot,
    programs: &[Program],
    measured: &mut Vec<Measured>,
) -> Result<()> {
    let target = Target { slow_gp: boot.slow_gp, ..target.clone() };
    if boot.slow_gp && target.ksrc.is_some() {
        bail!("KSRC is a tree as it is, without the lab's patch for slow grace periods");
    }
    let (_, guest) = Guest::of(&target, &args.qemu)?;
    let command = Command { words: script(&boot.rows, args.runs), env: args.qemu.env.clone() };
    run::say(&format!("\n==> {}", boot.machine));
    let load = boot.busy.then(Load::start);
    let name = format!("bench-{}", boot.name);
    let programs = programs.iter().collect();
    let job = Job { programs, append: boot.append, ..Job::new(&name, command) };
    let lines = guest.lines(&job);
    drop(load);
    let lines = lines?;
    for row in &boot.rows {
        let row = Measured::of(row, boot.machine, &lines)
            .with_context(|| format!("{}, see {}", row.work, target::shown(&target.dir())))?;
        measured.push(row);
    }
    Ok(())
}

/// A shell command that runs `rows` one after the other.
fn script(rows: &[&'static Row], runs: u32) -> Vec<String> {
    let bench = |row: &&Row| {
        let runs = row.runs.unwrap_or(runs);
        let args = row.args();
        format!(
            "echo '# {}' && /bin/memslots bench {args} --runs {runs} --json \
             --strategy per-region,batch,raw-batch",
            row.work
        )
    };
    let script: Vec<String> = rows.iter().map(bench).collect();
    ["sh", "-c", &script.join(" && ")].map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rows_of_a_boot_are_run_until_one_fails() {
        let boots = rows::boots(&[]);
        for boot in &boots {
            let script = script(&boot.rows, 5).pop().unwrap_or_default();
            assert_eq!(script.matches("/bin/memslots bench ").count(), boot.rows.len());
            assert_eq!(script.matches(" && ").count(), 2 * boot.rows.len() - 1);
        }
    }
}
