//! The batch ioctl against single calls, measured in guests.

mod load;
mod rows;
mod table;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use super::boot::{Guest, Job};
use super::initrd::{Command, Program};
use super::programs::{self, Source};
use super::series::Series;
use super::target::Target;
use super::{build, target};
use crate::run;
use load::Load;
use rows::{Boot, Row};
use table::Measured;

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
    if target.ksrc.is_none() && !target.with()?.contains(&Series::Batch) {
        bail!("the table is about the batch, which this kernel does not have: bench -- ARGS");
    }
    let boots = rows::boots(&args.filters);
    if boots.is_empty() {
        let all: Vec<String> = rows::boots(&[]).iter().flat_map(Boot::names).collect();
        bail!("no row is called so; there are:\n  {}", all.join("\n  "));
    }
    let programs = programs::build(&[MEMSLOTS], target.arch)?;
    let mut measured = Vec::new();
    let mut failed = Vec::new();
    for boot in &boots {
        if let Err(e) = measure(target, args, boot, &programs, &mut measured) {
            run::say(&format!("FAILED {}: {e:#}", boot.machine));
            failed.push(boot.machine);
        }
    }
    run::say(&format!("\nLinux {}, medians of {} runs:\n", target.name(), args.runs));
    run::say(&table::table(&measured));
    let missed = measured.iter().filter(|row| !row.reached()).count();
    if missed > 0 {
        run::say(&format!("{missed} rows are not as wanted"));
    }
    if !failed.is_empty() {
        bail!("no figures from: {}", failed.join(", "));
    }
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
    super::boot::available(&target)?;
    let kernel = build::kernel(&target)?;
    let guest = Guest::new(&target, &kernel, args.qemu.clone())?;
    let command = Command { words: script(&boot.rows, args.runs), env: args.qemu.env.clone() };
    run::say(&format!("\n==> {}", boot.machine));
    let load = boot.busy.then(Load::start);
    let mut lines = Vec::new();
    let name = format!("bench-{}", boot.name);
    let programs = programs.iter().collect();
    let job = Job { programs, append: boot.append, ..Job::new(&name, command) };
    let ended = guest.run(&job, |line| {
        run::say(line);
        lines.push(line.to_owned());
    })?;
    drop(load);
    if ended.status != 0 {
        bail!("memslots ended with status {}", ended.status);
    }
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
