//! What the published crates offer, against the list of it in the repository.

mod changes;
mod rustdoc;

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::run;
use crate::rustc::Rustc;
use crate::workspace::{Package, packages};
use changes::{Changes, changes};
pub(crate) use rustdoc::Unreadable;

/// The list's file, next to a crate's `Cargo.toml`.
const FILE: &str = "public-api.txt";

/// How what has changed becomes the list.
const ACCEPT: &str = "cargo xtask api --bless";

/// Which crates, and what to do.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the lists, instead of comparing with them
    #[arg(long)]
    bless: bool,

    /// These crates only [default: all that are published]
    #[arg(value_name = "CRATE")]
    crates: Vec<String>,
}

/// A crate and what it offers.
pub(crate) struct Api {
    name: String,
    version: String,
    /// Where the list is that it is compared with.
    file: PathBuf,
    /// A line each.
    items: Vec<String>,
}

/// How a crate compares with its list.
pub(crate) struct Comparison {
    pub(crate) same: bool,
    /// What there is to say of it.
    pub(crate) lines: Vec<String>,
}

/// Compares, or blesses; fails where something differs.
pub(crate) fn run(args: &Args) -> ExitCode {
    compare_or_bless(args).unwrap_or_else(|e| {
        eprintln!("xtask api: {e:#}");
        ExitCode::FAILURE
    })
}

fn compare_or_bless(args: &Args) -> Result<ExitCode> {
    let published = published()?;
    let unknown = args.crates.iter().find(|name| !published.iter().any(|p| p.name == **name));
    if let Some(name) = unknown {
        let names: Vec<&str> = published.iter().map(|package| package.name.as_str()).collect();
        bail!("{name} is no published crate: {}", names.join(", "));
    }
    let wanted = |package: &&Package| args.crates.is_empty() || args.crates.contains(&package.name);
    let mut same = true;
    for package in published.iter().filter(wanted) {
        let api = match Api::of(package, &published, &mut streamed)? {
            Ok(api) => api,
            Err(unreadable) => bail!("{unreadable}"),
        };
        if args.bless {
            // A list that can't be read is written anew as well.
            if api.file.exists()
                && let Ok(comparison) = api.compare()
            {
                comparison.lines.iter().for_each(|line| run::say(line));
            }
            api.bless()?;
            run::say(&format!("wrote {}", api.file.display()));
            continue;
        }
        let comparison = api.compare()?;
        comparison.lines.iter().for_each(|line| run::say(line));
        same &= comparison.same;
    }
    if !same {
        run::say(&accept());
    }
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn streamed(command: &mut Command) -> Result<()> {
    let status = run::streamed(command, run::say)?;
    if !status.success() {
        bail!("{} ended with {status}", run::shown(command));
    }
    Ok(())
}

/// The crates whose lists are kept.
pub(crate) fn published() -> Result<Vec<Package>> {
    Ok(packages()?.into_iter().filter(|package| package.published).collect())
}

/// What to do about a comparison that finds a difference.
pub(crate) fn accept() -> String {
    format!("if that is as it should be: {ACCEPT}, and commit the lists")
}

impl Api {
    /// What `package`, one of `published`, offers with all its features; `run`
    /// runs rustdoc.
    pub(crate) fn of(
        package: &Package,
        published: &[Package],
        run: &mut dyn FnMut(&mut Command) -> Result<()>,
    ) -> Result<Result<Self, Unreadable>> {
        let items = rustdoc::items(package, published, run)?;
        Ok(items.map(|items| Self {
            name: package.name.clone(),
            version: package.version.clone(),
            file: package.dir.join(FILE),
            items,
        }))
    }

    /// What has changed since the list was written.
    pub(crate) fn compare(&self) -> Result<Comparison> {
        let Self { name, version, file, items } = self;
        let list = match fs::read_to_string(file) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let line =
                    format!("{name}: no baseline, {} is not there: {ACCEPT}", file.display());
                return Ok(Comparison { same: false, lines: vec![line] });
            }
            read => read.with_context(|| format!("can't read {}", file.display()))?,
        };
        let (head, old) = list.split_once('\n').unwrap_or((&list, ""));
        let head = Head::parse(head).with_context(|| {
            format!("the first line of {} is no head of a list", file.display())
        })?;
        let old: Vec<&str> = old.lines().collect();
        let new: Vec<&str> = items.iter().map(String::as_str).collect();
        let changes = changes(&old, &new);
        if changes.is_none() {
            let line = format!("{name} {version}: {} items, as in {}", new.len(), head.version);
            return Ok(Comparison { same: true, lines: vec![line] });
        }
        Ok(Comparison { same: false, lines: report(name, version, &head, &changes) })
    }

    /// Makes what it offers the list.
    fn bless(&self) -> Result<()> {
        let Self { name, version, file, items } = self;
        let head = Head { name, version, rustc: &Rustc::in_use().version() }.line();
        let list: String = [head].iter().chain(items).flat_map(|line| [line, "\n"]).collect();
        fs::write(file, list).with_context(|| format!("can't write {}", file.display()))
    }
}

/// The first line of a list.
#[derive(Debug, PartialEq)]
struct Head<'a> {
    name: &'a str,
    version: &'a str,
    /// What made the list.
    rustc: &'a str,
}

impl<'a> Head<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (package, rustc) = line.strip_prefix("# ")?.split_once(", listed with ")?;
        let (name, version) = package.split_once(' ')?;
        Some(Self { name, version, rustc })
    }

    fn line(&self) -> String {
        format!("# {} {}, listed with {}", self.name, self.version, self.rustc)
    }
}

fn report(name: &str, version: &str, head: &Head<'_>, changes: &Changes<'_>) -> Vec<String> {
    let mut lines = vec![format!("{name} {version} is not what is listed of {}:", head.version)];
    let Changes { breaking, additions } = changes;
    for (title, changes) in [("breaking", breaking), ("additions", additions)] {
        if !changes.is_empty() {
            lines.push(format!("  {title}:"));
            lines.extend(changes.iter().map(|change| format!("    {change}")));
        }
    }
    if !breaking.is_empty() {
        lines.push(if may_break(head.version, version) {
            format!("  {version} may break what {} promised", head.version)
        } else {
            format!(
                "  once {} is published, a version that breaks it is {} or later, not {version}",
                head.version,
                next(head.version)
            )
        });
    }
    let rustc = Rustc::in_use().version();
    if rustc != head.rustc {
        lines.push(format!(
            "  (the list is of {}, this is {rustc}: what the standard library calls its items may \
             differ)",
            head.rustc
        ));
    }
    lines
}

/// Whether `new` may break what `old` promised, as cargo takes versions: the
/// first number that is not 0 differs.
fn may_break(old: &str, new: &str) -> bool {
    promise(old) != promise(new)
}

/// The numbers of a version up to the first that is not 0.
fn promise(version: &str) -> Vec<u64> {
    let mut numbers = Vec::new();
    // Without what follows the three numbers.
    let version = version.split(['-', '+']).next().unwrap_or_default();
    for number in version.split('.') {
        let number = number.parse().unwrap_or(0);
        numbers.push(number);
        if number != 0 {
            break;
        }
    }
    numbers
}

/// The first version that may break what `version` promises.
fn next(version: &str) -> String {
    let mut numbers = promise(version);
    if let Some(last) = numbers.last_mut() {
        *last += 1;
    }
    numbers.resize(3, 0);
    let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
    numbers.join(".")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn api(dir: &tempfile::TempDir, version: &str, items: &[&str]) -> Api {
        Api {
            name: "a".to_owned(),
            version: version.to_owned(),
            file: dir.path().join(FILE),
            items: items.iter().map(|item| (*item).to_owned()).collect(),
        }
    }

    #[test]
    fn what_is_blessed_is_the_same_until_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let first = api(&dir, "0.1.0", &["pub mod a", "pub fn a::f()", "pub fn a::g()"]);
        let none = first.compare().unwrap();
        assert!(!none.same);
        assert!(none.lines[0].contains("no baseline"), "{:?}", none.lines);
        assert!(none.lines[0].contains("cargo xtask api --bless"), "{:?}", none.lines);

        first.bless().unwrap();
        assert!(first.compare().unwrap().same);
        let again = api(&dir, "0.2.0", &["pub mod a", "pub fn a::f()", "pub fn a::g()"]);
        assert!(again.compare().unwrap().same, "a version of its own is no difference");

        let items = ["pub mod a", "pub fn a::f(u32)", "pub fn a::h()"];
        let changed = api(&dir, "0.1.1", &items).compare().unwrap();
        assert!(!changed.same);
        let expected = [
            "a 0.1.1 is not what is listed of 0.1.0:",
            "  breaking:",
            "    - pub fn a::f()",
            "    + pub fn a::f(u32)",
            "    - pub fn a::g()",
            "  additions:",
            "    + pub fn a::h()",
            "  once 0.1.0 is published, a version that breaks it is 0.2.0 or later, not 0.1.1",
        ];
        assert_eq!(changed.lines, expected);

        // Allowed, and still to be accepted.
        let bumped = api(&dir, "0.2.0", &items).compare().unwrap();
        assert!(!bumped.same);
        assert_eq!(bumped.lines.last().unwrap(), "  0.2.0 may break what 0.1.0 promised");
        api(&dir, "0.2.0", &items).bless().unwrap();
        assert!(api(&dir, "0.2.0", &items).compare().unwrap().same);
    }

    #[test]
    fn additions_break_nothing() {
        let dir = tempfile::tempdir().unwrap();
        api(&dir, "0.1.0", &["pub mod a"]).bless().unwrap();
        let added = api(&dir, "0.1.0", &["pub mod a", "pub fn a::f()"]).compare().unwrap();
        assert!(!added.same);
        assert_eq!(added.lines[1..], ["  additions:", "    + pub fn a::f()"]);
    }

    #[test]
    fn a_list_of_another_compiler_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let api = api(&dir, "0.1.0", &["pub mod a"]);
        fs::write(&api.file, "# a 0.1.0, listed with rustc 1.0.0 (a)\n").unwrap();
        let lines = api.compare().unwrap().lines;
        assert!(lines.last().unwrap().contains("the list is of rustc 1.0.0 (a)"), "{lines:?}");
        fs::write(&api.file, "pub mod a\n").unwrap();
        assert!(api.compare().is_err(), "a list without a head");
    }

    #[test]
    fn versions_that_may_break() {
        for (old, new, may) in [
            ("0.1.0", "0.1.9", false),
            ("0.1.0", "0.2.0", true),
            ("0.1.0", "1.0.0", true),
            ("1.1.0", "1.2.0", false),
            ("1.9.0", "2.0.0", true),
            ("0.0.1", "0.0.2", true),
            ("0.1.0-alpha.1", "0.1.0", false),
        ] {
            assert_eq!(may_break(old, new), may, "{old} {new}");
        }
        assert_eq!((next("0.1.7"), next("1.2.3")), ("0.2.0".to_owned(), "2.0.0".to_owned()));
        assert_eq!(next("0.0.1"), "0.0.2");
    }
}
