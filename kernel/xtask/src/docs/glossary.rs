//! Words, each with where the kernel has it: a link into the kernel's source, in
//! which what the link names has to be.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::log::Log;
use crate::workspace::{root, target};

/// The page.
const WORDS: &str = "docs/reference/glossary.md";

/// Where links to Linux 6.12 begin and end.
const TREE: &str = "https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git/tree/";
const VERSION: &str = "?h=v6.12";

/// A line for each word without a place, and for each link to a file that has not
/// what it names. The latter where the kernel's source is: the step `kernel`, which
/// fetches it, asks again.
pub(super) fn faults(log: &mut Log) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(root().join(WORDS)).context(WORDS)?;
    let source = target().join("kernel/source/6.12");
    if !source.join("virt/kvm").exists() {
        log.say("links into the kernel are left to the step kernel, which has its source");
        return Ok(faults_of(&text, |_| None));
    }
    let faults = faults_of(&text, |path| Some(read(&source, path)));
    log.say(&format!("{} names looked up in the kernel's source", text.matches("[`").count()));
    Ok(faults)
}

fn read(source: &Path, path: &str) -> String {
    std::fs::read_to_string(source.join(path)).unwrap_or_default()
}

/// `read` says what is in a file of the kernel, if it is known; nothing is in one
/// that is not there.
fn faults_of(text: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let defined = |line: &'_ str| -> Option<(String, String)> {
        let (name, url) = line.strip_prefix('[')?.split_once("]: ")?;
        Some((name.to_owned(), url.to_owned()))
    };
    let urls: HashMap<String, String> = text.lines().filter_map(defined).collect();
    let rows = text.lines().filter(|line| line.starts_with("| ")).skip(2);
    let mut faults = Vec::new();
    for row in rows {
        let mut cells = row.trim_matches('|').split(" | ").map(str::trim);
        let (word, place) = (cells.next().unwrap_or_default(), cells.last().unwrap_or_default());
        if !place.starts_with("none") && !place.contains("](") && !place.contains("][") {
            faults.push(format!("{WORDS}: {word}: neither a link nor \"none\""));
        }
        // [`NAME`][FILE]
        for named in place.split("[`").skip(1) {
            let Some((name, rest)) = named.split_once("`][") else { continue };
            let Some(url) = rest.split(']').next().and_then(|file| urls.get(file)) else {
                faults.push(format!("{WORDS}: {word}: {name} leads nowhere"));
                continue;
            };
            let path = url.strip_prefix(TREE).and_then(|rest| rest.strip_suffix(VERSION));
            let within = path.and_then(|path| Some((path, read(path)?)));
            let name = name.trim_end_matches("()");
            if let Some((path, _)) = within.filter(|(_, text)| !text.contains(name)) {
                faults.push(format!("{WORDS}: {word}: {path} has no {name}"));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_places_and_files_have_names() {
        let text = format!(
            "| word | what | where |\n| --- | --- | --- |\n\
             | a | b | [`f()`][main], [`g()`][main] |\n| c | d | `f()` |\n| e | f | none: ours |\n\
             | g | h | [`f()`][gone] |\n| i | j | [`x`][other] |\n\n\
             [main]: {TREE}virt/kvm/kvm_main.c{VERSION}\n[other]: https://example.org\n"
        );
        let faults = faults_of(&text, |path| {
            assert_eq!(path, "virt/kvm/kvm_main.c");
            Some("int f(void)".to_owned())
        });
        let expected = [
            "a: virt/kvm/kvm_main.c has no g",
            "c: neither a link nor \"none\"",
            "g: f() leads nowhere",
        ];
        assert_eq!(faults, expected.map(|fault| format!("{WORDS}: {fault}")));
        assert_eq!(faults_of(&text, |_| None).len(), 2);
    }
}
