//! `kernel/results`: what a command found, on what, written by the command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::args::Chosen;
use super::series::Series;
use super::target::{self, Target};
use super::{source, tools};
use crate::{run, workspace};

/// What a file says beside what was found.
pub(super) struct Record {
    /// `bench`, `check`, `litmus`, `test` or `uefi`.
    command: &'static str,
    /// What of it is meant, all if empty.
    filters: Vec<String>,
    /// What else the machine did when the command began.
    load: String,
}

impl Record {
    /// Of `command`, which begins now, if it was asked for one.
    ///
    /// # Errors
    /// If the tree is not one that others have: no record is made of that.
    pub(super) fn begin(
        chosen: &Chosen,
        command: &'static str,
        target: &Target,
    ) -> Result<Option<Self>> {
        if chosen.record && target.ksrc.is_some() {
            bail!("--record is for a kernel of the lab, not for KSRC");
        }
        let filters = chosen.filters.clone();
        Ok(chosen.record.then(|| Self { command, filters, load: load() }))
    }

    /// Writes `found`, in Markdown, about `target`.
    pub(super) fn write(&self, target: &Target, found: &str) -> Result<()> {
        let path = self.path(target);
        let facts = [
            ("kernel", kernel(target)?),
            ("machine", machine()),
            ("QEMU", first_line(tools::qemu(target.arch), &["--version"])),
            ("compiler", first_line(&format!("{}gcc", target.arch.cross()), &["--version"])),
            ("load of the machine", format!("{} before, {} after", self.load, load())),
            ("date", first_line("date", &["-u", "+%F"])),
            ("commit", commit()),
        ];
        save(&path, &text(&self.asked(target), &facts, found))
    }

    /// The command as one would type it.
    fn asked(&self, target: &Target) -> String {
        let mut asked = format!("cargo xtask kernel {} --record", self.command);
        let mut add = |given: bool, option: &str| {
            if given {
                asked.push(' ');
                asked.push_str(option);
            }
        };
        // Others have a kernel of their own.
        let any = !matches!(self.command, "litmus" | "uefi");
        add(self.command != "litmus", &format!("--linux {}", target.version));
        add(any, &format!("--arch {}", target.arch.name()));
        add(target.debug, "--debug");
        add(target.jump_labels, "--jump-labels");
        add(any && target.vanilla, "--vanilla");
        add(target.slow_gp, "--slow-gp");
        if let Some(series) = target.series {
            add(true, &format!("--series {}", series.name()));
        }
        for filter in &self.filters {
            add(true, &run::quoted(filter));
        }
        asked
    }

    /// `kernel/results/bench-6.12-x86_64.md`; a part has a file of its own.
    fn path(&self, target: &Target) -> PathBuf {
        let mut name = format!("{}-{}", self.command, target.name());
        for filter in &self.filters {
            let words = filter.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            for word in words.filter(|word| !word.is_empty()) {
                name.push('-');
                name.push_str(word);
            }
        }
        workspace::root().join(format!("kernel/results/{name}.md"))
    }
}

/// Writes a file of results, and says so.
pub(super) fn save(path: &Path, text: &str) -> Result<()> {
    let dir = path.parent().context("results")?;
    fs::create_dir_all(dir).with_context(|| target::shown(dir))?;
    fs::write(path, text).with_context(|| target::shown(path))?;
    run::say(&format!("written: {}", target::shown(path)));
    Ok(())
}

/// What `asked` was run on, in a table, and what it found.
pub(super) fn text(asked: &str, facts: &[(&str, String)], found: &str) -> String {
    let facts: Vec<String> = facts.iter().map(|(of, fact)| format!("| {of} | {fact} |")).collect();
    let facts = facts.join("\n");
    format!("# `{asked}`\n\n| | |\n| --- | --- |\n{facts}\n\n{}\n", found.trim_end())
}

/// A table in Markdown, aligned.
pub(super) fn markdown(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut cells: Vec<Vec<String>> = vec![header.iter().map(|&cell| cell.to_owned()).collect()];
    cells.extend(rows);
    let width = |column: usize| cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let pad = |(cell, width): (&String, &usize)| format!(" {cell:<width$} |");
        format!("|{}", row.iter().zip(&widths).map(pad).collect::<String>())
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
    let mut lines: Vec<String> = cells.iter().map(line).collect();
    lines.insert(1, format!("|{}|", rule.join("|")));
    lines.join("\n")
}

/// The version in all its parts, as the source's Makefile has it.
fn kernel(target: &Target) -> Result<String> {
    let path = source::unpatched(target)?.join("Makefile");
    let makefile = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let with: Vec<&str> = target.with()?.into_iter().map(Series::name).collect();
    let with = if with.is_empty() { "no series".to_owned() } else { with.join(", ") };
    Ok(format!("{} {}, with {with}", version(&makefile), target.arch.name()))
}

fn version(makefile: &str) -> String {
    let part = |name: &str| {
        let value =
            |line: &str| line.strip_prefix(name)?.trim().strip_prefix('=').map(str::to_owned);
        makefile.lines().find_map(value).unwrap_or_default().trim().to_owned()
    };
    format!("{}.{}.{}", part("VERSION"), part("PATCHLEVEL"), part("SUBLEVEL"))
}

/// Its processors.
pub(super) fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        |line: &str| line.strip_prefix("model name")?.split_once(": ").map(|(_, m)| m.to_owned());
    let model = cpus.lines().find_map(model).unwrap_or_else(|| "unknown".to_owned());
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{count} processors, {model}")
}

/// What was asked of the processors in the last minute.
pub(super) fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or_default().to_owned()
}

/// What is checked out, and whether that is all.
pub(super) fn commit() -> String {
    let Some(commit) = workspace::git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    // Records of before are not what was built.
    let changed = workspace::git(&["status", "--porcelain", "--", ".", ":!kernel/results"]);
    let clean = changed.is_some_and(|changed| changed.is_empty());
    if clean { commit } else { format!("{commit}, with changes") }
}

/// What `program` says of itself.
pub(super) fn first_line(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    said.ok().and_then(|said| said.lines().next().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn target() -> Target {
        Target { series: Some(Series::Waits), ..Target::of("6.12") }
    }

    fn begin(
        record: bool,
        command: &'static str,
        target: &Target,
        filters: &[&str],
    ) -> Result<Option<Record>> {
        let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
        Record::begin(&Chosen { record, filters }, command, target)
    }

    #[test]
    fn a_record_says_how_to_make_it_again() {
        let record = begin(true, "bench", &target(), &[]).unwrap().unwrap();
        let asked = record.asked(&target());
        assert_eq!(
            asked,
            "cargo xtask kernel bench --record --linux 6.12 --arch x86_64 --series waits"
        );
        assert!(record.path(&target()).ends_with("kernel/results/bench-6.12-x86_64-waits.md"));
        let patching = Target { jump_labels: true, ..target() };
        assert!(record.asked(&patching).ends_with(" --arch x86_64 --jump-labels --series waits"));
        let text = text(&asked, &[("kernel", "6.12.1".to_owned())], "found\n\n");
        assert!(text.starts_with("# `cargo") && text.ends_with("| kernel | 6.12.1 |\n\nfound\n"));
    }

    #[test]
    fn commands_that_have_a_kernel_of_their_own() {
        let vanilla = Target { vanilla: true, series: None, ..target() };
        let asked = |command| begin(true, command, &vanilla, &[]).unwrap().unwrap().asked(&vanilla);
        assert_eq!(asked("litmus"), "cargo xtask kernel litmus --record");
        assert_eq!(asked("uefi"), "cargo xtask kernel uefi --record --linux 6.12");
    }

    #[test]
    fn a_part_has_a_file_of_its_own() {
        let filters = ["selftest irqfd"];
        let part = begin(true, "test", &target(), &filters).unwrap().unwrap();
        assert!(part.path(&target()).ends_with("test-6.12-x86_64-waits-selftest-irqfd.md"));
        assert!(part.asked(&target()).ends_with(" --series waits 'selftest irqfd'"));
    }

    #[test]
    fn no_record_of_somebodys_tree() {
        let own = Target { ksrc: Some("/linux".into()), ..target() };
        assert!(begin(true, "test", &own, &[]).is_err());
        assert!(begin(false, "test", &own, &[]).unwrap().is_none());
    }

    #[test]
    fn versions_in_all_their_parts() {
        let makefile = "# SPDX\nVERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 117\nEXTRAVERSION =\n";
        assert_eq!(version(makefile), "6.12.117");
    }
}
