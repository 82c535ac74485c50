//! What pages promise of themselves: a README that is short, prose without dates,
//! results that say where and when they were made.

use anyhow::{Context as _, Result};

use super::page::Page;
use super::{is_results, root};

/// Lines of the README, at most.
const README: usize = 120;

/// Rows that a file of results begins with.
const STAMP: [&str; 4] = ["machine", "kernel", "date", "commit"];

/// Put together by hand (`kernel/results/README.md`), and what others have measured.
const BY_HAND: [&str; 4] =
    ["bench-22-patches.md", "density-arm64.md", "uefi-arm64.md", "reported.md"];

/// A line for each promise that is not kept.
pub(super) fn faults(pages: &[Page]) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for page in pages {
        let name = page.name.display().to_string();
        let text = std::fs::read_to_string(root().join(&page.name)).context(name.clone())?;
        faults.extend(of_page(page, &text).into_iter().map(|fault| format!("{name}{fault}")));
    }
    Ok(faults)
}

fn of_page(page: &Page, text: &str) -> Vec<String> {
    let is = |name: &str| page.name.ends_with(name);
    if is_results(&page.name) {
        let written = !is("README.md") && !BY_HAND.into_iter().any(is);
        let says = |line: &str, what: &str| {
            let row = line.strip_prefix("| ").map(|row| row.strip_prefix("its ").unwrap_or(row));
            row.and_then(|row| row.strip_prefix(what)).is_some_and(|rest| rest.starts_with(" | "))
        };
        let lacks = |what: &&&str| !text.lines().any(|line| says(line, what));
        let lacking = STAMP.iter().filter(lacks).filter(|_| written);
        return lacking.map(|what| format!(": no {what}")).collect();
    }
    let mut faults = Vec::new();
    let lines = text.lines().count();
    if page.name.to_str() == Some("README.md") && lines > README {
        faults.push(format!(": {lines} lines, of {README}"));
    }
    // What changed has dates once it is released; letters have one each.
    if !is("CHANGELOG.md") && !page.name.starts_with("kernel/reports") {
        let dated = page.prose.iter().filter(|(_, text)| text.split_whitespace().any(is_date));
        faults.extend(dated.map(|(line, _)| format!(":{line}: a date, which is for results")));
    }
    faults
}

/// `2026-11-29`, whatever stands around it.
fn is_date(word: &str) -> bool {
    let shape = |byte: u8| if byte.is_ascii_digit() { b'0' } else { byte };
    let shape: Vec<u8> = word.bytes().map(shape).collect();
    shape.windows(10).any(|part| part == b"0000-00-00")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, text: &str) -> Vec<String> {
        of_page(&Page::new(name.into(), text), text)
    }

    #[test]
    fn a_readme_is_short() {
        assert!(found("README.md", &"a\n".repeat(README)).is_empty());
        assert_eq!(found("README.md", &"a\n".repeat(121)), [": 121 lines, of 120"]);
        assert!(found("docs/README.md", &"a\n".repeat(121)).is_empty());
    }

    #[test]
    fn prose_has_no_dates() {
        let dated = "It was\nslow (2026-11-29).\n\n```text\n2026-11-29\n```\n";
        assert_eq!(found("docs/a.md", dated), [":2: a date, which is for results"]);
        assert!(found("CHANGELOG.md", dated).is_empty());
    }

    #[test]
    fn results_say_where_and_when() {
        let all = "| machine | a |\n| kernel | b |\n| date | 2026-11-29 |\n| commit | c |\n";
        assert!(found("benches/results/a.md", all).is_empty());
        assert_eq!(found("kernel/results/a.md", &all[..32]), [": no date", ": no commit"]);
        assert!(found("kernel/results/README.md", "").is_empty());
    }
}
