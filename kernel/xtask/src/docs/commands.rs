//! Commands that pages tell a reader to run.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::page::Page;
use crate::log::Log;
use crate::workspace::{cargo, target};

/// A command of this project's own, as its parser gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ours {
    /// The `memslots` tool.
    Memslots(Vec<String>),
    /// `cargo xtask`.
    Xtask(Vec<String>),
}

/// A line for each command that its parser does not know. Nothing is carried
/// out: each is asked for its help.
pub(super) fn faults(pages: &[Page], log: &mut Log) -> Result<Vec<String>> {
    // As the tests have built it: by itself it would get other features.
    let features = ["test", "--workspace", "--all-features"];
    log.command(cargo().args(features).args(["--quiet", "--no-run", "--test", "cli"]))?;
    let memslots = target().join("debug/memslots");
    let xtask = std::env::current_exe().context("where this program is")?;
    let mut faults = Vec::new();
    for page in pages.iter().filter(|page| !super::is_results(&page.name)) {
        for (line, command) in commands(page) {
            let (program, args) = match &command {
                Ours::Memslots(args) => (&memslots, args),
                Ours::Xtask(args) => (&xtask, args),
            };
            let asked = Command::new(program)
                .args(args.iter().take_while(|arg| *arg != "--"))
                .arg("--help")
                .stdin(Stdio::null())
                .output()
                .with_context(|| format!("can't run {}", program.display()))?;
            if !asked.status.success() {
                let says = String::from_utf8_lossy(&asked.stderr);
                let says = says.lines().next().unwrap_or_default();
                faults.push(format!("{}:{line}: {command:?}: {says}", page.name.display()));
            }
        }
    }
    if pages.iter().all(|page| commands(page).is_empty()) {
        bail!("no page has a command");
    }
    Ok(faults)
}

/// The commands of a page, with the lines they are in.
fn commands(page: &Page) -> Vec<(usize, Ours)> {
    let shell = page.blocks.iter().filter(|(_, language, _)| language == "sh");
    let lines = shell.flat_map(|(line, _, text)| {
        text.lines().enumerate().map(move |(index, text)| (line + 1 + index, text))
    });
    lines.filter_map(|(line, text)| Some((line, ours(text)?))).collect()
}

fn ours(line: &str) -> Option<Ours> {
    let line = line.split(" #").next()?.trim_start_matches(['$', '#', ' ']);
    let end = line.find(['|', '>', '<', ';', '&']).unwrap_or(line.len());
    let mut words = line[..end].split_whitespace().map(|word| word.trim_matches(['\'', '"']));
    // Variables before the command are for the command.
    let first = words.find(|word| !word.contains('='))?;
    let rest: Vec<String> = words.map(str::to_owned).collect();
    let behind = |rest: &[String]| {
        let dashes = rest.iter().position(|word| word == "--");
        dashes.map_or_else(Vec::new, |dashes| rest[dashes + 1..].to_vec())
    };
    match (first, rest.first().map(String::as_str)) {
        ("memslots", _) => Some(Ours::Memslots(rest)),
        ("cargo", Some("xtask")) => Some(Ours::Xtask(rest[1..].to_vec())),
        ("cargo", Some("run")) if !rest.iter().any(|word| word == "--example" || word == "-p") => {
            Some(Ours::Memslots(behind(&rest)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_in_lines() {
        let args = |args: &str| args.split_whitespace().map(str::to_owned).collect();
        let cases = [
            ("cargo run --release    # compares", Some(Ours::Memslots(args("")))),
            ("cargo run --release -- bench pci > f", Some(Ours::Memslots(args("bench pci")))),
            ("memslots replay a.trace | less", Some(Ours::Memslots(args("replay a.trace")))),
            ("A=b cargo xtask test --quick", Some(Ours::Xtask(args("test --quick")))),
            ("cargo build", None),
            ("", None),
        ];
        for (line, expected) in cases {
            assert_eq!(ours(line), expected, "{line}");
        }
    }
}
