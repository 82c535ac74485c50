//! The documentation, read as a reader does: links lead somewhere, commands are
//! ones that there are, sentences have an end, figures are of a file that a
//! command wrote.

pub(crate) mod book;
mod commands;
mod errors;
mod figures;
mod glossary;
mod held;
mod links;
mod manifests;
mod page;
mod sentences;
mod small;
mod targets;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::log::{Log, Outcome};
use crate::workspace::root;
use page::Page;

/// A step of `cargo xtask test`.
pub(crate) fn check(log: &mut Log) -> Result<Outcome> {
    let pages = pages()?;
    let mut faults = links::faults(&pages);
    faults.extend(not_in_book(&pages));
    faults.extend(sentences::faults(&pages));
    faults.extend(figures::faults(&pages)?);
    faults.extend(manifests::faults(&pages)?);
    faults.extend(held::faults(&pages)?);
    faults.extend(errors::faults()?);
    faults.extend(glossary::faults(log)?);
    faults.extend(commands::faults(&pages, log)?);
    for fault in &faults {
        log.say(fault);
    }
    match faults.len() {
        0 => Ok(Outcome::Done),
        count => bail!("{count} faults in the documentation"),
    }
}

/// Of the pages, what can only be held against the kernel's source.
pub(crate) fn check_words(log: &mut Log) -> Result<()> {
    let faults = glossary::faults(log)?;
    for fault in &faults {
        log.say(fault);
    }
    if faults.is_empty() { Ok(()) } else { bail!("{} faults in the glossary", faults.len()) }
}

/// All pages that are committed, or would be.
fn pages() -> Result<Vec<Page>> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z", "*.md"])
        .current_dir(root())
        .output()
        .context("can't run git ls-files")?;
    let names = String::from_utf8(listed.stdout).context("names of pages")?;
    let names: Vec<PathBuf> = if listed.status.success() {
        names.split_terminator('\0').map(PathBuf::from).collect()
    } else {
        // No repository: the pages of a package.
        ["README.md"].map(PathBuf::from).into()
    };
    names.into_iter().filter(|name| root().join(name).exists()).map(read).collect()
}

fn read(name: PathBuf) -> Result<Page> {
    let text = std::fs::read_to_string(root().join(&name))
        .with_context(|| format!("can't read {}", name.display()))?;
    Ok(Page::new(name, &text))
}

/// A line for each page of `docs/` that the book's contents do not link.
fn not_in_book(pages: &[Page]) -> Vec<String> {
    let summary = Path::new("docs/SUMMARY.md");
    let links = pages.iter().filter(|page| page.name == summary).flat_map(|page| &page.links);
    let linked: Vec<PathBuf> = links.map(|(_, link)| links::resolved(summary, link)).collect();
    let missing = pages
        .iter()
        .map(|page| &page.name)
        .filter(|name| name.starts_with("docs") && *name != summary && !linked.contains(name));
    missing.map(|name| format!("{} is not in {}", name.display(), summary.display())).collect()
}

/// Whether the page says what is, as against what was measured.
fn is_results(page: &Path) -> bool {
    page.components().any(|part| part.as_os_str() == "results")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_the_book_lacks_is_named() {
        let page = |name: &str, text: &str| Page::new(name.into(), text);
        let pages = [
            page("docs/SUMMARY.md", "- [A](a.md)"),
            page("docs/a.md", ""),
            page("docs/guide/b.md", ""),
            page("README.md", ""),
        ];
        assert_eq!(not_in_book(&pages), ["docs/guide/b.md is not in docs/SUMMARY.md"]);
    }
}
