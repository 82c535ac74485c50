//! Commands that pages tell a reader to run, in blocks for a shell and in text.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::page::Page;
use super::{small, targets};
use crate::log::Log;
use crate::workspace::{cargo, packages, root, target};

/// A command, as its program gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    /// The `memslots` tool.
    Memslots(Vec<String>),
    /// `cargo xtask`.
    Xtask(Vec<String>),
    /// Cargo, for a package or a program of one.
    Cargo(Vec<String>),
    /// Anything else that a block for a shell has.
    Other(String),
}

/// What is not carried out here, by what it begins with, and what does it.
const ELSEWHERE: [(&str, &str); 19] = [
    ("make -C client/capi install", "client/capi/tests/install.rs"),
    ("cc vmm.c $(pkg-config", "client/capi/tests/install.rs"),
    ("LD_PRELOAD=$PWD/target", "client/preload/tests/programs, with a program of its own"),
    ("strip -o vmlinux", BOOT),
    ("{ printf '#!/bin/sh", BOOT),
    ("VMM=target/", BOOT),
    ("SVM='", BOOT),
    ("WORDS='", BOOT),
    ("work=$(mktemp", SERIES),
    ("cp -r target/kernel/source", SERIES),
    ("git init", SERIES),
    ("git am", SERIES),
    ("git format-patch", SERIES),
    ("cd target/kernel/source", "herd7 is in no package"),
    ("herd7", "herd7 is in no package"),
    ("cd /sys/kernel/tracing", PROBES),
    ("echo 'p:memslots/call ", PROBES),
    ("echo 'r:memslots/done ", PROBES),
    ("echo 1 > events/memslots/enable", PROBES),
];
/// Probes are the whole machine's.
const PROBES: &str = "changes the machine; benches/tests/traces reads what it gives";
const BOOT: &str = "needs the kernel of cargo xtask kernel build";
const SERIES: &str = "needs the kernel's source; cargo xtask kernel check applies the patches";

/// A line for each command that is wrong. Those of the tool are carried out with
/// small sizes, a page's one after another in a directory; `cargo xtask` is asked
/// for its help; what cargo is to build has to exist.
pub(super) fn faults(pages: &[Page], log: &mut Log) -> Result<Vec<String>> {
    // As the tests have built it: by itself it would get other features.
    let features = ["test", "--workspace", "--all-features"];
    log.command(cargo().args(features).args(["--quiet", "--no-run", "--test", "cli"]))?;
    let packages = packages()?;
    let xtask = std::env::current_exe().context("where this program is")?;
    let (mut done, mut faults) = (Done::default(), Vec::new());
    for page in pages.iter().filter(|page| !super::is_results(&page.name)) {
        let dir = target().join("docs-commands");
        lay_out(&dir)?;
        for (line, found) in commands(page) {
            let wrong = match &found {
                Found::Memslots(args) => done.carry_out(args, &dir)?,
                Found::Xtask(args) => {
                    done.parsed += 1;
                    fails(Command::new(&xtask).args(asked(args)).arg("--help"))?
                }
                Found::Cargo(args) => {
                    done.built += 1;
                    targets::fault(args, &packages)
                }
                Found::Other(text) => done.elsewhere(text),
            };
            faults.extend(
                wrong.map(|why| format!("{}:{line}: {found:?}: {why}", page.name.display())),
            );
        }
    }
    done.tell(log);
    if done.ran.is_empty() && done.skipped.is_empty() {
        bail!("no page has a command");
    }
    Ok(faults)
}

/// What became of the commands.
#[derive(Debug, Default)]
struct Done {
    /// Those of the tool that were carried out, with the sizes they were given.
    ran: HashSet<Vec<String>>,
    /// Those that need KVM, where there is none.
    skipped: Vec<String>,
    /// Those of `cargo xtask`, which take minutes to hours.
    parsed: usize,
    /// Those of cargo, which are steps of their own.
    built: usize,
    /// Others, with what does them instead.
    others: Vec<String>,
}

impl Done {
    /// Has the tool do `args` in `dir`; why it failed.
    fn carry_out(&mut self, args: &[String], dir: &Path) -> Result<Option<String>> {
        let args = small::args(args);
        if self.ran.contains(&args) {
            return Ok(None);
        }
        if small::needs_kvm(&args) && !small::has_kvm() {
            self.skipped.push(args.join(" "));
            return Ok(None);
        }
        let memslots: PathBuf = target().join("debug/memslots");
        let wrong = fails(Command::new(memslots).args(&args).current_dir(dir))?;
        let wrong = wrong.map(|why| format!("memslots {}: {why}", args.join(" ")));
        self.ran.insert(args);
        Ok(wrong)
    }

    /// Notes who does `text`; says so if nobody does.
    fn elsewhere(&mut self, text: &str) -> Option<String> {
        let Some((_, who)) = ELSEWHERE.iter().find(|(begin, _)| text.starts_with(begin)) else {
            return Some("nothing runs it: see kernel/xtask/src/docs/commands.rs".to_owned());
        };
        self.others.push(format!("{text}: {who}"));
        None
    }

    fn tell(&self, log: &mut Log) {
        log.say(&format!("{} commands of memslots carried out, with small sizes", self.ran.len()));
        for args in &self.skipped {
            log.say(&format!("SKIPPED docs: memslots {args}: no KVM"));
        }
        log.say(&format!("{} of cargo xtask asked for their help: they boot kernels", self.parsed));
        log.say(&format!("{} of cargo have what they build: they are steps", self.built));
        log.say(&format!("{} not carried out:", self.others.len()));
        for other in &self.others {
            log.say(&format!("    {other}"));
        }
    }
}

/// Has in `dir` the files that pages speak of, and no other.
fn lay_out(dir: &Path) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("can't empty {}", dir.display()))?;
    }
    std::fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    let log = root().join("benches/tests/data/traces/qemu-7.2-x86_64-seabios.log");
    std::fs::copy(&log, dir.join("qemu.log")).with_context(|| format!("{}", log.display()))?;
    Ok(())
}

/// The first line of what `command` complains of, if it fails.
fn fails(command: &mut Command) -> Result<Option<String>> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("can't run {command:?}"))?;
    if output.status.success() {
        return Ok(None);
    }
    let says = String::from_utf8_lossy(&output.stderr);
    Ok(Some(says.lines().next().unwrap_or("no word, but no success").to_owned()))
}

/// The commands of a page, with the lines they are in.
fn commands(page: &Page) -> Vec<(usize, Found)> {
    let shell = page.blocks.iter().filter(|(_, language, _)| language == "sh");
    let blocks = shell.flat_map(|(line, _, text)| {
        text.lines().enumerate().map(move |(index, text)| (line + 1 + index, text))
    });
    let blocks = blocks.filter_map(|(line, text)| Some((line, found(text)?)));
    let codes = page.codes.iter().filter_map(|(line, text)| Some((*line, found(text)?)));
    // `memslots` and `cargo xtask` alone are names, and so is what other code is.
    let named = |(_, found): &(usize, Found)| match found {
        Found::Memslots(args) | Found::Xtask(args) => !args.is_empty(),
        Found::Cargo(_) => true,
        Found::Other(_) => false,
    };
    let mut commands: Vec<_> = blocks.chain(codes.filter(named)).collect();
    commands.sort_by_key(|(line, _)| *line);
    commands
}

fn found(text: &str) -> Option<Found> {
    let line = text.split(" #").next()?.trim().trim_start_matches(['$', '#', ' ']);
    let end = line.find(['|', '>', '<', ';', '&']).unwrap_or(line.len());
    let mut words = line[..end].split_whitespace().map(|word| word.trim_matches(['\'', '"']));
    // Variables before the command are for the command.
    let first = words.find(|word| !word.contains('='));
    let rest: Vec<String> = words.map(str::to_owned).collect();
    let has = |option: &str| rest.iter().any(|word| word == option);
    Some(match (first, rest.first().map(String::as_str)) {
        _ if line.is_empty() => return None,
        (Some("memslots"), _) => Found::Memslots(rest),
        (Some("cargo"), Some("xtask")) => Found::Xtask(rest[1..].to_vec()),
        (Some("cargo"), Some("run")) if !has("--example") && !has("-p") => {
            let dashes = rest.iter().position(|word| word == "--");
            Found::Memslots(dashes.map_or_else(Vec::new, |dashes| rest[dashes + 1..].to_vec()))
        }
        (Some("cargo"), Some(_)) => Found::Cargo(rest),
        _ => Found::Other(line.to_owned()),
    })
}

/// What `cargo xtask` itself gets of `args`, with something for `NAME`.
fn asked(args: &[String]) -> impl Iterator<Item = &str> {
    let name = if args.iter().any(|arg| arg == "vmm") { "qemu" } else { "batch" };
    let own = args.iter().take_while(|arg| *arg != "--");
    own.map(move |arg| if arg == "NAME" { name } else { arg })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(args: &str) -> Vec<String> {
        args.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn commands_are_found_in_lines() {
        let other = "git am $(ls) && git tag x";
        let cases = [
            ("cargo run --release    # compares", Some(Found::Memslots(words("")))),
            ("cargo run --release -- bench pci > f", Some(Found::Memslots(words("bench pci")))),
            ("memslots replay a.trace | less", Some(Found::Memslots(words("replay a.trace")))),
            ("A=b cargo xtask test --quick", Some(Found::Xtask(words("test --quick")))),
            ("cargo test -p a", Some(Found::Cargo(words("test -p a")))),
            ("cargo run -p a --bin b", Some(Found::Cargo(words("run -p a --bin b")))),
            (other, Some(Found::Other(other.to_owned()))),
            ("A='b c'", Some(Found::Other("A='b c'".to_owned()))),
            ("# a comment", Some(Found::Other("a comment".to_owned()))),
            ("", None),
        ];
        for (line, expected) in cases {
            assert_eq!(found(line), expected, "{line}");
        }
    }

    #[test]
    fn commands_are_found_in_text_and_names_are_none() {
        let text = "`memslots` has `memslots bench\npci`, `cargo xtask` and `cargo xtask test`, `ls`.\n\n\
                    ```sh\nmemslots doctor\nls\n```\n";
        let found: Vec<_> = commands(&Page::new("docs/a.md".into(), text));
        let expected = [
            (1, Found::Memslots(words("bench pci"))),
            (2, Found::Xtask(words("test"))),
            (5, Found::Memslots(words("doctor"))),
            (6, Found::Other("ls".to_owned())),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn names_are_put_in_for_what_a_reader_puts_in() {
        let asked = |line: &str| asked(&words(line)).collect::<Vec<_>>().join(" ");
        assert_eq!(asked("vmm NAME -- ARGS"), "vmm qemu");
        assert_eq!(asked("kernel check --series NAME"), "kernel check --series batch");
    }

    #[test]
    fn what_nothing_runs_is_a_fault() {
        let mut done = Done::default();
        assert_eq!(done.elsewhere("git am x"), None);
        assert!(done.elsewhere("frobnicate").is_some_and(|why| why.contains("nothing runs it")));
        assert_eq!(done.others, [format!("git am x: {SERIES}")]);
    }

    #[test]
    fn a_command_that_fails_says_why() {
        let fails = |script: &str| fails(Command::new("sh").args(["-c", script])).expect("sh");
        assert_eq!(fails("true"), None);
        assert_eq!(fails("echo no >&2; exit 1").as_deref(), Some("no"));
        assert!(fails("exit 1").is_some());
    }
}
